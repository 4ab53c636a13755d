"""Means over models, relative influence and gradients of unit length, against dense gradients one at a time."""

import numpy as np
import pytest
import torch
from torch import nn

import proponent as pp
from proponent.methods.ensemble import FittedEnsemble
from truth.gradients import gradients

torch.set_num_threads(1)
N, Q, M = 11, 4, 3
DAMPING = pp.Damping(0.05, "absolute")


def model(seed, wide=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, wide), nn.ReLU(), nn.Linear(wide, 3)).double()


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator).double(), torch.randint(3, (n,), generator=generator)


TRAIN, QUERY = data(N, 1), data(Q, 2)


def loss_gradients(net, examples):
    return gradients(
        net,
        [lambda x=x, y=y: nn.functional.cross_entropy(net(x[None]), y[None]) for x, y in zip(*examples, strict=True)],
    )


def close(got, want):
    return got.shape == want.shape and np.abs(got - want).max() <= 1e-9 * np.abs(want).max()


SPECS = {
    "GradDot": pp.GradDot(),
    "GradCos": pp.GradCos(),
    "Influence": pp.Influence(pp.EKFAC(fisher="exact"), damping=DAMPING),
    "RelatIF": pp.RelatIF(pp.Influence(pp.KFAC(fisher="exact"), damping=DAMPING)),
    "TRAK": pp.TRAK(),
    "RepresenterPoints": pp.RepresenterPoints(),
}


@pytest.mark.parametrize("name", SPECS)
def test_an_ensemble_is_the_mean_of_its_models(name, tmp_path):
    spec, tasks = SPECS[name], [pp.Task(model(seed, 5 + seed)) for seed in range(M)]
    each = [spec.fit(task, TRAIN) for task in tasks]
    want = sum(f.score(QUERY).dataset.score.values for f in each) / M
    selfs = sum(f.self_influence().dataset.value.values for f in each) / M
    fitted = pp.Ensemble(spec).fit(tasks, TRAIN)
    made = fitted.score(QUERY)
    assert close(made.dataset.score.values, want)
    assert made.method.endswith("mean of 3 models") and made.unit == each[0].score(QUERY).unit
    assert close(fitted.self_influence().dataset.value.values, selfs)


@pytest.mark.parametrize("name", ("GradDot", "Influence"))
def test_an_ensemble_of_gradients_streams_and_ranks(name, tmp_path, monkeypatch):
    tasks = [pp.Task(model(seed, 5 + seed)) for seed in range(M)]
    fitted = pp.Ensemble(SPECS[name]).fit(tasks, TRAIN)
    whole = fitted.score(QUERY)
    monkeypatch.setattr("proponent.methods.fitted_gradients.SUMS", N)  # a query at a time
    top = fitted.top(QUERY, 2)
    for q in range(Q):
        for side, table in (("proponent", whole.proponents(q, 2)), ("opponent", whole.opponents(q, 2))):
            rows = top[(top["query"] == q) & (top["side"] == side)]
            assert rows["id"].tolist() == table["id"].tolist()
            np.testing.assert_allclose(rows["score"], table["score"])
    monkeypatch.setattr(
        "proponent.methods.score.QUERY_MEMORY", 4 * 80
    )  # queries in parts, of another number for each model
    assert len({m.sizes.queries(0) for m in fitted.members}) > 1 or name == "Influence"
    assert close(fitted.score(QUERY).dataset.score.values, whole.dataset.score.values)
    assert close(fitted.score(QUERY, out=tmp_path / "a.zarr").dataset.score.values, whole.dataset.score.values)
    layers = fitted.score(QUERY, by="layer").dataset.score_by_layer
    assert close(layers.sum("layer").values, whole.dataset.score.values)


@pytest.mark.parametrize("name", ("Influence", "TRAK"))
def test_in_a_balanced_ensemble_models_count_alike(name):
    spec, tasks = SPECS[name], [pp.Task(model(seed, 5 + seed)) for seed in range(M)]
    fitted = pp.Ensemble(spec, balanced=True).fit(tasks, TRAIN)
    each = [spec.fit(task, TRAIN) for task in tasks]

    def balanced(parts):
        sizes = [p.std(-1, keepdims=True) for p in parts]
        return sum(p / s for p, s in zip(parts, sizes, strict=True)) / M * (sum(sizes) / M)

    made = fitted.score(QUERY)
    assert close(made.dataset.score.values, balanced([f.score(QUERY).dataset.score.values for f in each]))
    assert made.method.endswith("balanced mean of 3 models") and made.unit == each[0].score(QUERY).unit
    selfs = balanced([f.self_influence().dataset.value.values for f in each])
    assert close(fitted.self_influence().dataset.value.values, selfs)


