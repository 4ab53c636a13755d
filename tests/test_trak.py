"""TRAK against its formula, written out with dense gradients one at a time."""

import numpy as np
import pytest
import torch
from torch import nn

import proponent as pp
from proponent.curvature.ridge import Ridge, gram_of
from truth.gradients import gradients

torch.set_num_threads(1)
N, Q, WIDE = 23, 4, 5


def model(seed, width=WIDE):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)).double()


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator).double(), torch.randint(3, (n,), generator=generator)


TRAIN, QUERY = data(N, 1), data(Q, 2)


def margin(net, x, y):
    p = net(x[None]).softmax(-1)[0, y]
    return (p / (1 - p)).log()


def margins(net, examples):
    return gradients(net, [lambda x=x, y=y: margin(net, x, y) for x, y in zip(*examples, strict=True)])


def by_hand(nets, train, query, ridge):
    """The formula of Park et al. with dense matrices and explicit inverses, gradients not projected."""
    scores, doubt, leverage = [], [], []
    for net in nets:
        train_rows, query_rows = margins(net, train), margins(net, query)
        lam = ridge * float(train_rows.square().sum(1).mean())
        inverse = torch.linalg.inv(train_rows.T @ train_rows + lam * torch.eye(train_rows.shape[1]).double())
        scores.append(query_rows @ inverse @ train_rows.T)
        leverage.append((train_rows @ inverse * train_rows).sum(1))
        p = net(train[0]).softmax(-1)[range(len(train[1])), train[1]]
        doubt.append(1 - p.detach())
    mean = [torch.stack(x).mean(0) for x in (scores, doubt, leverage)]
    return (mean[0] * mean[1]).numpy(), (mean[2] * mean[1]).numpy()


def close(got, want):
    return got.shape == want.shape and np.abs(got - want).max() <= 1e-9 * np.abs(want).max()


@pytest.mark.parametrize("models", (1, 3))
@pytest.mark.parametrize("batch", (None, 1, 7))
@pytest.mark.parametrize("ridge", (0.1, 1.0))
def test_unprojected_scores_are_those_of_the_formula(models, batch, ridge):
    nets = [model(seed) for seed in range(models)]
    fitted = pp.TRAK(projection=None, ridge=ridge, batch_size=batch).fit([pp.Task(net) for net in nets], TRAIN)
    scores, selfs = by_hand(nets, TRAIN, QUERY, ridge)
    assert close(fitted.score(QUERY).dataset.score.values, scores)
    assert close(fitted.self_influence().dataset.value.values, selfs)


@pytest.mark.filterwarnings("ignore:gradients projected to:proponent.errors.ProponentWarning")
@pytest.mark.parametrize("width", (1, WIDE))
def test_both_gram_matrices_give_the_formula(width, monkeypatch):
    """Sides that are not cut keep gradients as they are: with p < n through (k, k), with p > n through (n, n)."""
    net = model(0, width)
    p = sum(x.numel() for x in net.parameters())
    assert (p < N) == (width == 1)
    scores, selfs = by_hand([net], TRAIN, QUERY, 0.3)
    spec = pp.TRAK(projection="kronecker", dimension=10_000, ridge=0.3, batch_size=4)
    fitted = spec.fit(pp.Task(net), TRAIN)
    assert type(fitted.models[0]).__name__ == ("OverFeatures" if width == 1 else "OverExamples")
    assert close(fitted.score(QUERY).dataset.score.values, scores)
    assert close(fitted.self_influence().dataset.value.values, selfs)
    monkeypatch.setattr("proponent.methods.trak.MEMORY_LIMIT", 0)  # features are taken again where they are wanted
    again = spec.fit(pp.Task(net), TRAIN)
    assert type(again.models[0]).__name__ == "OverFeatures" and again.models[0].kept is None
    assert close(again.score(QUERY).dataset.score.values, scores)
    assert close(again.self_influence().dataset.value.values, selfs)


@pytest.mark.parametrize("projection", ("gaussian", "rademacher", "sjlt", "fjlt"))
def test_projections_come_closer_to_the_formula_with_more_numbers(projection):
    net = model(0)
    want, _ = by_hand([net], TRAIN, QUERY, 0.5)

    def error(k):
        made = [
            pp.TRAK(projection=projection, dimension=k, ridge=0.5, seed=s).fit(pp.Task(net), TRAIN).score(QUERY)
            for s in range(3)
        ]
        return np.mean([np.linalg.norm(m.dataset.score.values - want) for m in made]) / np.linalg.norm(want)

    with pytest.warns(pp.ProponentWarning, match="more directions"):
        few = error(8)
    assert error(4096) < 0.15 < few


