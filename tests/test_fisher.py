"""Fisher curvature against dense float64 truth, identities and invariances."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import proponent as pp
from proponent.capture.gradients import Capture
from proponent.curvature.expansion import Expansion
from proponent.errors import FingerprintMismatch, InputError, UnsupportedModel
from proponent.rows import Rows
from truth.gradients import gradients

torch.set_num_threads(1)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)).double()


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.GroupNorm(1, 3)
        self.second = nn.Conv2d(3, 4, 2, stride=2, bias=False)
        self.last = nn.Linear(4 * 2 * 2, 3)

    def forward(self, x):
        x = self.norm(self.first(x).tanh())
        return self.last(self.second(x).tanh().flatten(1))


def convolutional(seed=0):
    torch.manual_seed(seed)
    return Convolutional().double()


def data(shape, n=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(0.2, 2, shape[-1], dtype=torch.float64)  # anisotropic: the basis matters
    return x, torch.randint(3, (n,), generator=generator)


MODELS = {"mlp": (mlp, (6,)), "convolutional": (convolutional, (2, 4, 4))}


def fisher_rows(model, x):
    """(n · 3, P): √p_c ∇(−log p_c) of every example and class."""

    def one(i, c):
        logp = model(x[i : i + 1]).log_softmax(-1)[0, c]
        return lambda: -model(x[i : i + 1]).log_softmax(-1)[0, c] * logp.detach().exp().sqrt()

    return gradients(model, [one(i, c) for i in range(len(x)) for c in range(3)])


def loss_rows(model, x, y):
    return gradients(model, [lambda i=i: F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))])


def layers(model, x):
    """(weight slice, bias slice, A, S) of every weight layer, from hooks of the test's own."""
    found, at = [], 0
    where = {}
    for name, p in model.named_parameters():
        where[name] = slice(at, at + p.numel())
        at += p.numel()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            heard = {}
            handle = module.register_forward_hook(lambda m, a, out, h=heard: h.update(a=a[0].detach(), out=out))
            S = 0
            for i in range(len(x)):
                logp = model(x[i : i + 1]).log_softmax(-1)[0]
                for c in range(3):
                    (g,) = torch.autograd.grad(-logp[c], heard["out"], retain_graph=True)
                    g = g.reshape(1, g.shape[1], -1)[0]
                    S = S + logp[c].detach().exp() * g @ g.T
            model(x)
            a = heard["a"]
            if isinstance(module, nn.Conv2d):
                a = F.unfold(a, module.kernel_size, padding=module.padding, stride=module.stride).mT.flatten(0, 1)
            if module.bias is not None:
                a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
            handle.remove()
            bias = where.get(f"{name}.bias")
            found.append((where[f"{name}.weight"], bias, a.T @ a / len(a), S / len(x)))
    return found, at


def truth(model, x, damping, kind):
    """(P, P): the damped inverse of the block-diagonal EK-FAC, K-FAC or diagonal Fisher, dense."""
    rows = fisher_rows(model, x) / len(x) ** 0.5
    found, _ = layers(model, x)
    inverse = torch.diag(1 / (rows.square().sum(0) + damping))
    if kind == "diagonal":
        return inverse
    for weight, bias, A, S in found:
        (o, i), own = (len(S), len(A)), rows[:, weight]
        G = own.reshape(len(rows), o, -1)
        G = G if bias is None else torch.cat([G, rows[:, bias, None]], 2)
        (alpha, QA), (sigma, QS) = torch.linalg.eigh(A), torch.linalg.eigh(S)
        values = (QS.T @ G @ QA).square().sum(0) if kind == "ekfac" else torch.outer(sigma, alpha)
        Q = torch.kron(QS, QA)
        block = (Q @ torch.diag(1 / (values.flatten() + damping)) @ Q.T).reshape(o, i, o, i)
        width = i if bias is None else i - 1
        inverse[weight, weight] = block[:, :width, :, :width].reshape(o * width, -1)
        if bias is not None:
            inverse[bias, bias] = block[:, -1, :, -1]
            inverse[weight, bias] = block[:, :width, :, -1].reshape(o * width, -1)
            inverse[bias, weight] = inverse[weight, bias].T
    return inverse


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_dense_formula(name, kind):
    make, shape = MODELS[name]
    model, (x, y), (xq, yq) = make(), data(shape), data(shape, 50, seed=2)  # more queries than training examples
    spec = {"ekfac": pp.EKFAC, "kfac": pp.KFAC, "diagonal": pp.Diagonal}[kind](fisher="exact")
    fitted = pp.Influence(curvature=spec, damping=1e-3, shortcut=0, batch_size=7).fit(pp.Task(model), (x, y))
    inverse = truth(model, x, 1e-3, kind)
    gi, gq = loss_rows(model, x, y), loss_rows(model, xq, yq)
    want = (gq @ inverse @ gi.T).detach().numpy() / len(x)
    got = fitted.score((xq, yq)).dataset.score.values
    assert np.abs(got - want).max() < 1e-9 * np.abs(want).max()
    selfs = fitted.self_influence().value
    want = ((gi @ inverse) * gi).sum(1).detach().numpy() / len(x)
    assert np.abs(selfs - want).max() < 1e-9 * np.abs(want).max()


