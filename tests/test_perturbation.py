"""Perturbation influence of PyTorch models against derivatives taken by moving the input, and by refitting."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import proponent as pp
from proponent.rows import Rows
from truth.linear import refit_binary, refit_ridge

torch.set_num_threads(1)


def classifier(*between, inputs=4):
    torch.manual_seed(0)
    return nn.Sequential(*between, nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 3)).double()


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 3, 2), nn.GroupNorm(1, 3), nn.Linear(27, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).tanh().flatten(1))


class Attention(nn.Module):
    """Tokens, by a table that is also the head, through attention."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)

    def forward(self, tokens):
        return self.block(self.table(tokens))[:, -1] @ self.table.weight.T


def data(shape, n=7, seed=1, classes=3):
    torch.manual_seed(seed)
    return torch.randn(n, *shape, dtype=torch.float64), torch.randint(classes, (n,))


def by_moving(spec, task, train, query, row, step=1e-5):
    """∂score/∂x of one training example, by central differences; the curvature is that of the examples as they are."""
    x, y = train
    fitted = spec.fit(task, train)
    columns = []
    for k in range(x[row].numel()):
        ends = []
        for h in (step, -step):
            moved = x[row].clone()
            moved.view(-1)[k] += h
            member = fitted.members[0]
            other = type(fitted)(
                **{**vars(fitted), "train": Rows.of((moved[None], y[row : row + 1])), "members": [member]}
            )
            ends.append(other.score(query).dataset.score.values[:, 0])
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, 1).reshape(-1, *x.shape[1:])


METHODS = {
    "graddot": pp.GradDot(),
    "ekfac": pp.Influence(curvature="ekfac", damping=0.3, shortcut=0),
    "diagonal": pp.Influence(curvature="diagonal", damping=0.3, shortcut=0),
    "explicit": pp.Influence(curvature="ggn", solver="explicit", damping=0.3),
    "dual": pp.Influence(curvature="ggn", solver="dual", damping=0.3),
    "datainf": pp.Influence(curvature="empirical_fisher", solver="datainf", damping=0.3),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["table", "image"])
def test_is_the_derivative_of_the_score_in_the_input(method, kind):
    torch.manual_seed(2)
    model, shape = (classifier(), (4,)) if kind == "table" else (Convolutional().double(), (2, 4, 4))
    task, train, query = pp.Task(model), data(shape), data(shape, 3, seed=5)
    got = METHODS[method].fit(task, train).perturbation(query, rows=[5, 0])
    assert got.dims == ("query", "train", *(("feature",) if kind == "table" else ("channel", "height", "width")))
    assert got.train.values.tolist() == [5, 0] and got["query"].values.tolist() == [0, 1, 2]
    for at, row in enumerate([5, 0]):
        want = by_moving(METHODS[method], task, train, query, row)
        np.testing.assert_allclose(got.values[:, at], want, rtol=1e-6, atol=1e-8 * np.abs(want).max())


def test_the_output_of_an_embedding_can_be_moved():
    """A table that is moved at one token only, seen by a lookup that the example alone uses."""
    torch.manual_seed(3)
    model = Attention().double()
    tokens, target = torch.randint(7, (5, 4)), torch.randint(7, (5,))
    task = pp.Task(model)
    fitted = pp.GradDot().fit(task, (tokens, target))
    got = fitted.perturbation((tokens, target), rows=[3], of="table")
    assert got.dims == ("query", "train", "position", "channel") and got.shape == (5, 1, 4, 4)
    model.eval()

    def gradients(at, shift):
        handle = model.table.register_forward_hook(lambda m, a, out: out + shift)
        loss = nn.functional.cross_entropy(model(tokens[at : at + 1]), target[at : at + 1])
        handle.remove()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    nothing, step = torch.zeros(1, 4, 4, dtype=torch.float64), 1e-5
    queries = torch.stack([gradients(q, nothing) for q in range(5)])  # −∇m_q
    for k in range(16):
        shift = nothing.clone()
        shift.view(-1)[k] = step
        want = queries @ (gradients(3, shift) - gradients(3, -shift)) / (2 * step)
        np.testing.assert_allclose(got.values[:, 0].reshape(5, 16)[:, k], want.numpy(), rtol=1e-5, atol=1e-8)


