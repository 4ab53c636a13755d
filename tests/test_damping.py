"""Damping that chooses itself."""

import json

import numpy as np
import pytest
import torch

import proponent as pp
from proponent.errors import InputError
from proponent.methods.damping_choice import agreement
from proponent.retrain.subsets import halves
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


def test_agreement_is_the_mean_rank_correlation():
    rng = np.random.default_rng(0)
    scores, included = rng.normal(size=(3, 9)), rng.integers(0, 2, size=(20, 9)).astype(float)
    exact = included @ scores.T
    assert agreement(scores, included, np.exp(exact)) == pytest.approx(1.0)
    assert agreement(-scores, included, exact) == pytest.approx(-1.0)
    flat = exact.copy()
    flat[:, 0] = 1.0
    assert agreement(scores, included, flat) == pytest.approx(1.0)  # a query that does not vary says nothing


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
