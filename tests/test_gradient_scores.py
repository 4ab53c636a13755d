"""What a fitted gradient method gives beside the sum: forward mode, scores by layer, shares of positions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import proponent as pp

torch.set_num_threads(1)
N, Q, WORDS, LONG = 9, 4, 11, 6
EXACT = pp.Damping(0.01, "absolute")


class Sentences(nn.Module):
    """Two layers of attention over tokens, 0 the padding, classified by the mean over the others."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(WORDS, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        live = (tokens != 0).to(self.head.weight)[:, :, None]
        h = self.encoder(self.table(tokens), src_key_padding_mask=tokens == 0)
        return self.head((h * live).sum(1) / live.sum(1))


def tagger():
    """A class for each token, from that token alone."""
    return nn.Sequential(nn.Embedding(WORDS, 5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3, bias=False))


def tagging(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).mT, batch[1], reduction="none").sum(1)


def perceptron():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3, bias=False))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


def classes(n, generator):
    return torch.randint(3, (n,), generator=generator)


def data(name, n, seed):
    generator = torch.Generator().manual_seed(seed)
    if name in ("attention", "tagger"):
        tokens = torch.randint(1, WORDS, (n, LONG), generator=generator)
        if name == "tagger":
            return tokens, torch.randint(3, (n, LONG), generator=generator)
        tokens[:, 4:] = torch.where(torch.arange(n)[:, None] % 2 == 0, 0, tokens[:, 4:])
        return tokens, classes(n, generator)
    shape = (6,) if name == "perceptron" else (2, 5, 5)
    return torch.randn(n, *shape, generator=generator).double(), classes(n, generator)


MODELS = {"perceptron": perceptron, "convolutions": convolutions, "attention": Sentences, "tagger": tagger}


def case(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return pp.Task(model, loss=tagging if name == "tagger" else "cross_entropy"), data(name, N, 1), data(name, Q, 2)


def checkpoints(task, several=2):
    return [{k: v + 0.1 * c * v.abs() for k, v in task.net.state_dict().items()} for c in range(several)]


METHODS = {
    "GradDot": lambda task, **k: pp.GradDot(**k),
    "TracIn": lambda task, **k: pp.TracIn(checkpoints(task), learning_rates=[0.1, 0.3], **k),
    "EK-FAC": lambda task, **k: pp.Influence(pp.EKFAC(fisher="empirical"), damping=EXACT, **k),
    "EK-FAC, cut": lambda task, **k: pp.Influence(pp.EKFAC(fisher="empirical"), damping=EXACT, query_rank=1, **k),
    "diagonal": lambda task, **k: pp.Influence(pp.Diagonal(fisher="empirical"), damping=EXACT, **k),
}


def score(method, task, train, query):
    return method.fit(task, train).score(query).dataset.score.values


def close(got, want):
    return got.shape == want.shape and np.abs(got - want).max() <= 1e-10 * np.abs(want).max()


# Forward mode


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ("GradDot", "TracIn"))
def test_forward_mode_gives_the_scores_of_the_factors(name, method):
    task, train, query = case(name)
    want = score(METHODS[method](task), task, train, query)
    for size in (None, 1, 4):
        assert close(score(METHODS[method](task, engine="jvp", batch_size=size), task, train, query), want)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("curvature", ("identity", pp.Diagonal, pp.KFAC, pp.EKFAC, pp.EmpiricalFisher))
def test_influence_in_forward_mode_gives_the_scores_of_the_factors(name, curvature):
    task, train, query = case(name)
    kind = curvature(fisher="empirical") if curvature in (pp.Diagonal, pp.KFAC, pp.EKFAC) else curvature
    spec = pp.Influence(kind() if kind is pp.EmpiricalFisher else kind, damping=EXACT, weight_decay=0.02, shortcut=0)
    want = score(spec, task, train, query)
    for size in (None, 4):
        assert close(score(replace(spec, engine="jvp", batch_size=size), task, train, query), want)


def test_influence_in_forward_mode_takes_no_shortcut():
    task, train, query = case("perceptron")
    spec = pp.Influence(pp.EKFAC(fisher="empirical"), damping=EXACT, shortcut=0.2)
    want, cut = (score(replace(spec, shortcut=s), task, train, query) for s in (0, 0.2))
    assert not close(cut, want)
    forward = replace(spec, engine="jvp").fit(task, train).score(query)
    assert close(forward.dataset.score.values, want)
    assert "shortcut" not in forward.dataset.attrs and json.loads(forward.dataset.attrs["settings"])["shortcut"] == 0


def test_influence_in_forward_mode_may_choose_its_damping_and_be_averaged():
    task, train, query = case("perceptron")
    spec = pp.Influence(pp.EKFAC(fisher="empirical"), shortcut=0)
    want, got = (
        score(pp.Ensemble(replace(spec, engine=e), checkpoints(task)), task, train, query) for e in ("factors", "jvp")
    )
    assert close(got, want)