def test_several_models_add_up(tmp_path):
    train, query = data((4,)), data((4,), 2, seed=5)
    model, paths, parts = classifier(), [], []
    for seed, rate in enumerate((0.3, 0.05)):
        torch.manual_seed(10 + seed)
        torch.save({k: torch.randn_like(v) for k, v in model.state_dict().items()}, tmp_path / f"{seed}.pt")
        paths.append(tmp_path / f"{seed}.pt")
        other = classifier()
        other.load_state_dict(torch.load(paths[-1]))
        parts.append(rate * pp.GradDot().fit(pp.Task(other), train).perturbation(query, rows=[1, 2]))
    got = pp.TracIn(paths, [0.3, 0.05]).fit(pp.Task(model), train).perturbation(query, rows=[1, 2])
    np.testing.assert_allclose(got, parts[0] + parts[1], rtol=1e-10)


def logistic(X, y, penalty):
    """The task whose model is the optimum of Σ ℓ + ½ penalty |w|², bias free."""
    theta = refit_binary(np.c_[X, np.ones(len(X))], y, np.ones(len(X)), np.r_[np.full(X.shape[1], penalty), 0.0])
    model = nn.Linear(X.shape[1], 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(theta[None, :-1]))
        model.bias.copy_(torch.tensor(theta[-1:]))
    return pp.Task(model, loss="binary_cross_entropy")


def inverse_of(H):
    """A metric with any dense inverse curvature of one layer's weight and bias."""

    class Dense:
        vectors = 1

        def directions(self, blocks):
            (block,) = blocks.values()
            rows = torch.cat(list(block.rows()), 1) @ torch.tensor(np.linalg.inv(H))
            return {block.names[0]: rows[:, :-1], block.names[1]: rows[:, -1:]}, None

    return Dense()


def test_is_the_derivative_of_refitting_and_agrees_with_the_linear_models():
    rng = np.random.default_rng(3)
    X, s = rng.normal(size=(15, 3)), rng.choice([-1.0, 1.0], 15)
    Q, t, penalty = rng.normal(size=(4, 3)), rng.choice([-1.0, 1.0], 4), 1.5
    task = logistic(X, s, penalty)
    X1 = np.c_[X, np.ones(15)]
    p = 1 / (1 + np.exp(-X1 @ np.r_[task.model.weight.detach().numpy()[0], task.model.bias.item()]))
    H = ((X1 * (p * (1 - p))[:, None]).T @ X1 + np.diag([penalty] * 3 + [0.0])) / 15
    columns = [torch.tensor((v > 0) * 1.0) for v in (s, t)]
    fitted = pp.Influence(curvature="identity").fit(task, (torch.tensor(X), columns[0]))
    member = fitted.members[0]
    exact = type(fitted)(**{**vars(fitted), "members": [type(member)(**{**vars(member), "metric": inverse_of(H)})]})
    got = exact.perturbation((torch.tensor(Q), columns[1]), rows=[2, 9])
    linear = pp.Influence().fit(pp.SklearnRecipe(LogisticRegression(C=1 / penalty, tol=1e-12)), (X, s))
    np.testing.assert_allclose(got, linear.perturbation((Q, t), rows=[2, 9]), rtol=1e-6, atol=1e-9)
    for k in range(3):
        ends = []
        for h in (1e-5, -1e-5):
            Z = X1.copy()
            Z[9, k] += h
            theta = refit_binary(Z, s, np.ones(15), np.array([penalty] * 3 + [0.0]))
            ends.append(-np.logaddexp(0, -t * (np.c_[Q, np.ones(4)] @ theta)))
        np.testing.assert_allclose(got[:, 1, k], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-9)