def test_kfac_and_ekfac_are_the_exact_inverse_where_the_fisher_is_a_kronecker_product():
    """Squared error of a linear layer: F = 2 I ⊗ E[ã ãᵀ], with the bias and without."""
    for bias in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(4, 3, bias=bias).double()
        x = torch.randn(30, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)
        y = torch.randn(30, 3, dtype=torch.float64)
        a = torch.cat([x, torch.ones(30, 1, dtype=x.dtype)], 1) if bias else x
        inverse = torch.linalg.inv(2 * a.T @ a / 30 + 0.01 * torch.eye(a.shape[1], dtype=x.dtype))
        g = 2 * (layer(x) - y).detach()
        want = (g @ g.T) * (a @ inverse @ a.T) / 30
        for curvature in (pp.KFAC(fisher="exact"), pp.EKFAC(fisher="exact")):
            task = pp.Task(layer, loss="squared_error")
            got = pp.Influence(curvature=curvature, damping=0.01, shortcut=0).fit(task, (x, y)).score((x, y))
            assert np.allclose(got.dataset.score, want.numpy(), rtol=1e-9, atol=1e-12)


def test_score_is_what_leaving_out_does_in_ridge_regression():
    """Sign and scale: with the exact Hessian the score is the change to first order; leave-one-out is h/(1 − h) times it."""
    torch.manual_seed(0)
    x, noise = torch.randn(200, 3, dtype=torch.float64), torch.randn(200, 1, dtype=torch.float64)
    y, wd = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + noise, 0.02

    def fit(rows):
        gram = 2 * x[rows].T @ x[rows] + 200 * wd * torch.eye(3, dtype=x.dtype)
        return torch.linalg.solve(gram, 2 * x[rows].T @ y[rows])

    every = torch.arange(200)
    layer = nn.Linear(3, 1, bias=False).double()
    layer.weight.data = fit(every).T
    xq = torch.randn(5, 3, dtype=torch.float64)
    yq = torch.randn(5, 1, dtype=torch.float64)
    refitted = torch.stack([-((xq @ fit(every[every != i]) - yq) ** 2)[:, 0] for i in range(200)], 1)
    change = (-((xq @ fit(every) - yq) ** 2) - refitted).numpy()
    influence = pp.Influence(curvature=pp.EKFAC(fisher="exact"), damping=0.0, weight_decay=wd, shortcut=0)
    got = influence.fit(pp.Task(layer, loss="squared_error"), (x, y)).score((xq, yq)).dataset.score.values
    slope = (got * change).sum() / (got * got).sum()
    assert np.corrcoef(got.ravel(), change.ravel())[0, 1] > 0.999
    assert abs(slope - 1) < 0.03


def test_sampled_fisher_comes_close_to_the_exact_one_as_copies_of_the_data_are_taken():
    model, (x, y) = mlp(), data((6,), 20)
    task = pp.Task(model)
    exact = pp.EKFAC(fisher="exact").fit(task, (x, y))
    many = x.repeat(400, 1), y.repeat(400)
    sums = pp.EKFAC(fisher="exact").covariances(task, (x, y))
    drawn = pp.EKFAC(fisher="sampled").spectrum(task, many, sums)
    for name in exact.bases:
        (a,), (b,) = exact.eigenvalues(name), drawn.eigenvalues(name)
        assert float((a - b).norm() / a.norm()) < 0.05


def test_duplicating_the_training_set_leaves_scores_times_n_unchanged():
    model, (x, y) = convolutional(), data((2, 4, 4), 12)
    task, spec = pp.Task(model), pp.Influence(curvature=pp.EKFAC(fisher="exact"), damping=pp.Damping(0.1, "mean"))
    once = spec.fit(task, (x, y)).score((x, y)).dataset.score.values * 12
    twice = spec.fit(task, (x.repeat(2, 1, 1, 1), y.repeat(2))).score((x, y)).dataset.score.values * 24
    assert np.allclose(twice[:, :12], once, rtol=1e-8) and np.allclose(twice[:, 12:], once, rtol=1e-8)