def test_influence_in_forward_mode_refuses_what_does_not_go_with_it_before_it_looks_at_the_model(monkeypatch):
    task, train, query = case("perceptron")
    with pytest.raises(pp.InputError, match="scores by layer"):
        pp.Influence(engine="jvp").fit(task, train).score(query, by="layer")
    with pytest.raises(pp.InputError, match="lengths of gradients with engine='jvp'"):
        pp.RelatIF(pp.Influence(engine="jvp")).fit(task, train)
    monkeypatch.setattr("proponent.methods.influence_gradients.Capture", None)
    with pytest.raises(pp.InputError, match="query_rank=2 with engine='jvp'; wanted query_rank with engine='factors'"):
        pp.Influence(engine="jvp", query_rank=2).fit(task, train)
    with pytest.raises(pp.InputError, match="engine 'jpv'; wanted one of factors, jvp"):
        pp.Influence(engine="jpv").fit(task, train)


@pytest.mark.parametrize("measurement", ("margin", "entropy"))
def test_forward_mode_follows_the_measurement(measurement):
    task, train, query = case("attention")
    task = pp.Task(task.model, measurement=measurement, parameters=["encoder.*", "table.*"])
    assert close(score(pp.GradDot(engine="jvp"), task, train, query), score(pp.GradDot(), task, train, query))


def test_forward_mode_takes_no_backward_pass_over_the_training_examples(monkeypatch):
    task, train, query = case("convolutions")
    fitted, passes, real = pp.GradDot(engine="jvp", batch_size=2).fit(task, train), [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or real(*a, **k))
    fitted.score(tuple(x[:2] for x in query))
    assert len(passes) == 1


def test_forward_mode_goes_to_disk_and_to_the_strongest_as_the_factors(tmp_path):
    task, train, query = case("perceptron")
    fitted, plain = (pp.GradDot(engine=e, batch_size=2).fit(task, train) for e in ("jvp", "factors"))
    assert close(
        fitted.score(query, out=tmp_path / "a.zarr").dataset.score.values, plain.score(query).dataset.score.values
    )
    assert fitted.top(query, 2)["id"].tolist() == plain.top(query, 2)["id"].tolist()


def test_forward_mode_sets_aside_what_is_not_finite_and_no_more():
    task, train, query = case("perceptron")
    want = score(pp.GradDot(), task, train, query)
    train[0][2, 0], query[0][1, 0] = torch.nan, torch.inf
    with pytest.warns(pp.ProponentWarning):
        got = score(pp.GradDot(engine="jvp", batch_size=4), task, train, query)
    bad = np.zeros_like(want, dtype=bool)
    bad[1], bad[:, 2] = True, True
    assert (np.isnan(got) == bad).all()
    assert close(got[~bad], want[~bad])


def test_forward_mode_sets_aside_losses_that_are_not_finite_though_their_gradient_is():
    task, train, query = case("perceptron")
    shifted = pp.Task(
        task.model, loss=lambda model, b: nn.functional.cross_entropy(model(b[0]), b[1], reduction="none") + b[2]
    )
    train, query = (*train, torch.zeros(N).double()), (*query, torch.zeros(Q).double())
    train[2][3], query[2][0] = torch.inf, torch.inf
    with pytest.warns(pp.ProponentWarning):
        got, want = (score(pp.GradDot(engine=e), shifted, train, query) for e in ("jvp", "factors"))
    assert np.isnan(want[0]).all() and np.isnan(want[:, 3]).all()
    assert (np.isnan(got) == np.isnan(want)).all()


@pytest.mark.parametrize("name", ("attention", "tagger"))
@pytest.mark.parametrize("method", ("GradDot", "TracIn"))
def test_queries_may_come_in_several_parts(name, method, monkeypatch):
    task, train, query = case(name)
    plain, forward = (METHODS[method](task, batch_size=4, engine=e).fit(task, train) for e in ("factors", "jvp"))
    make = (
        lambda: forward.score(query).dataset.score.values,
        lambda: plain.score(query, by="layer").dataset.score_by_layer.values,
        lambda: plain.positions(query, 2).values,
    )
    want = [made() for made in make]
    monkeypatch.setattr("proponent.methods.score.QUERY_MEMORY", 1)
    assert plain.members[0].sizes.queries(vectors=1) == 1
    for made, whole in zip(make, want, strict=True):
        assert close(made(), whole)


