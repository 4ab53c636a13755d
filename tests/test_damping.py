"""Damping that chooses itself."""

import json

import numpy as np
import pytest
import torch

import proponent as pp
from proponent.capture.gradients import Capture
from proponent.curvature.gram import DualMetric, DualPath, solve
from proponent.errors import InputError
from proponent.methods.damping_choice import _cautious, agreements
from proponent.methods.score import prepare, stream, totals
from proponent.retrain.subsets import halves
from proponent.rows import Rows
from test_solvers import data, dense, losses_of, net
from truth.gradients import gradients

PLANTED = 0.2


def planted(model, train, query, noise=0.0):
    """A ledger whose measurements are sums of the dense scores with a damping of PLANTED."""
    A = dense(model, train, "ggn")
    A = A + PLANTED * torch.eye(len(A), dtype=torch.float64)
    g, psi = gradients(model, losses_of(model, train)), gradients(model, losses_of(model, query))
    scores = (psi @ torch.linalg.solve(A, g.T)).numpy() / len(g)
    included = halves(60, seed=3)(len(g)).included
    measured = included @ scores.T
    measured += noise * np.random.default_rng(0).normal(size=measured.shape) * measured.std()
    return pp.Ledger.of(included, measured, train=range(len(g)), query=range(len(psi)))


@pytest.mark.parametrize("solver", ["dual", "explicit"])
def test_the_planted_damping_is_found(solver, tmp_path):
    model, (train, query) = net(), data(q=12)
    auto = pp.AutoDamping(ledger=planted(model, train, query, noise=0.1), queries=query)
    fitted = pp.Influence(curvature="ggn", solver=solver, damping=auto).fit(pp.Task(model), train)
    choice = json.loads(fitted.score(query).dataset.attrs["damping_choice"])
    absolute = choice["value"] * float(dense(model, train, "ggn").trace())
    assert PLANTED / 2 < absolute < PLANTED * 2
    assert choice["scale"] == "trace" and "without 50%" in choice["reason"]
    curve = choice["agreement"]
    assert max(curve) > 0.95 and max(curve[0], curve[-1]) < max(curve) - 0.003
    stored = fitted.score(query, out=tmp_path / "scores.zarr")
    assert json.loads(stored.dataset.attrs["damping_choice"]) == choice
    assert choice["tried"] == sorted(choice["tried"]) and len(curve) == len(choice["tried"]) == 17


def test_layers_choose_on_their_own_scale():
    model, (train, query) = net(), data(q=12)
    auto = pp.AutoDamping(ledger=planted(model, train, query), queries=query)
    scores = pp.Influence(curvature=pp.EKFAC(fisher="exact"), damping=auto).fit(pp.Task(model), train).score(query)
    choice = json.loads(scores.dataset.attrs["damping_choice"])
    assert choice["scale"] == "mean" and max(choice["agreement"]) > 0.6


def test_a_recipe_makes_the_ledger():
    model, (train, query) = net(), data(n=30)
    recipe = pp.TorchRecipe(net, epochs=2, batch_size=8, optimizer=pp.SGD(lr=0.1))
    auto = pp.AutoDamping(recipe=recipe, queries=query, subsets=8)
    scores = pp.Influence(damping=auto).fit(pp.Task(model), train).score(query)
    assert "8 models retrained" in json.loads(scores.dataset.attrs["damping_choice"])["reason"]


def test_the_run_and_the_spectrum_are_the_next_best():
    model, (train, query) = net(), data()
    run = pp.AutoDamping(rate=0.1, steps=200, momentum=0.9)
    for spec, value, scale in [
        (pp.Influence(damping=run), 0.005, "absolute"),
        (pp.Influence(), 0.1, "mean"),
        (pp.Influence(curvature="ggn"), 1e-3, "trace"),
    ]:
        scores = spec.fit(pp.Task(model), train).score(query)
        choice = json.loads(scores.dataset.attrs["damping_choice"])
        assert choice["value"] == pytest.approx(value) and choice["scale"] == scale and choice["reason"].endswith(".")
    given = pp.Influence(curvature="ggn", damping=run).fit(pp.Task(model), train).score(query)
    same = pp.Influence(curvature="ggn", damping=0.005).fit(pp.Task(model), train).score(query)
    np.testing.assert_allclose(given.dataset.score, same.dataset.score, rtol=1e-10)
    assert "damping_choice" not in same.dataset.attrs