@pytest.mark.parametrize("balanced", [False, True])
def test_perturbations_of_an_ensemble_are_means_with_its_shares(balanced):
    spec, tasks = SPECS["GradDot"], [pp.Task(model(seed, 5 + seed)) for seed in range(M)]
    each = [spec.fit(task, TRAIN) for task in tasks]
    sizes = np.array([f.score(QUERY).dataset.score.values.std(1) for f in each])  # (models, q)
    shares = sizes.mean(0) / sizes if balanced else np.ones_like(sizes)
    parts = np.array([f.perturbation(QUERY, [2, 5]).values for f in each])
    made = FittedEnsemble(each, balanced).perturbation(QUERY, [2, 5])
    assert made.dims == ("query", "train", "feature")
    assert close(made.values, (shares[:, :, None, None] * parts).mean(0))


def test_a_query_that_a_model_does_not_feel_takes_nothing_from_the_others():
    class Fixed:
        def __init__(self, scores):
            self.scores = np.asarray(scores, float)

        def score(self, query):
            return pp.Attribution.of(self.scores, query=range(2), train=range(3), method="Fixed")

    models = [Fixed([[0.0, 0, 0], [1, 2, 3]]), Fixed([[1.0, 3, 2], [2, 4, 6]])]
    made = FittedEnsemble(models, balanced=True).score(QUERY).dataset.score.values
    assert np.allclose(made, [[0.25, 0.75, 0.5], [1.5, 3.0, 4.5]])


def test_checkpoints_of_one_task_are_an_ensemble(tmp_path):
    nets = [model(seed) for seed in range(2)]
    torch.save(nets[1].state_dict(), tmp_path / "second.pt")
    own = model(9)
    before = own.state_dict()["0.weight"].clone()
    want = pp.Ensemble(pp.GradDot()).fit([pp.Task(net) for net in nets], TRAIN).score(QUERY)
    got = (
        pp.Ensemble(pp.GradDot(), [nets[0].state_dict(), tmp_path / "second.pt"]).fit(pp.Task(own), TRAIN).score(QUERY)
    )
    assert close(got.dataset.score.values, want.dataset.score.values)
    assert torch.equal(own.state_dict()["0.weight"], before)


def test_ensembles_without_models_are_refused_in_words():
    with pytest.raises(pp.InputError, match="no model"):
        pp.Ensemble(pp.GradDot()).fit([], TRAIN)
    with pytest.raises(pp.InputError, match="several tasks and checkpoints"):
        pp.Ensemble(pp.GradDot(), [{}]).fit([pp.Task(model(0))], TRAIN)
    with pytest.raises(pp.InputError, match="does not fit the model"):
        pp.Ensemble(pp.GradDot(), [model(0, 6).state_dict()]).fit(pp.Task(model(0)), TRAIN)


# Relative influence. The diagonal Fisher is known in full, so that H⁻¹ is written out.


@pytest.mark.parametrize("over", ("parameters", "loss", "gradient"))
@pytest.mark.parametrize("batch", (None, 3))
def test_relative_influence_is_influence_over_the_length(over, batch):
    net = model(0)
    g, q = loss_gradients(net, TRAIN), loss_gradients(net, QUERY)
    inverse = 1 / (g.square().mean(0) + 0.05)
    lengths = {
        "parameters": (g * inverse).norm(dim=1),
        "loss": (g.square() @ inverse).sqrt(),
        "gradient": g.norm(dim=1),
    }
    want = ((q * inverse) @ g.T / N / lengths[over]).numpy()
    selfs = (g.square() @ inverse / N / lengths[over]).numpy()
    spec = pp.Influence(pp.Diagonal(fisher="empirical"), damping=DAMPING, batch_size=batch)
    fitted = pp.RelatIF(spec, over=over).fit(pp.Task(net), TRAIN)
    made = fitted.score(QUERY)
    assert close(made.dataset.score.values, want)
    assert close(fitted.self_influence().dataset.value.values, selfs)
    assert over in made.unit and "ranking" in made.unit
    with pytest.raises(pp.InputError, match="scores by layer of cosines"):
        fitted.score(QUERY, by="layer")