class Backward(torch.autograd.Function):
    """A layer without a forward derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return Backward.apply(self.head(x))


def test_a_model_without_a_forward_derivative_is_refused_in_words():
    _, train, query = case("perceptron")
    task = pp.Task(Opaque().double())
    assert np.isfinite(score(pp.GradDot(), task, train, query)).all()
    with pytest.raises(pp.UnsupportedModel, match=r"forward derivatives.*do: leave engine='factors'"):
        score(pp.GradDot(engine="jvp"), task, train, query)


def test_an_unknown_engine_is_refused_with_the_known_ones():
    task, train, _ = case("perceptron")
    with pytest.raises(pp.InputError, match="engine 'jpv'; wanted one of factors, jvp"):
        pp.GradDot(engine="jpv").fit(task, train)


# By layer


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_scores_by_layer_add_up(name, method):
    task, train, query = case(name)
    fitted = METHODS[method](task, batch_size=4).fit(task, train)
    made = fitted.score(query, by="layer").dataset
    assert made.score_by_layer.dims == ("layer", "query", "train")
    assert close(made.score_by_layer.sum("layer").values, made.score.values)
    assert close(made.score.values, fitted.score(query).dataset.score.values)


def test_each_layers_scores_are_those_of_its_parameters_alone(tmp_path):
    task, train, query = case("attention")
    made = pp.GradDot().fit(task, train).score(query, by="layer")
    layers = made.dataset.layer.values.tolist()
    assert layers[0] == "table" and layers[-1] == "head" and len(set(layers)) == len(layers)
    for layer in layers:
        name = layer if layer in task.selected() else f"{layer}.*"
        want = score(pp.GradDot(), pp.Task(task.model, parameters=name), train, query)
        if "self_attn" not in layer:  # whose inner projection is inside
            assert close(made.dataset.score_by_layer.sel(layer=layer).values, want), layer
    made.save(tmp_path / "a.zarr")
    again = pp.Attribution.load(tmp_path / "a.zarr").dataset
    assert again.layer.values.tolist() == layers
    assert close(again.score_by_layer.values, made.dataset.score_by_layer.values)


def test_a_model_of_one_layer_is_named_by_its_class():
    _, train, query = case("perceptron")
    made = pp.GradDot().fit(pp.Task(nn.Linear(6, 3).double()), train).score(query, by="layer")
    assert made.dataset.layer.values.tolist() == ["Linear"]


def test_scores_by_layer_are_refused_in_words(tmp_path, monkeypatch):
    task, train, query = case("perceptron")
    fitted = pp.GradDot().fit(task, train)
    with pytest.raises(pp.InputError, match="in memory"):
        fitted.score(query, out=tmp_path / "a.zarr", by="layer")
    with pytest.raises(pp.InputError, match="by='layer'"):
        fitted.score(query, by="token")
    with pytest.raises(pp.InputError, match="cosines"):
        pp.GradCos().fit(task, train).score(query, by="layer")
    with pytest.raises(pp.InputError, match="engine='factors'"):
        pp.GradDot(engine="jvp").fit(task, train).score(query, by="layer")
    monkeypatch.setattr("proponent.store.matrix.MEMORY_LIMIT", 8 * N * Q * 3)
    fitted.score(query)
    with pytest.raises(pp.InputError, match="4 variables"):
        fitted.score(query, by="layer")


# By position


@pytest.mark.parametrize("name", ("attention", "tagger"))
@pytest.mark.parametrize("method", METHODS)
def test_positions_and_what_has_none_add_up_to_the_score(name, method):
    task, train, query = case(name)
    fitted = METHODS[method](task).fit(task, train)
    want = fitted.score(query).dataset.score
    for i in (0, 5):
        made = fitted.positions(query, i)
        assert made.dims == ("query", "position") and made.shape == (Q, LONG)
        assert close((made.sum("position") + made.without_position).values, want.sel(train=i).values)
        assert np.abs(made.values).max() > 1e-3 * np.abs(want.values).max()


def test_padding_has_no_share():
    task, train, query = case("attention")
    assert (train[0][0, 4:] == 0).all() and (train[0][1] != 0).all()
    fitted = pp.GradDot().fit(task, train)
    assert (fitted.positions(query, 0).values[:, 4:] == 0).all()
    assert (fitted.positions(query, 1).values != 0).all()


def test_where_no_position_looks_at_another_its_share_is_that_of_its_own_loss():
    task, (tokens, tags), query = case("tagger")
    made = pp.GradDot().fit(task, (tokens, tags)).positions(query, 3)
    alone = tokens[3][:, None], tags[3][:, None]
    assert close(made.values, score(pp.GradDot(), task, alone, query))
    assert (made.without_position == 0).all()


def test_positions_are_refused_in_words():
    task, train, query = case("perceptron")
    with pytest.raises(pp.InputError, match="without positions"):
        pp.GradDot().fit(task, train).positions(query, 0)
    with pytest.raises(pp.InputError, match="no training example 99"):
        pp.GradDot().fit(task, train).positions(query, 99)
    with pytest.raises(pp.InputError, match="cosines"):
        pp.GradCos().fit(task, train).positions(query, 0)