@pytest.mark.parametrize("batch", [1, 3, 7, 40])
def test_batch_size_changes_nothing(batch):
    model, (x, y) = mlp(), data((6,))
    spec = pp.Influence(curvature=pp.EKFAC(fisher="exact"), damping=0.01, batch_size=batch)
    got = spec.fit(pp.Task(model), (x, y)).score((x, y)).dataset.score.values
    want = pp.Influence(curvature=pp.EKFAC(fisher="exact"), damping=0.01).fit(pp.Task(model), (x, y)).score((x, y))
    assert np.allclose(got, want.dataset.score, rtol=1e-9, atol=1e-12)


def test_shards_merge_to_the_whole_and_what_is_saved_scores_the_same(tmp_path):
    model, (x, y) = convolutional(), data((2, 4, 4))
    task, kind = pp.Task(model), pp.EKFAC(fisher="exact")
    shards = [(x[:15], y[:15]), (x[15:], y[15:])]
    sums = kind.covariances(task, shards[0]).merge(kind.covariances(task, shards[1]))
    merged = kind.spectrum(task, shards[0], sums).merge(kind.spectrum(task, shards[1], sums))
    path = merged.save(tmp_path / "spectrum.safetensors")
    want = pp.Influence(curvature=kind, damping=0.01).fit(task, (x, y)).score((x, y)).dataset.score.values
    for curvature in (path, str(path)):
        got = pp.Influence(curvature=curvature, damping=0.01).fit(task, (x, y)).score((x, y)).dataset.score.values
        assert np.abs(got - want).max() < 1e-9 * np.abs(want).max()
    other = pp.Task(convolutional(seed=5))
    with pytest.raises(FingerprintMismatch, match="other weights"):
        pp.Influence(curvature=path).fit(other, (x, y))
    with pytest.raises(InputError, match="different bases"):
        kind.fit(task, shards[0]).merge(kind.fit(task, shards[1]))


def test_short_sums_are_within_their_stated_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    x, y = torch.randn(400, 64) * torch.logspace(-2, 0, 64), torch.randint(10, (400,))
    task = pp.Task(model)
    exact = pp.Influence(shortcut=0).fit(task, (x, y)).score((x, y)).dataset.score.values
    errors = []
    for wish in (0.3, 0.05, 0.01):
        fitted = pp.Influence(shortcut=wish).fit(task, (x, y))
        got = fitted.score((x, y)).dataset.score.values
        errors.append(np.linalg.norm(got - exact) / np.linalg.norm(exact))
        stated = fitted.facts["shortcut"]
        assert all(e <= wish for e in stated["expected_relative_error"].values())
        assert errors[-1] < wish and 0.5 < stated["relative_error"] / errors[-1] < 4
    assert errors[0] > errors[1] > errors[2]


def test_an_expansion_is_exact_where_the_inverse_is_a_product():
    u, v = torch.rand(5, dtype=torch.float64) + 0.1, torch.rand(7, dtype=torch.float64) + 0.1
    inverse, eigenvalues = u[:, None] * v, 1 / (u[:, None] * v)
    found = Expansion.of(inverse, eigenvalues, 1 / u, 1 / v, 1e-9)
    assert found is not None and len(found.outputs) == 1
    assert torch.allclose(found.outputs.T @ found.inputs, inverse)


def test_query_rank_reports_what_it_leaves_out_and_is_exact_at_full_rank():
    model, (x, y) = convolutional(), data((2, 4, 4))
    task, kind = pp.Task(model), pp.EKFAC(fisher="exact")
    whole = pp.Influence(curvature=kind, damping=0.01, shortcut=0)
    exact = whole.fit(task, (x, y)).score((x, y)).dataset.score.values
    errors = []
    for rank in (1, 2):
        fitted = pp.Influence(curvature=kind, damping=0.01, shortcut=0, query_rank=rank).fit(task, (x, y))
        got = fitted.score((x, y)).dataset.score.values
        errors.append(np.linalg.norm(got - exact) / np.linalg.norm(exact))
        assert abs(fitted.facts["shortcut"]["relative_error"] - errors[-1]) < 0.5 * errors[-1] + 1e-9
    assert errors[0] > errors[1] > 1e-6
    full = pp.Influence(curvature=kind, damping=0.01, shortcut=0, query_rank=99).fit(task, (x, y)).score((x, y))
    assert np.abs(full.dataset.score.values - exact).max() < 1e-12


def test_layers_of_very_different_scale_are_damped_alike_and_scoring_twice_gives_the_same_bits():
    model, (x, y) = mlp(), data((6,))
    fitted = pp.Influence(curvature=pp.EKFAC(fisher="exact"), damping=pp.Damping(0.1, "mean")).fit(
        pp.Task(model), (x, y)
    )
    first = fitted.score((x, y)).dataset.score.values
    assert np.array_equal(first, fitted.score((x, y)).dataset.score.values)
    metric = fitted.members[0].metric
    for name in metric.inverse:
        values = torch.cat([v.flatten() for v in metric.spectrum.eigenvalues(name)])
        want = 1 / (values + 0.1 * values.mean())
        assert torch.allclose(torch.cat([v.flatten() for v in metric.inverse[name]]), want)