@pytest.mark.parametrize("over", ("parameters", "loss"))
def test_relative_influence_in_an_eigenbasis(over):
    """‖H⁻¹g‖² and gᵀH⁻¹g from scores among the training examples: both are quadratic forms of what EK-FAC gives."""
    task = pp.Task(model(0))
    spec = pp.Influence(pp.EKFAC(fisher="exact"), damping=DAMPING, shortcut=0)
    plain = spec.fit(task, TRAIN)
    ratio = (
        plain.score(QUERY).dataset.score.values
        / pp.RelatIF(spec, over).fit(task, TRAIN).score(QUERY).dataset.score.values
    )
    assert np.ptp(ratio, axis=0).max() <= 1e-9 * ratio.max()
    metric, g = plain.members[0].metric, loss_gradients(task.net, TRAIN)
    if over == "loss":
        want = np.sqrt(N * plain.self_influence().dataset.value.values)
    else:
        rows = []
        for name, basis in metric.spectrum.bases.items():
            width, height = basis.inputs.shape[0], basis.outputs.shape[0]
            start = 0 if name == "0" else 5 * 5
            part = g[:, start : start + width * height]
            weight, bias = part[:, : (width - 1) * height].view(N, height, -1), part[:, (width - 1) * height :]
            G = torch.cat([weight, bias[:, :, None]], 2)
            rows.append((basis.outputs.T @ G @ basis.inputs * metric.inverse[name][0]).flatten(1))
        want = torch.cat(rows, 1).norm(dim=1).numpy()
    np.testing.assert_allclose(ratio[0], want, rtol=1e-8)


@pytest.mark.parametrize("solver", ("explicit", "cg", "dual"))
@pytest.mark.parametrize("over", ("parameters", "loss"))
def test_relative_influence_of_all_parameters_together(solver, over):
    net = model(0)
    g, q = loss_gradients(net, TRAIN), loss_gradients(net, QUERY)
    inverse = torch.linalg.inv(g.T @ g / N + 0.05 * torch.eye(g.shape[1]).double())
    lengths = {"parameters": (g @ inverse).norm(dim=1), "loss": (g @ inverse * g).sum(1).sqrt()}[over]
    spec = pp.Influence(
        "empirical_fisher", solver=pp.CG(tolerance=1e-11) if solver == "cg" else solver, damping=DAMPING
    )
    got = pp.RelatIF(spec, over).fit(pp.Task(net), TRAIN).score(QUERY).dataset.score.values
    np.testing.assert_allclose(got, (q @ inverse @ g.T / N / lengths).numpy(), rtol=1e-7, atol=1e-10)


def test_gradient_products_over_the_gradient_are_projections():
    net = model(0)
    g, q = loss_gradients(net, TRAIN), loss_gradients(net, QUERY)
    got = pp.RelatIF(pp.GradDot(), over="gradient").fit(pp.Task(net), TRAIN).score(QUERY).dataset.score.values
    assert close(got, (q @ (g / g.norm(dim=1, keepdim=True)).T).numpy())


def test_relative_influence_is_refused_in_words():
    with pytest.raises(pp.InputError, match="did you mean 'parameters'"):
        pp.RelatIF(over="parameter")
    with pytest.raises(pp.InputError, match="lengths of gradients with engine='jvp'"):
        pp.RelatIF(pp.GradDot(engine="jvp")).fit(pp.Task(model(0)), TRAIN)
    for spec in (pp.GradCos(), pp.TRAK()):
        with pytest.raises(pp.UnsupportedModel, match="relative scores of"):
            pp.RelatIF(spec).fit(pp.Task(model(0)), TRAIN)


# Unit lengths


def states():
    return [model(seed).state_dict() for seed in range(2)]


@pytest.mark.parametrize("by_layer", (False, True))
@pytest.mark.parametrize("batch", (None, 2))
def test_gas_adds_up_cosines(by_layer, batch):
    want = np.zeros((Q, N))
    for rate, state in zip((0.1, 0.4), states(), strict=True):
        net = model(0)
        net.load_state_dict(state)
        sizes = [25, 18] if by_layer else [43]  # the first layer's parameters, and the second's
        parts = zip(loss_gradients(net, QUERY).split(sizes, 1), loss_gradients(net, TRAIN).split(sizes, 1), strict=True)
        for q, g in parts:
            want += rate * (nn.functional.normalize(q) @ nn.functional.normalize(g).T).numpy()
    fitted = pp.GAS(states(), [0.1, 0.4], by_layer, batch).fit(pp.Task(model(0)), TRAIN)
    made = fitted.score(QUERY)
    assert close(made.dataset.score.values, want)
    assert made.method == ("GAS-L" if by_layer else "GAS") and "ranking" in made.unit


def test_a_layer_without_gradient_has_no_share():
    net = model(0)
    with torch.no_grad():
        net[0].bias.fill_(-100)  # no unit is ever active
    state = [net.state_dict()]
    made = pp.GAS(state, 1.0, by_layer=True).fit(pp.Task(net), TRAIN).score(QUERY).dataset.score.values
    plain = pp.GAS(state, 1.0).fit(pp.Task(net), TRAIN).score(QUERY).dataset.score.values
    assert np.isfinite(made).all() and close(made, plain)
