"""The retraining estimators from end to end: recipes, ledgers, groups, failures, queries and their mean."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.spatial.distance import cdist
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from tests.truth import games

import proponent as pp
from proponent.errors import InputError, NotConverged, ProponentError, ProponentWarning
from proponent.methods import retraining
from proponent.methods.knn_games import shapley_by_distance
from proponent.methods.least_core import least_core
from proponent.retrain.game import Game
from proponent.retrain.recipe import FunctionRecipe, SklearnRecipe
from proponent.retrain.run import retrain
from proponent.retrain.subsets import bernoulli, fractions, full

Array = np.ndarray[Any, np.dtype[Any]]


def players(n: int) -> pp.Examples:
    return pp.Examples.of(np.zeros((n, 1)), ids=[f"z{i}" for i in range(n)])


def queries(count: int) -> Array:
    return np.zeros((count, 1))


def game(worth: Array, name: str = "game") -> Game:
    return Game(games.lookup(worth), name)


# Games that are solved by enumeration


EXACT: dict[str, tuple[Any, Callable[[games.Game, int], Array]]] = {
    "Shapley": (pp.Shapley(sampler="exact"), games.shapley),
    "BetaShapley": (pp.BetaShapley(16, 1, sampler="exact"), lambda g, n: games.beta_shapley(g, n, 16, 1)),
    "Banzhaf": (pp.Banzhaf(sampler="exact"), games.banzhaf),
    "weighted": (pp.Banzhaf(p=0.2, sampler="exact"), lambda g, n: games.banzhaf(g, n, 0.2)),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_values_of_each_query_and_of_their_mean(name: str) -> None:
    spec, truth = EXACT[name]
    worth = games.random_worth(6, seed=0, games=3)
    fitted = spec.fit(game(worth), players(6))
    expected = np.array([truth(games.of_worth(column), 6) for column in worth.T])
    scores, values = fitted.score(queries(3)), fitted.values(queries(3))
    np.testing.assert_allclose(scores.dataset.score, expected, atol=1e-12)
    np.testing.assert_allclose(values.value, expected.mean(axis=0), atol=1e-12)
    assert (scores.dataset.stderr == 0).all() and (values.dataset.stderr == 0).all()
    assert scores.dataset["train"].to_numpy().tolist() == [f"z{i}" for i in range(6)]
    assert int(scores.dataset.attrs["trainings"]) == 64


SAMPLED: dict[str, tuple[Any, Callable[[games.Game, int], Array]]] = {
    "Shapley": (pp.Shapley(stop=pp.Budget(4000)), games.shapley),
    "antithetic": (pp.Shapley(sampler="antithetic", stop=pp.Budget(4000)), games.shapley),
    "stratified": (pp.Shapley(sampler="stratified", stop=pp.Budget(4000)), games.shapley),
    "owen": (pp.Shapley(sampler="owen", stop=pp.Budget(4000)), games.shapley),
    "BetaShapley": (pp.BetaShapley(4, 1, stop=pp.Budget(4000)), lambda g, n: games.beta_shapley(g, n, 4, 1)),
    "Beta by Owen": (
        pp.BetaShapley(1, 4, sampler="owen", stop=pp.Budget(4000)),
        lambda g, n: games.beta_shapley(g, n, 1, 4),
    ),
    "Banzhaf": (pp.Banzhaf(count=4000), games.banzhaf),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_values_are_within_their_errors_and_the_mean_has_its_own(name: str) -> None:
    spec, truth = SAMPLED[name]
    worth = games.random_worth(6, seed=1, games=4)
    worth[:, 3] = -worth[:, 0]  # opposite errors: the mean's is far smaller than its queries'
    expected = np.array([truth(games.of_worth(column), 6) for column in worth.T])
    fitted = spec.fit(game(worth), players(6))
    scores, values = fitted.score(queries(4)).dataset, fitted.values(queries(4)).dataset
    assert float(np.abs((scores.score - expected) / scores.stderr).max()) < 4
    assert float(np.abs((values.value - expected.mean(axis=0)) / values.stderr).max()) < 4
    np.testing.assert_allclose(values.value, scores.score.mean("query"), atol=1e-12)
    of_mean = spec.fit(game(worth.mean(axis=1, keepdims=True)), players(6)).score(queries(1)).dataset
    np.testing.assert_allclose(values.stderr, of_mean.stderr[0], rtol=1e-9)


def test_groups_are_players_that_join_whole() -> None:
    worth = games.random_worth(6, seed=2)[:, 0]
    groups = np.array(["b", "a", "b", "c", "a", "c"])
    rows_of = [np.flatnonzero(groups == g) for g in "abc"]

    def merged(coalition: tuple[int, ...]) -> float:
        return float(worth[sum(1 << int(i) for g in coalition for i in rows_of[g])])

    train = pp.Examples.of(np.zeros((6, 1)), groups=groups)
    for spec, truth in ((pp.Shapley, games.shapley), (pp.Banzhaf, games.banzhaf)):
        for given in ("own", groups):
            fitted = spec(sampler="exact", groups=given).fit(game(worth[:, None]), train)
            values = fitted.values(queries(1))
            assert values.dataset["train"].to_numpy().tolist() == ["a", "b", "c"]
            np.testing.assert_allclose(values.value, truth(merged, 3), atol=1e-12)
    sampled = pp.Shapley(groups="own", stop=pp.Budget(602)).fit(game(worth[:, None]), train).values(queries(1))
    np.testing.assert_allclose(sampled.value.sum(), worth[-1] - worth[0], atol=1e-12)
    assert sampled.dataset.attrs["trainings"] == 602
    with pytest.raises(InputError, match="without groups"):
        pp.Shapley(groups="own").fit(game(worth[:, None]), np.zeros((6, 1)))
    with pytest.raises(InputError, match=r"groups of shape \(2,\); wanted 6 groups"):
        pp.LeastCore(groups=["a", "b"]).fit(game(worth[:, None]), train)


@pytest.mark.parametrize("sampler", ["permutation", "antithetic", "stratified", "truncated", "owen"])
def test_a_nearest_neighbour_game_of_a_thousand_players(sampler: str) -> None:
    rng = np.random.default_rng(0)
    n, k, q = 1000, 5, 2
    order = [rng.permutation(n) for _ in range(q)]
    matches = rng.random((q, n)) < 0.6
    truth = np.empty((q, n))
    for c in range(q):
        truth[c, order[c]] = shapley_by_distance(matches[c, order[c]][None], k, "fixed")[0]
    plays = [games.knn_worth(order[c], matches[c].astype(float), k) for c in range(q)]
    recipe = Game(lambda included: np.stack([play(included) for play in plays], axis=1), "neighbours")
    budget = pp.Budget(40_100)
    scores = pp.Shapley(sampler=sampler, stop=budget).fit(recipe, players(n)).score(queries(q)).dataset
    if sampler != "owen":
        np.testing.assert_allclose(scores.score.sum("train"), [p(np.ones((1, n)))[0] for p in plays], atol=1e-12)
    z = ((scores.score - truth) / scores.stderr).to_numpy()
    near = np.array([z[c, order[c][:15]] for c in range(q)])  # the farther seldom add anything at all
    assert np.sqrt(np.mean(near**2)) < 1.6 and np.abs(near).max() < 6, (np.sqrt(np.mean(near**2)), np.abs(near).max())
    assert np.abs(scores.score - truth).max() < 0.05
    assert np.corrcoef(scores.score.to_numpy().ravel(), truth.ravel())[0, 1] > 0.9


# Real models, ledgers, workers


def counting(fits: list[int], fail: Callable[[Array], bool] = lambda inputs: False) -> FunctionRecipe:
    """A recipe that notes how many examples each fit was given; its model is their mean."""

    def train(examples: pp.Examples, seed: int | None) -> Any:
        fits.append(len(examples))
        if fail(examples.inputs):
            raise RuntimeError("this one fails")
        return examples.inputs.sum() / (1 + len(examples))

    return FunctionRecipe(train, lambda mean, query: -np.abs(query.inputs[:, 0] - mean), name="mean")


def test_a_ledger_is_shared_by_calls_methods_and_runs(tmp_path: Path) -> None:
    fits: list[int] = []
    train, query = np.arange(8.0)[:, None], np.array([[1.0], [5.0]])
    recipe, kept = counting(fits), tmp_path / "ledger"
    first = pp.Shapley(stop=pp.Budget(72)).fit(recipe, train, ledger=kept).score(query)
    done = len(fits)
    assert done <= 72
    again = pp.Shapley(stop=pp.Budget(72)).fit(recipe, train, ledger=kept)
    np.testing.assert_array_equal(again.score(query).dataset.score, first.dataset.score)
    again.values(query)
    pp.BetaShapley(stop=pp.Budget(72)).fit(recipe, train, ledger=kept).score(query)
    assert len(fits) == done
    longer = pp.Shapley(stop=pp.Budget(142)).fit(recipe, train, ledger=kept).score(query)
    assert done < len(fits) <= 142
    straight = pp.Shapley(stop=pp.Budget(142)).fit(recipe, train).score(query)
    np.testing.assert_array_equal(longer.dataset.score, straight.dataset.score)
    np.testing.assert_array_equal(longer.dataset.stderr, straight.dataset.stderr)
    done = len(fits)
    pp.Banzhaf(count=40).fit(recipe, train, ledger=kept).values(query)
    between = len(fits)
    pp.Datamodel(count=40).fit(recipe, train, ledger=kept).values(query)
    assert done < between == len(fits)


def test_real_models_give_the_same_bits_with_any_number_of_workers() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    recipe, train, query = (
        SklearnRecipe(LogisticRegression(), "probability"),
        (X[:20], y[:20]),
        (X[100:110], y[100:110]),
    )
    for spec in (pp.Shapley(stop=pp.Budget(60)), pp.Downsampling(count=40), pp.Datamodel(count=40)):
        one, two = (spec.fit(recipe, train, workers=w).score(query).dataset for w in (1, 2))
        for variable in ("score", "stderr"):
            np.testing.assert_array_equal(one[variable], two[variable])


def test_shapley_values_of_a_logistic_regression_add_up() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    recipe, train, query = SklearnRecipe(LogisticRegression(C=0.1)), (X[:15], y[:15]), (X[100:105], y[100:105])
    scores = pp.Shapley(stop=pp.Budget(100)).fit(recipe, train).score(query).dataset
    ends = retrain(recipe, train, query, np.array([[0] * 15, [1] * 15])).measured
    np.testing.assert_allclose(scores.score.sum("train"), ends[1] - ends[0], atol=1e-9)
    assert scores.attrs["unit"].startswith("Shapley value")


def test_training_seeds_take_turns() -> None:
    noise = FunctionRecipe(
        lambda examples, seed: examples.inputs.sum() + 10.0 * (seed or 0), lambda m, q: np.full(len(q), m), name="noise"
    )
    train = np.array([[1.0], [2.0]])
    values = pp.Shapley(sampler="exact", seeds=3).fit(noise, train).values(queries(1))
    np.testing.assert_allclose(values.value, [1, 2], atol=1e-12)
    assert values.dataset.attrs["trainings"] == 12
    sampled = pp.Shapley(seeds=2, stop=pp.Budget(10)).fit(noise, train).values(queries(1))
    np.testing.assert_allclose(sampled.value, [1, 2], atol=1e-12)


def test_failed_fits_are_left_out_counted_and_told() -> None:
    train, query = np.arange(6.0)[:, None], np.array([[2.0]])
    fails = counting([], lambda inputs: len(inputs) == 3 and 5.0 in inputs)
    with pytest.warns(
        ProponentWarning, match="trainings failed and are left out, the first because of .*this one fails"
    ):
        values = pp.Shapley(stop=pp.Budget(500)).fit(fails, train).values(query)
    assert values.dataset.attrs["failed"] > 0 and np.isfinite(values.value).all()
    assert int(values.dataset["count"].min()) < int(values.dataset["count"].max()) <= values.dataset.attrs["draws"]
    with pytest.warns(ProponentWarning, match="left out"):
        banzhaf = pp.Banzhaf(count=60).fit(fails, train).score(query).dataset
    drawn = bernoulli(0.5, 60)(6).included
    good = ~((drawn.sum(axis=1) == 3) & (drawn[:, 5] == 1))
    mean = np.array([train[row > 0].sum() / (1 + row.sum()) for row in drawn])
    measured = -np.abs(2.0 - mean)
    for i in range(6):
        inside = measured[good & (drawn[:, i] == 1)].mean() - measured[good & (drawn[:, i] == 0)].mean()
        assert float(banzhaf.score[0, i]) == pytest.approx(inside, abs=1e-12)
    always = counting([], lambda inputs: True)
    for spec in (pp.Shapley(stop=pp.Budget(50)), pp.Downsampling(count=20), pp.Datamodel(count=20), pp.LeastCore(20)):
        with pytest.raises(ProponentError, match="all of which failed"):
            spec.fit(always, train).score(query)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProponentWarning)
        never_five = counting([], lambda inputs: 5.0 in inputs)
        assert np.isnan(pp.Shapley(stop=pp.Budget(100)).fit(never_five, train).values(query).value[5])
        assert np.isnan(pp.Banzhaf(count=60).fit(never_five, train).values(query).value[5])


def test_stop_rules_end_the_run() -> None:
    worth = games.random_worth(6, seed=3)
    target = 0.05
    values = pp.Shapley(stop=pp.StandardError(target)).fit(game(worth), players(6)).values(queries(1)).dataset
    assert float(values.stderr.max()) <= target
    stable = pp.Shapley(stop=pp.RankStability(0.9) | pp.Budget(10**6)).fit(game(worth), players(6)).values(queries(1))
    assert 0.9 <= stable.dataset.attrs["rank_stability"] <= 1 and stable.dataset.attrs["trainings"] < 10**5
    with pytest.raises(InputError, match="a budget of 5 trainings; wanted at least 7"):
        pp.Shapley(stop=pp.Budget(5)).fit(game(worth), players(6)).values(queries(1))


# Downsampling


def test_downsampling_is_the_difference_of_means_of_a_ledger(tmp_path: Path) -> None:
    fits: list[int] = []
    train, query = np.arange(10.0)[:, None], np.array([[1.0], [4.0]])

    def seeded(examples: pp.Examples, seed: int | None) -> Any:
        fits.append(len(examples))
        if seed == 7:
            raise RuntimeError("this one fails")
        return examples.inputs.mean() + np.random.default_rng(seed).normal()

    recipe = FunctionRecipe(seeded, lambda mean, query: -np.abs(query.inputs[:, 0] - mean), name="seeded")
    with pytest.warns(ProponentWarning, match="1 of 100 trainings failed"):
        scores = (
            pp.Downsampling(0.6, count=50, repeats=2).fit(recipe, train, ledger=tmp_path / "l").score(query).dataset
        )
    assert len(fits) == 100
    ledger = retrain(recipe, train, query, fractions(0.6, 50, repeats=2), ledger=tmp_path / "l")
    assert len(fits) == 100
    z, measured = ledger.included[::2], np.nanmean(ledger.measured.reshape(50, 2, 2), axis=1)
    for i in range(10):
        expected = measured[z[:, i] == 1].mean(axis=0) - measured[z[:, i] == 0].mean(axis=0)
        np.testing.assert_allclose(scores.score[:, i], expected, atol=1e-12)
    assert (scores.lower < scores.score).all() and (scores.score < scores.upper).all()


def test_self_influence_is_the_diagonal_and_does_not_hold_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(30, 1))
    for antithetic in (False, True):
        fitted = pp.Downsampling(count=60, antithetic=antithetic).fit(counting([]), train)
        own, all_scores = fitted.self_influence(), fitted.score(train).dataset
        np.testing.assert_allclose(own.value, np.diag(all_scores.score), atol=1e-12)
        np.testing.assert_allclose(own.dataset.stderr, np.diag(all_scores.stderr), rtol=1e-6)
        np.testing.assert_allclose(own.dataset.upper, np.diag(all_scores.upper), rtol=1e-6, atol=1e-9)
    monkeypatch.setattr(retraining, "HELD", 2**16)
    n, count = 2000, 640
    big = pp.Downsampling(count=count).fit(Game(lambda held: np.tile(held[:, :1], (1, n))), players(n))
    tracemalloc.start()
    big.self_influence()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * count * n * 8, peak


def test_flipped_labels_are_memorized() -> None:
    X, y = load_digits(return_X_y=True)
    X, y = X[:200], y[:200].copy()
    rng = np.random.default_rng(1)
    flipped = rng.permutation(200)[:20]
    y[flipped] = (y[flipped] + rng.integers(1, 10, 20)) % 10
    recipe = SklearnRecipe(KNeighborsClassifier(1), measurement="correct")
    memorized = pp.Downsampling(count=150).fit(recipe, (X, y)).self_influence()
    assert roc_auc_score(np.isin(np.arange(200), flipped), memorized.value) > 0.97
    assert (memorized.dataset.stderr > 0).all()  # also where every model agreed


# Datamodels


@pytest.mark.parametrize("regression", ["ridge", "lasso"])
def test_datamodels_recover_planted_linear_games(regression: str) -> None:
    rng = np.random.default_rng(2)
    planted = np.where(rng.random((3, 30)) < 0.3, rng.normal(size=(3, 30)), 0.0)
    additive = Game(lambda held: held @ planted.T + [1.0, -5.0, 100.0], "additive")
    fitted = pp.Datamodel(count=150, regression=regression, resamples=5).fit(additive, players(30))
    scores, values = fitted.score(queries(3)).dataset, fitted.values(queries(3)).dataset
    np.testing.assert_allclose(scores.score, planted, atol=0.01)
    np.testing.assert_allclose(values.value, planted.mean(axis=0), atol=0.01)
    assert (scores.r2 > 0.999).all() and (scores.lds > 0.99).all() and values.attrs["lds"] > 0.99
    level = pp.Datamodel(count=150, regression=regression, independent=False, resamples=0).fit(additive, players(30))
    found = level.score(queries(3)).dataset.score.to_numpy()
    if regression == "ridge":
        centred = planted - planted.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(found, centred, atol=0.01)  # subsets of one size do not tell the level


def test_the_mean_has_the_datamodel_of_its_own_residuals() -> None:
    rng = np.random.default_rng(3)
    planted = rng.normal(size=12)

    def noisy(held: Array) -> Array:
        code = held.astype(np.int64) @ (1 << np.arange(12))
        noise = np.random.default_rng(5).normal(size=2**12)[code]
        return np.stack([held @ planted + 3 * noise, held @ planted - 3 * noise], axis=1)  # the mean has none

    fitted = pp.Datamodel(count=200).fit(Game(noisy, "noisy"), players(12))
    scores, values = fitted.score(queries(2)).dataset, fitted.values(queries(2)).dataset
    assert float(scores.stderr.min()) > 0.2 and float(values.stderr.max()) < 0.01
    np.testing.assert_allclose(values.value, planted, atol=0.01)


# The least core


def all_claims(worth: Array, n: int) -> tuple[Array, Array]:
    codes = np.arange(1, 2**n - 1)
    return codes[:, None] >> np.arange(n) & 1, worth[codes] - worth[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_least_core_of_all_subsets(seed: int) -> None:
    n = 5
    worth = games.random_worth(n, seed=seed)[:, 0] + np.array([s.bit_count() ** 1.5 for s in range(2**n)])
    total = float(worth[-1] - worth[0])
    payoff, subsidy = least_core(*all_claims(worth, n), total)
    assert payoff.sum() == pytest.approx(total, abs=1e-8)
    assert games.least_core_holds(worth, n, payoff, subsidy) < 1e-6
    # the dual programme: balanced weights of the claims prove that no smaller subsidy is enough
    held, claim = all_claims(worth, n)
    dual = linprog(
        np.r_[-claim, total],
        A_eq=np.vstack([np.c_[held.T, -np.ones(n)], np.r_[np.ones(len(claim)), 0.0]]),
        b_eq=np.r_[np.zeros(n), 1.0],
        bounds=[(0, None)] * len(claim) + [(None, None)],
    )
    assert subsidy == pytest.approx(-dual.fun, abs=1e-6)
    slack = 1e-5 * np.random.default_rng(seed).normal(size=(200, n))
    slack -= slack.mean(axis=1, keepdims=True)
    for other in payoff + slack:  # no payoff nearby is more even and as good
        if games.least_core_holds(worth, n, other, subsidy) < 1e-9:
            assert (other**2).sum() > (payoff**2).sum() - 1e-7


def test_the_least_core_pays_what_an_additive_game_is_worth_and_says_its_subsidy() -> None:
    worth = np.array([3.0, 0.0, -1.0, 0.5, 2.0])
    additive = Game(lambda held: np.stack([held @ worth, 2 * (held @ worth) + 7], axis=1), "additive")
    fitted = pp.LeastCore(count=400).fit(additive, players(5))
    scores, values = fitted.score(queries(2)).dataset, fitted.values(queries(2)).dataset
    np.testing.assert_allclose(scores.score, np.stack([worth, 2 * worth]), atol=1e-6)
    np.testing.assert_allclose(values.value, 1.5 * worth, atol=1e-6)
    assert float(np.abs(scores.subsidy).max()) < 1e-6 and abs(values.attrs["subsidy"]) < 1e-6
    majority = Game(lambda held: held.sum(axis=1) >= 2, "majority")
    paid = pp.LeastCore(count=100).fit(majority, players(3)).values(queries(1))
    np.testing.assert_allclose(paid.value, np.full(3, 1 / 3), atol=1e-6)
    assert paid.dataset.attrs["subsidy"] == pytest.approx(1 / 3, abs=1e-6)
    both = Game(lambda held: held[:, 0] * held[:, 1], "both")  # any division between the two is in the core
    even = pp.LeastCore(count=100).fit(both, players(4)).values(queries(1))
    np.testing.assert_allclose(even.value, [0.5, 0.5, 0, 0], atol=1e-6)
    with pytest.raises(NotConverged, match="draw more subsets"):
        pp.LeastCore(count=3).fit(additive, players(5)).values(queries(2))


# Class-wise Shapley


def test_class_wise_values_are_those_of_the_definition() -> None:
    x = np.array([[0.0], [0.35], [0.9], [1.0], [1.3]])
    labels = np.array(["a", "a", "a", "b", "b"])
    qx, qy = np.array([[0.1], [0.5], [0.8], [1.1], [0.2]]), np.array(["a", "a", "b", "b", "b"])

    def accuracy(coalition: tuple[int, ...]) -> Array:
        nearest = np.array(coalition)[np.abs(qx - x[list(coalition)].T).argmin(axis=1)]
        return (labels[nearest] == qy).astype(float)

    def environments(c: int) -> list[tuple[float, tuple[int, ...]]]:
        others = [i for i in range(5) if labels[i] != c]
        m = len(others)
        return [
            (1 / m / comb(m, size), chosen)
            for size in range(1, m + 1)
            for chosen in itertools.combinations(others, size)
        ]

    def measure(model: pp.Examples, query: pp.Examples) -> Array:
        nearest = cdist(query.inputs, model.inputs).argmin(axis=1)
        return np.asarray(model.labels[nearest] == query.labels, dtype=np.float64)

    recipe = FunctionRecipe(lambda examples, seed: examples, measure, name="nearest")
    truth = games.class_wise(accuracy, labels, qy, environments)
    values = (
        pp.ClassWiseShapley(stop=pp.Budget(4200), normalize=False).fit(recipe, (x, labels)).values((qx, qy)).dataset
    )
    assert values.attrs["trainings"] == 4200 and int(values["count"].min()) == 600
    assert float(np.abs((values.value - truth) / values.stderr).max()) < 4
    scaled = pp.ClassWiseShapley(stop=pp.Budget(4200)).fit(recipe, (x, labels)).values((qx, qy))
    right = accuracy((0, 1, 2, 3, 4))
    for c in "ab":
        assert scaled.value[labels == c].sum() == pytest.approx(right[qy == c].sum() / 5, abs=1e-12)
    ratio = scaled.dataset.stderr / values.stderr
    np.testing.assert_allclose(ratio, scaled.value / values.value, rtol=1e-9)


def test_class_wise_values_ask_for_accuracy_and_labels() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    train, query = (X[:12], y[:12]), (X[20:24], y[20:24])
    with pytest.raises(InputError, match='measurement="correct"'):
        pp.ClassWiseShapley(stop=pp.Budget(200)).fit(SklearnRecipe(KNeighborsClassifier(1), "loss"), train).values(
            query
        )
    recipe = SklearnRecipe(KNeighborsClassifier(1), "correct")
    with pytest.raises(InputError, match="queries without labels"):
        pp.ClassWiseShapley().fit(recipe, train).values(X[20:24])
    with pytest.raises(InputError, match="training examples without labels"):
        pp.ClassWiseShapley().fit(recipe, X[:12])
    with pytest.warns(ProponentWarning, match="not normalised"):
        pp.ClassWiseShapley(stop=pp.Budget(400)).fit(recipe, train).values((X[20:24], np.zeros(4, int)))


# Leave-one-out by refitting


def test_refits_leave_out_each_row_under_each_seed(tmp_path: Path) -> None:
    fits: list[int] = []
    train, query = np.array([[1.0], [2.0], [5.0], [9.0]]), np.array([[3.0], [0.0]])

    def seeded(examples: pp.Examples, seed: int | None) -> Any:
        fits.append(len(examples))
        return examples.inputs.mean() * (1 + (seed or 0))

    recipe = FunctionRecipe(seeded, lambda mean, query: -np.abs(query.inputs[:, 0] - mean), name="seeded")
    spec = pp.LeaveOneOut(steps="refit", repeats=3)
    scores = spec.fit(recipe, train, ledger=tmp_path / "l").score(query).dataset
    assert sorted(fits) == [3] * 12 + [4] * 3

    def measured(rows: list[int], seed: int) -> Array:
        return -np.abs(query[:, 0] - train[rows].mean() * (1 + seed))

    rest = [[j for j in range(4) if j != i] for i in range(4)]
    moved = np.array([[measured([0, 1, 2, 3], s) - measured(r, s) for s in range(3)] for r in rest])
    np.testing.assert_allclose(scores.score, moved.mean(axis=1).T, atol=1e-12)
    np.testing.assert_allclose(scores.stderr, moved.std(axis=1, ddof=1).T / np.sqrt(3), atol=1e-12)
    values = spec.fit(recipe, train, ledger=tmp_path / "l").values(query, rows=[2, 0]).dataset
    assert len(fits) == 15
    np.testing.assert_allclose(values.value, moved.mean(axis=(1, 2))[[2, 0]], atol=1e-12)
    np.testing.assert_allclose(values.stderr, moved.mean(axis=2).std(axis=1, ddof=1)[[2, 0]] / np.sqrt(3), atol=1e-12)
    fails = counting([], lambda inputs: 9.0 not in inputs)
    with pytest.warns(ProponentWarning, match="1 of 5 trainings failed"):
        broken = pp.LeaveOneOut(steps="refit").fit(fails, train).score(query).dataset
    assert np.isnan(broken.score[:, 3]).all() and np.isfinite(broken.score[:, :3]).all()
    with pytest.raises(ProponentError, match="a failed training on all examples"):
        pp.LeaveOneOut(steps="refit").fit(counting([], lambda inputs: 9.0 in inputs), train).score(query)
    with pytest.raises(InputError, match="pass steps='refit'"):
        pp.LeaveOneOut(repeats=2)


# What is refused


def test_wrong_settings_are_refused_in_words() -> None:
    for wrong, words in (
        (lambda: pp.Downsampling(fraction=1.0), "fraction=1.0"),
        (lambda: pp.Downsampling(count=5, antithetic=True), "even if antithetic"),
        (lambda: pp.Banzhaf(sampler="mrs"), "did you mean 'msr'"),
        (lambda: pp.BetaShapley(alpha=0), "positive"),
        (lambda: pp.Datamodel(regression="ols"), "choose one of these"),
        (lambda: pp.Datamodel(count=5), "at least 10 subsets"),
        (lambda: pp.LeastCore(count=1), "at least 2"),
        (lambda: pp.ClassWiseShapley(seeds=0), "at least one training seed"),
        (lambda: pp.Shapley(sampler="tmc"), "sampler='tmc'"),
    ):
        with pytest.raises(InputError, match=words):
            wrong()
    with pytest.raises(InputError, match="no queries"):
        pp.Shapley().fit(game(games.random_worth(2, 0)), players(2)).score(queries(0))
    with pytest.raises(InputError, match="13 players"):
        pp.Shapley(sampler="exact").fit(Game(lambda held: held.sum(axis=1)), players(13)).score(queries(1))


def test_results_say_what_made_them_and_survive_a_save(tmp_path: Path) -> None:
    worth = games.random_worth(4, seed=4, games=2)
    scores = (
        pp.Shapley(stop=pp.Budget(200) | pp.StandardError(1e-9), groups=["a", "b", "c", "d"])
        .fit(game(worth), players(4))
        .score(queries(2))
    )
    facts = pp.Attribution.load(scores.save(tmp_path / "scores.zarr")).dataset.attrs
    assert facts["method"] == "Shapley" and '"groups": 4' in facts["settings"]
    assert "Budget(trainings=200)" in facts["settings"] and facts["failed"] == 0
    assert full()(2).included.tolist() == [[1, 1]]