def test_ridge_is_the_derivative_of_refitting():
    """Of the half square, whose Hessian is the exact Gauss-Newton matrix."""
    rng = np.random.default_rng(4)
    X, y, penalty = np.c_[rng.normal(size=(12, 2)), np.ones(12)], rng.normal(size=12), np.array([2.0, 2.0, 0.0])
    theta = refit_ridge(X, y, np.ones(12), penalty)
    model = nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(theta[None, :-1]))
        model.bias.copy_(torch.tensor(theta[-1:]))
    task = pp.Task(model, loss=lambda m, b: 0.5 * (m(b[0])[:, 0] - b[1]) ** 2, measurement=lambda m, b: m(b[0])[:, 0])
    fitted = pp.Influence(curvature="identity").fit(task, (torch.tensor(X[:, :2]), torch.tensor(y)))
    member = fitted.members[0]
    metric = inverse_of((X.T @ X + np.diag(penalty)) / 12)
    exact = type(fitted)(**{**vars(fitted), "members": [type(member)(**{**vars(member), "metric": metric})]})
    got = exact.perturbation((torch.tensor(X[:3, :2]), torch.tensor(y[:3])), rows=[5])
    ends = []
    for h in (1e-5, -1e-5):
        Z = X.copy()
        Z[5, 1] += h
        ends.append(X[:3] @ refit_ridge(Z, y, np.ones(12), penalty))
    np.testing.assert_allclose(got[:, 0, 1], (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def test_neither_batches_nor_order_nor_the_user_s_settings_matter_and_the_model_is_as_it_was():
    model = classifier(nn.Dropout(0.5)).train()
    model[1].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    task, train, query = pp.Task(model), data((4,), 9), data((4,), 3, seed=5)
    whole = pp.GradDot().fit(task, train).perturbation(query, rows=[2, 3, 4, 8, 1])
    with torch.no_grad():
        few = pp.GradDot(batch_size=2).fit(task, train).perturbation(query, rows=[1, 2, 3, 4, 8])
    np.testing.assert_allclose(few.sel(train=[2, 3, 4, 8, 1]), whole, rtol=1e-12)
    assert model.training and model[0].training and all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_mapping_s_input_and_a_recurrent_model():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, mask, values):
            return self.last(self.cell(values)[0][:, -1])

    torch.manual_seed(0)
    x, y = data((5, 3))
    train = {"mask": torch.ones(7, 5, dtype=torch.long), "values": x, "labels": y}
    task = pp.Task(Recurrent().double())
    got = pp.GradDot().fit(task, train).perturbation(train, rows=[6])
    assert got.dims == ("query", "train", "axis_0", "axis_1") and got.shape == (7, 1, 5, 3)
    pair = pp.Task(task.model, loss=lambda m, b: nn.functional.cross_entropy(m(None, b[0]), b[1], reduction="none"))
    want = by_moving(pp.GradDot(), pair, (x, y), (x, y), 6)
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-5, atol=1e-8)


def test_what_is_not_finite_is_nan_and_the_others_are_unharmed():
    x, y = data((4,))
    x[3, 0] = torch.inf
    fitted = pp.GradDot().fit(pp.Task(classifier()), (x, y))
    got = fitted.perturbation((x[2:4], y[2:4]), rows=[3, 4])
    assert np.isnan(got[:, 0]).all() and np.isnan(got[1]).all() and np.isfinite(got[0, 1]).all()


@pytest.mark.parametrize(
    ("words", "of"),
    [
        ("pass of='table', the embedding", None),
        ("did you mean 'table'", "tabel"),
        ("called 0 times", "block.norm_first"),
    ],
)
def test_mistakes_are_told(words, of):
    model = Attention().double()
    model.block.norm_first = nn.Identity()
    train = torch.randint(7, (5, 4)), torch.randint(7, (5,))
    with pytest.raises(pp.InputError, match=words):
        pp.GradDot().fit(pp.Task(model), train).perturbation(train, rows=[0], of=of)
    with pytest.raises(pp.InputError, match="of cosines"):
        pp.GradCos().fit(pp.Task(model), train).perturbation(train, rows=[0], of="table")
    with pytest.raises(pp.InputError, match="of cosines"):
        layered = pp.GAS([model.state_dict()], [1.0], by_layer=True)
        layered.fit(pp.Task(model), train).perturbation(train, rows=[0], of="table")
    with pytest.raises(pp.InputError, match="no training example 9"):
        pp.GradDot().fit(pp.Task(model), train).perturbation(train, rows=[9], of="table")