def test_the_same_seed_gives_the_same_bits_and_each_model_another_projection():
    tasks = [pp.Task(model(0)), pp.Task(model(0))]
    spec = pp.TRAK(projection="sjlt", dimension=400)
    one, two = (spec.fit(tasks, TRAIN).score(QUERY).dataset.score.values for _ in range(2))
    assert (one == two).all()
    parts = [
        pp.TRAK(projection="sjlt", dimension=400, seed=s).fit(tasks[0], TRAIN).score(QUERY).dataset.score.values
        for s in (0, 1)
    ]
    assert np.abs(parts[0] - parts[1]).max() > 1e-3 * np.abs(parts[0]).max()
    assert close(one, (parts[0] + parts[1]) / 2)


def test_the_ridge_is_relative_to_gradients_and_not_to_how_many_there_are():
    net = model(0)
    task = pp.Task(net)
    mean = float(margins(net, TRAIN).square().sum(1).mean())
    relative, absolute = (
        pp.TRAK(projection=None, ridge=r).fit(task, TRAIN).score(QUERY).dataset.score.values
        for r in (0.2, pp.Damping(0.2 * mean, "absolute"))
    )
    assert close(relative, absolute)
    default, given = (
        pp.TRAK(projection=None, ridge=r).fit(task, TRAIN).score(QUERY).dataset.score.values for r in ("auto", 1)
    )
    assert close(default, given)


def test_ridge_solves_and_counts_its_directions():
    gram = torch.diag(torch.tensor([4.0, 1.0]).double())
    ridge = Ridge.of(gram.clone(), 1.0)
    assert torch.allclose(ridge.solve(torch.eye(2).double()), torch.diag(torch.tensor([0.2, 0.5]).double()))
    assert np.isclose(ridge.effective_dimension(0), 0.8 + 0.5)


def test_the_effective_dimension_is_estimated_where_it_is_not_counted():
    torch.manual_seed(0)
    rows = torch.randn(700, 40).double()
    gram = gram_of(rows)
    assert torch.allclose(gram, rows @ rows.T)
    values = torch.linalg.eigvalsh(gram)
    want = float((values / (values + 30.0)).sum())
    assert np.isclose(Ridge.of(gram, 30.0).effective_dimension(0), want, rtol=0.02)


@pytest.mark.filterwarnings("ignore::proponent.errors.ProponentWarning")
@pytest.mark.parametrize("projection", (None, "sjlt"))
def test_what_is_not_finite_is_set_aside_and_no_more(projection):
    kept = [i for i in range(N) if i != 3]
    x, y = TRAIN[0].clone(), TRAIN[1]
    x[3, 0] = torch.nan
    qx = QUERY[0].clone()
    qx[1, 2] = torch.inf
    for k in (1000, 20):
        spec = pp.TRAK(projection=projection, dimension=k, ridge=0.3)
        task = pp.Task(model(0))
        want = spec.fit(task, (TRAIN[0][kept], y[kept]))
        scores, selfs = want.score(QUERY).dataset.score.values, want.self_influence().dataset.value.values
        fitted = spec.fit(task, (x, y))
        with pytest.warns(pp.ProponentWarning, match="not finite"):
            got = fitted.score((qx, QUERY[1]))
        with pytest.warns(pp.ProponentWarning, match="not finite"):
            own = fitted.self_influence().dataset.value.values
        value = got.dataset.score.values
        assert got.dataset.attrs["set_aside_train"] == "[3]" and got.dataset.attrs["set_aside_query"] == "[1]"
        assert np.isnan(value[1]).all() and np.isnan(value[:, 3]).all()
        live = [0, 2, 3]
        assert close(value[live][:, kept], scores[live])
        assert np.isnan(own[3]) and close(own[kept], selfs)


@pytest.mark.parametrize("models", (1, 2))
def test_streamed_scores_are_those_in_memory(models, tmp_path, monkeypatch):
    tasks = [pp.Task(model(seed)) for seed in range(models)]
    fitted = pp.TRAK(projection="sjlt", dimension=300, batch_size=5).fit(tasks, TRAIN)
    want = fitted.score(QUERY).dataset.score.values
    monkeypatch.setattr("proponent.methods.trak.QUERIES", 700)  # queries in several chunks
    assert close(fitted.score(QUERY).dataset.score.values, want)
    made = fitted.score(QUERY, out=tmp_path / "a.zarr")
    assert close(made.dataset.score.values, want)
    assert "effective_dimension" in made.dataset.attrs
    assert made.unit == fitted.score(QUERY).unit and "ranking" in made.unit


