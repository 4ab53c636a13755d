"""Leave-one-out correlation against counting, from scores and from a ledger."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import proponent as pp
from proponent.attribution import Attribution
from proponent.errors import InputError
from proponent.evaluate import loo_correlation
from proponent.retrain.ledger import Ledger
from proponent.retrain.recipe import SklearnRecipe
from proponent.retrain.run import retrain
from proponent.retrain.subsets import each_left_out, halves
from truth import ranks


def attribution(score, train=None, query=None, **facts):
    q, n = score.shape
    train, query = np.arange(n) if train is None else train, np.arange(q) if query is None else query
    return Attribution.of(score, query=query, train=train, method="made", **facts)


def test_it_is_what_counting_gives_for_some_examples_in_another_order():
    rng = np.random.default_rng(0)
    score, left_out = np.round(rng.normal(size=(4, 30)), 1), rng.permutation(30)[:12]
    true = np.round(score[:, left_out] + rng.normal(size=(4, 12)), 1)
    result = loo_correlation(attribution(score[[3, 1]], query=[3, 1]), attribution(true, train=left_out))
    for at, q in enumerate([3, 1]):
        assert result.pearsons[at] == pytest.approx(ranks.pearson(score[q, left_out], true[q]))
        assert result.spearmans[at] == pytest.approx(ranks.spearman(score[q, left_out], true[q]))
    assert result.pearson == pytest.approx(result.pearsons.mean())
    assert result.spearman_lower < result.spearman < result.spearman_upper
    assert result.examples == 12
    assert result.to_pandas().columns.tolist() == ["query", "pearson", "spearman"]


@pytest.mark.parametrize("full", [True, False], ids=["all examples too", "removals alone"])
def test_a_ledger_gives_the_change_by_leaving_each_out_its_seeds_averaged(full):
    rng = np.random.default_rng(1)
    effects = rng.normal(size=(3, 8))
    drawn = each_left_out(repeats=2)(8)
    measured = drawn.included @ effects.T + np.tile([0.4, -0.4], 9)[:, None]
    other = np.vstack([halves(4)(8).included, [0, 0, 2, 1, 1, 1, 1, 1]])
    included = np.vstack([drawn.included, other])
    ledger = Ledger.of(included, np.vstack([measured, np.zeros((5, 3))]), train=range(8), query=range(3))
    ledger = ledger.select(slice(None) if full else slice(2, None))
    result = loo_correlation(attribution(2 * effects), ledger, bootstrap=20)
    np.testing.assert_allclose(result.pearsons, 1)
    np.testing.assert_allclose(result.spearmans, 1)
    assert result.slope == pytest.approx(0.5)


def test_ridge_influence_agrees_with_refits_and_turned_scores_disagree():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(150, 4))
    y = X @ [1, 2, 0, 0] + rng.normal(size=150)
    recipe, query = SklearnRecipe(Ridge(1.0)), (rng.normal(size=(9, 4)), rng.normal(size=9))
    ledger = retrain(recipe, (X, y), query, each_left_out())
    scores = pp.Influence().fit(recipe, (X, y)).score(query)
    result = loo_correlation(scores, ledger)
    assert result.pearson > 0.98
    assert result.slope == pytest.approx(1, abs=0.1)
    exact = pp.LeaveOneOut().fit(recipe, (X, y)).score(query)
    assert loo_correlation(exact, ledger).pearson == pytest.approx(1, abs=1e-6)
    turned = attribution(-scores.dataset.score.values)
    assert loo_correlation(turned, ledger).spearman < -0.98


def test_failed_fits_leave_their_example_out_and_a_constant_truth_its_query():
    rng = np.random.default_rng(3)
    effects, drawn = rng.normal(size=(2, 10)), each_left_out()(10)
    measured = drawn.included @ effects.T
    measured[4], measured[:, 1] = np.nan, np.where(np.arange(11) == 4, np.nan, 0.7)
    errors = ["singular" if s == 4 else "" for s in range(11)]
    ledger = Ledger.of(drawn.included, measured, train=range(10), query=range(2), errors=errors)
    result = loo_correlation(attribution(effects), ledger)
    assert result.examples == 9
    assert result.pearson == result.pearsons[0] == pytest.approx(1)
    assert np.isnan(result.pearsons[1])
    assert "1 models failed" in repr(result)
    assert "1 queries are left out" in repr(result)


def test_examples_without_a_truth_are_not_looked_at():
    rng = np.random.default_rng(4)
    score, true = rng.normal(size=(2, 2, 9))
    true[:, 4] = np.nan
    result = loo_correlation(attribution(score), attribution(true))
    assert result.examples == 8
    assert result.spearmans[0] == pytest.approx(ranks.spearman(np.delete(score[0], 4), np.delete(true[0], 4)))


def test_a_method_that_only_ranks_has_no_slope():
    score = np.arange(5.0)[None]
    assert np.isnan(loo_correlation(attribution(score, unit="cosine"), attribution(score), bootstrap=0).slope)


def test_what_cannot_be_judged_is_refused_in_words():
    score = attribution(np.arange(10.0).reshape(2, 5))
    drawn = halves(30)(5)
    nothing = Ledger.of(drawn.included, np.ones((30, 2)), train=range(5), query=range(2))
    with pytest.raises(InputError, match="0 examples left out one at a time"):
        loo_correlation(score, nothing)
    with pytest.raises(InputError, match=r"no scores of \[5, 6\], which were left out"):
        loo_correlation(score, attribution(np.arange(14.0).reshape(2, 7)))
    with pytest.raises(InputError, match="not measured"):
        loo_correlation(score, attribution(np.arange(5.0)[None]))
    with pytest.raises(InputError, match="the same for all the examples left out"):
        loo_correlation(score, attribution(np.ones((2, 5))))