def test_padding_changes_neither_curvature_nor_scores():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, tokens):
            return self.head(self.mix(self.embed(tokens)).tanh())

    torch.manual_seed(0)
    model = Tagger().double()
    tokens, tags = torch.randint(1, 9, (8, 5)), torch.randint(4, (8, 5))
    padded = F.pad(tokens, (0, 4)), F.pad(tags, (0, 4), value=-100)
    task = pp.Task(model)
    for kind in (pp.EKFAC(fisher="empirical"), pp.KFAC(fisher="empirical")):
        spec = pp.Influence(curvature=kind, damping=0.01)
        want = spec.fit(task, (tokens, tags)).score((tokens, tags)).dataset.score.values
        got = spec.fit(task, padded).score(padded).dataset.score.values
        assert np.abs(got - want).max() < 1e-10 * np.abs(want).max()


def test_an_example_that_is_not_finite_spoils_neither_curvature_nor_other_scores():
    model, (x, y) = mlp(), data((6,))
    broken = x.clone()
    broken[3] = torch.nan
    kept = [i for i in range(len(x)) if i != 3]
    spec = pp.Influence(curvature=pp.EKFAC(fisher="exact"), damping=0.01)
    with pytest.warns(pp.ProponentWarning, match=r"set aside.*\[3\]"):
        got = spec.fit(pp.Task(model), (broken, y)).score((x, y)).dataset.score.values
    clean = spec.fit(pp.Task(model), (x[kept], y[kept])).score((x, y)).dataset.score.values
    assert np.isnan(got[:, 3]).all() and np.isfinite(got[:, kept]).all()
    assert np.corrcoef(got[:, kept].ravel(), clean.ravel())[0, 1] > 0.99


def test_a_subset_states_its_error():
    model, (x, y) = mlp(), data((6,), 600)
    task = pp.Task(model)
    every = pp.Influence(curvature=pp.EKFAC(fisher="exact"), batch_size=20).fit(task, (x, y))
    some = pp.Influence(curvature=pp.EKFAC(fisher="exact", examples=100)).fit(task, (x, y))
    whole, part = (f.members[0].metric.spectrum for f in (every, some))
    assert part.examples == 100 and whole.examples == 600
    assert 0 < every.facts["curvature_error"]["covariances"] < some.facts["curvature_error"]["covariances"]
    sums = [pp.EKFAC(fisher="exact", examples=k).covariances(task, (x, y)) for k in (100, None)]
    gap = sum(float((a - b).square().sum()) for a, b in zip(*(s.parts() for s in sums), strict=True))
    size = sum(float(b.square().sum()) for b in sums[1].parts())
    assert 0.2 < (gap / size) ** 0.5 / some.facts["curvature_error"]["covariances"] < 3


def test_the_first_layer_of_a_shared_module_and_a_tied_weight_get_the_diagonal():
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = data((6,))
    task = pp.Task(model)
    with task.watching():
        Capture.of(task, Rows.of((x, y)))
    gi = loss_rows(model, x, y)
    fitted = pp.Influence(curvature=pp.EKFAC(fisher="exact"), damping=1e6).fit(task, (x, y))
    got = fitted.score((x, y)).dataset.score.values * 1e6 * len(x)
    assert np.allclose(got, (gi @ gi.T).detach().numpy(), rtol=1e-4, atol=1e-6)  # damping alone: gradient products


def test_unknown_curvatures_and_losses_without_a_hessian_are_refused_in_words():
    model, (x, y) = mlp(), data((6,))
    with pytest.raises(InputError, match="did you mean 'ekfac'"):
        pp.Influence(curvature="ekfack").fit(pp.Task(model), (x, y))
    with pytest.raises(InputError, match="fisher='sampled'"):
        pp.EKFAC(fisher="true")
    with pytest.raises(InputError, match="a positive damping"):
        pp.Influence(damping=0).fit(pp.Task(model), (x * 0, y))
    custom = pp.Task(copy.deepcopy(model), loss=lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"))
    with pytest.raises(UnsupportedModel, match="does not know its Hessian"):
        pp.Influence().fit(custom, (x, y))
    from sklearn.linear_model import Ridge

    with pytest.raises(InputError, match="settings of a task's curvature"):
        pp.Influence(curvature="kfac").fit(Ridge(), (x.numpy(), y.numpy()))