class Sequence(nn.Module):
    """A class for each of several positions."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, tokens):
        return self.head(torch.tanh(self.table(tokens)))


def test_a_sequence_has_the_sum_of_its_tokens_margins_and_their_mean_doubt():
    torch.manual_seed(0)
    net = Sequence().double()
    tokens = torch.randint(7, (6, 5))
    tokens_of = [(net, t) for t in tokens]

    def p(net, t):
        return net(t[None, :-1])[0].softmax(-1)[range(4), t[1:]]

    rows = gradients(net, [lambda n=n, t=t: (p(n, t) / (1 - p(n, t))).log().sum() for n, t in tokens_of])
    lam = float(rows.square().sum(1).mean())
    inverse = torch.linalg.inv(rows.T @ rows + lam * torch.eye(rows.shape[1]).double())
    doubt = torch.stack([1 - p(net, t).mean() for t in tokens]).detach()
    want = (rows @ inverse @ rows.T * doubt).numpy()
    for reduction in (None, "sjlt"):
        spec = pp.TRAK(projection=reduction, dimension=20_000)
        got = spec.fit(pp.Task(net, loss="causal_lm"), (tokens, tokens)).score((tokens, tokens))
        error = np.abs(got.dataset.score.values - want).max() / np.abs(want).max()
        assert error < (1e-9 if reduction is None else 0.1)


def test_binary_margins_are_those_of_the_target():
    torch.manual_seed(0)
    net, x = nn.Linear(6, 1).double(), torch.randn(8, 6).double()
    y = (torch.arange(8) % 2).double()
    sign = (2 * y - 1)[:, None]
    rows = torch.cat([x, torch.ones(8, 1).double()], 1) * sign
    lam = float(rows.square().sum(1).mean())
    inverse = torch.linalg.inv(rows.T @ rows + lam * torch.eye(7).double())
    doubt = (-sign * net(x)).sigmoid()[:, 0].detach()
    got = pp.TRAK().fit(pp.Task(net, loss="binary_cross_entropy"), (x, y[:, None])).score((x, y[:, None]))
    assert close(got.dataset.score.values, (rows @ inverse @ rows.T * doubt).numpy())


def test_what_has_no_margin_is_refused_in_words():
    def loss(net, batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")

    with pytest.raises(pp.InputError, match="'margin' of a loss that is a function"):
        pp.TRAK().fit(pp.Task(model(0), loss=loss), TRAIN)
    with pytest.raises(pp.InputError, match="predicts no classes"):
        pp.TRAK().fit(pp.Task(nn.Linear(6, 1).double(), loss="squared_error"), (TRAIN[0], TRAIN[0][:, :1]))


def test_settings_are_refused_in_words(monkeypatch):
    with pytest.raises(pp.InputError, match="ridge of zero"):
        pp.TRAK(ridge=0)
    with pytest.raises(pp.InputError, match="'auto', a number or a Damping"):
        pp.TRAK(ridge="large")
    with pytest.raises(pp.InputError, match="dimension=0"):
        pp.TRAK(dimension=0)
    with pytest.raises(pp.InputError, match="no task"):
        pp.TRAK().fit([], TRAIN)
    monkeypatch.setattr("proponent.methods.trak.MEMORY_LIMIT", 4 * N * N)
    with pytest.raises(pp.InputError, match="23 training examples and 1 models without a projection"):
        pp.TRAK(projection=None).fit(pp.Task(model(0)), TRAIN)
    auto = pp.TRAK().fit(pp.Task(model(0)), TRAIN)
    assert auto.models[0].dimension == 4096


def test_auto_does_without_a_projection_where_that_is_cheap():
    assert pp.TRAK().fit(pp.Task(model(0)), TRAIN).models[0].dimension is None


def test_probability_is_a_measurement():
    net = model(0)
    got = pp.Task(net, measurement="probability").measurements(QUERY).detach()
    assert torch.allclose(got, net(QUERY[0]).softmax(-1)[range(Q), QUERY[1]].detach())
    got = pp.Task(net, loss="binary_cross_entropy", measurement="probability").measurements(
        (QUERY[0], torch.ones(Q, 3).double())
    )
    assert torch.allclose(got, net(QUERY[0]).sigmoid().mean(1))