def test_agreement_is_the_rank_correlation():
    exact = np.random.default_rng(0).normal(size=(20, 3))
    assert agreements(exact, np.exp(exact)) == pytest.approx(np.ones(3))
    assert agreements(-exact, exact) == pytest.approx(-np.ones(3))
    flat = exact.copy()
    flat[:, 0] = 1.0
    assert agreements(exact, flat) == pytest.approx([0, 1, 1])  # a query that does not vary says nothing


def test_a_flat_curve_leaves_the_usual_damping():
    level, apart = np.linspace(0.1, 0.5, 40), 0.05 * (-1.0) ** np.arange(40)  # a standard error of .008
    found = {1e-3: level, 1e-2: level - 0.003 + apart, 0.1: level - 0.003 + apart, 1.0: level - 0.2 + apart}
    assert _cautious(1e-3, 0.1, found) == 0.1
    assert _cautious(1e-3, 1.0, found) == 0.1  # 1.0 itself is worse for certain
    assert _cautious(1e-3, 1e-3, found) == 1e-3


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_sums_on_the_path_are_sums_of_scores_at_each_damping(precision):
    model, (train, query) = net().to(precision), data(n=30, q=4)
    train, query = ((x.to(precision), y) for x, y in (train, query))
    train[0][7] = torch.nan
    task, rows = pp.Task(model), Rows.of(train)
    capture = Capture.of(task, rows)
    problem = pp.GGN().problem(capture, rows, 8)
    kept, dampings = problem.longest(50), [1e-3, 0.1, 3.0]
    included = torch.from_numpy(halves(7, seed=1)(30).included.astype(np.float64))
    got = totals(capture, DualPath(kept, dampings), Rows.of(query), rows, 8, included).reshape(3, 4, 7)
    for damping, one in zip(dampings, got, strict=True):
        prepared = prepare(capture, DualMetric(kept, damping), Rows.of(query), 8)
        scores = torch.cat([s.clone() for _, s in stream(capture, prepared, rows, rows.parts(8), 1.0)], 1)
        assert bool(scores[:, 7].isnan().all())
        want = torch.nan_to_num(scores).double() @ included.T
        close = 1e-9 if precision == torch.float64 else 1e-3
        assert (one - want).abs().max() <= close * want.abs().max()


@pytest.mark.parametrize("shift", [1.0, 1e-6, 1e-13])
def test_a_factor_in_single_precision_is_refined_or_left(shift):
    made = torch.Generator().manual_seed(0)
    root = torch.randn(40, 20, generator=made, dtype=torch.float64)  # of rank 20: the shift alone holds the rest
    rhs = torch.randn(40, 3, generator=made, dtype=torch.float64)
    x = solve(root @ root.T, shift, rhs)
    exact = torch.linalg.solve(root @ root.T + shift * torch.eye(40), rhs)
    assert (x - exact).norm() <= (1e-7 if shift > 1e-9 else 0.1) * exact.norm()


def test_a_ledger_of_other_data_is_refused():
    model, (train, query) = net(), data()
    ledger = planted(model, train, query)
    with pytest.raises(InputError, match="of 24 training examples and 5 queries"):
        pp.Influence(damping=pp.AutoDamping(ledger=ledger, queries=query)).fit(
            pp.Task(model), tuple(t[:9] for t in train)
        )
    with pytest.raises(InputError, match="without queries"):
        pp.AutoDamping(ledger=ledger)
    with pytest.raises(InputError, match="2 subsets"):
        pp.Influence(damping=pp.AutoDamping(ledger=ledger.select(slice(0, 2)), queries=query)).fit(
            pp.Task(model), train
        )
