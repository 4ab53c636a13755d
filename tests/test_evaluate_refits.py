"""Curves and brittleness: against plain loops of refits, and on data whose answer is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from proponent.attribution import Attribution, Values
from proponent.errors import InputError
from proponent.evaluate import addition_curve, brittleness, removal_curve
from proponent.examples import Examples
from proponent.retrain.game import Game
from proponent.retrain.recipe import FunctionRecipe, SklearnRecipe

CORRECT = SklearnRecipe(KNeighborsClassifier(1), measurement="correct")


def flipped(seed=0, n=120, share=0.15):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    clean = (X[:, 0] > 0).astype(int)
    bad = rng.random(n) < share
    query = rng.normal(size=(60, 2))
    return (X, np.where(bad, 1 - clean, clean)), (query, (query[:, 0] > 0).astype(int)), bad


def valued(value, train=None):
    return Values.of(np.asarray(value, dtype=float), train=range(len(value)) if train is None else train, method="made")


# curves


def test_heights_are_those_of_plain_refits():
    train, query, _ = flipped()
    X, y = train
    value = np.random.default_rng(1).normal(size=len(y))
    logistic = SklearnRecipe(LogisticRegression(), measurement="correct")
    for order, sign in (("lowest", 1), ("highest", -1)):
        curve = removal_curve(valued(value), logistic, train, query, fractions=(0, 0.1, 0.3), order=order, random=2)
        added = addition_curve(valued(value), logistic, train, query, fractions=(0.2, 0.5, 1.0), order=order, random=2)
        ranking = np.argsort(sign * value)
        for at, count in enumerate((0, 12, 36)):
            kept = ranking[count:]
            assert curve.table["measured"][at] == LogisticRegression().fit(X[kept], y[kept]).score(*query)
        for at, count in enumerate((24, 60, 120)):
            kept = ranking[:count]
            assert added.table["measured"][at] == LogisticRegression().fit(X[kept], y[kept]).score(*query)
        assert curve.table["rows"].tolist() == [0, 12, 36]
        trapezoid = (0.1 * sum(curve.table["measured"][:2]) + 0.2 * sum(curve.table["measured"][1:])) / 2 / 0.3
        assert curve.area == pytest.approx(trapezoid)


def test_a_linear_game_has_a_known_area_and_the_random_orders_one_around_it():
    worth = np.arange(20.0)
    game = Game(lambda included: included @ worth)
    data, query = (np.zeros((20, 1)), np.zeros(20)), (np.zeros((1, 1)), np.zeros(1))
    curve = removal_curve(valued(worth), game, data, query, fractions=(0, 0.5), random=200)
    assert curve.table["measured"].tolist() == [190, 145]
    assert curve.area == pytest.approx((190 + 145) / 2)
    assert curve.random_area == pytest.approx((190 + 95) / 2, abs=1.5)
    assert curve.gain == pytest.approx(curve.area - curve.random_area)
    assert curve.gain_lower < curve.gain < curve.gain_upper
    assert curve.beaten == 1
    high = removal_curve(valued(worth), game, data, query, fractions=(0, 0.5), random=200, order="highest")
    assert high.area == pytest.approx((190 + 45) / 2)
    assert high.gain > 20
    wrong = removal_curve(valued(-worth), game, data, query, fractions=(0, 0.5), random=200)
    assert wrong.gain_upper < 0
    assert wrong.beaten == 0


def test_removing_flipped_labels_first_beats_random_and_random_values_do_not():
    train, query, bad = flipped()
    found = removal_curve(valued(~bad), CORRECT, train, query, fractions=(0, 0.05, 0.1, 0.15))
    assert found.gain_lower > 0.01
    assert found.beaten == 1
    assert set(found.summary()) == {"removal_gain", "removal_gain_lower", "removal_gain_upper"}
    chance = removal_curve(valued(np.random.default_rng(5).normal(size=120)), CORRECT, train, query)
    assert chance.gain_lower < 0 < chance.gain_upper
    added = addition_curve(valued(~bad), CORRECT, train, query)
    assert added.gain_lower > 0
    assert "addition_gain" in added.summary()


def test_values_follow_ids_ties_are_broken_at_random_and_missing_values_go_last():
    train, query, _ = flipped()
    order = np.random.default_rng(2).permutation(120)
    value = np.random.default_rng(3).normal(size=120)
    one = removal_curve(valued(value), CORRECT, train, query, random=2)
    two = removal_curve(valued(value[order], train=order), CORRECT, train, query, random=2)
    np.testing.assert_array_equal(one.table, two.table)
    game = Game(lambda included: included @ np.arange(10.0))
    data, ask = (np.zeros((10, 1)), np.zeros(10)), (np.zeros((1, 1)), np.zeros(1))
    tied = {removal_curve(valued(np.ones(10)), game, data, ask, fractions=(0, 0.5), seed=s).area for s in range(5)}
    assert len(tied) > 1
    holes = np.where(np.arange(10) == 0, np.nan, np.arange(10.0))
    curve = removal_curve(valued(holes), game, data, ask, fractions=(0, 0.9), random=2)
    assert curve.table["measured"].tolist() == [45, 0]
    assert "1 examples have no value" in repr(curve)


def test_seeds_are_averaged_and_the_same_for_all():
    seen = []

    def train(examples, seed):
        seen.append(seed)
        return float(seed)

    noisy = FunctionRecipe(train, lambda model, query: np.full(len(query), model))
    data = (np.zeros((10, 1)), np.zeros(10))
    curve = removal_curve(valued(np.arange(10)), noisy, data, data, fractions=(0, 0.3), random=2, repeats=4)
    assert set(seen) == {0, 1, 2, 3}
    assert curve.table["measured"].tolist() == [1.5, 1.5]
    assert curve.models == 3 * 2 * 4


def test_failed_refits_leave_their_fraction_out_of_the_area():
    def train(examples, seed):
        if len(examples) < 6:
            raise ValueError("too few")
        return len(examples)

    recipe = FunctionRecipe(train, lambda model, query: np.full(len(query), float(model)))
    data = (np.zeros((10, 1)), np.zeros(10))
    curve = removal_curve(valued(np.arange(10)), recipe, data, data, fractions=(0, 0.2, 0.5), random=2)
    assert curve.table["measured"].tolist()[:2] == [10, 8]
    assert np.isnan(curve.table["measured"][2])
    assert curve.area == 9
    assert "3 refits failed: the fractions [0.5]" in repr(curve)
    with pytest.raises(InputError, match="failed at 2 of 3 fractions"):
        removal_curve(valued(np.arange(10)), recipe, data, data, fractions=(0, 0.5, 0.6), random=2)


def test_a_ledger_on_disk_is_not_trained_again(tmp_path):
    calls = []

    def train(examples, seed):
        calls.append(len(examples))
        return 0.0

    recipe = FunctionRecipe(train, lambda model, query: np.zeros(len(query)) + model, name="counts calls")
    data = (np.arange(10.0)[:, None], np.zeros(10))
    first = removal_curve(valued(np.arange(10)), recipe, data, data, random=2, ledger=tmp_path / "ledger")
    trained = len(calls)
    again = removal_curve(valued(np.arange(10)), recipe, data, data, random=2, ledger=tmp_path / "ledger")
    assert trained == len(calls) > 10
    np.testing.assert_array_equal(first.table, again.table)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fractions": (0.2, 0.1)}, "at least two, increasing"),
        ({"fractions": (0.0, 1.0)}, "within 0 and 1"),
        ({"order": "worst"}, "'lowest' or 'highest'"),
        ({"random": 1}, "at least 2"),
    ],
)
def test_wrong_settings_are_refused_in_words(settings, said):
    train, query, _ = flipped()
    with pytest.raises(InputError, match=said):
        removal_curve(valued(np.zeros(120)), CORRECT, train, query, **settings)


def test_values_of_other_examples_are_refused():
    train, query, _ = flipped()
    with pytest.raises(InputError, match="119 of them among the training examples"):
        removal_curve(valued(np.zeros(120), train=np.arange(120) + 1), CORRECT, train, query)


# brittleness


def line(n=40):
    """Ones left of zero and zeros right of it, for nearest neighbours."""
    x = np.concatenate([-np.arange(1, n + 1), np.arange(1, n + 1)]) * 1.0
    return x[:, None], (x < 0).astype(int)


def nearest_first(x, query):
    """Scores of the right labels only, the nearest highest."""
    same = (x[None, :] < 0) == (query[:, None] < 0)
    return np.where(same, 1 / (1e-3 + np.abs(x[None, :] - query[:, None])), 0)


def smallest(x, y, query, target, order):
    """By plain loop: rows of `order` that have to go until the nearest row has another label."""
    for k in range(1, len(order) + 1):
        kept = np.delete(np.arange(len(x)), order[:k])
        if y[kept][np.argmin(np.abs(x[kept] - query))] != target:
            return k
    return np.nan


def test_the_number_is_the_smallest_that_turns_the_prediction():
    X, y = line()
    query = np.array([-0.2, -3.3, 5.4, -8.1])
    target = (query < 0).astype(int)
    score = nearest_first(X[:, 0], query)
    scores = Attribution.of(score, query=list("abcd"), train=range(80), method="distance")
    asked = Examples.of((query[:, None], target), ids=list("abcd"))
    result = brittleness(scores, CORRECT, (X, y), asked, tolerance=0)
    truth = [smallest(X[:, 0], y, q, t, np.argsort(-s)) for q, t, s in zip(query, target, score, strict=True)]
    assert result.table["k"].tolist() == truth
    assert max(truth) > 15
    assert result.table["after"].tolist() == [0, 0, 0, 0]
    assert (result.flipped, result.right) == (4, 4)
    assert result.median == np.median(truth)
    assert result.curve["flipped"].iloc[-1] == 1
    assert result.curve["random"].iloc[-1] < 0.5
    assert result.table["random_k"].isna().all()
    coarse = brittleness(scores, CORRECT, (X, y), asked, tolerance=0.3)
    assert (coarse.table["k"] >= truth).all()
    assert (coarse.table["k"] <= np.ceil(1.5 * np.array(truth))).all()
    assert coarse.models < result.models
    assert result.models - 20 * len(result.curve) <= 1 + (2 * np.ceil(np.log2(truth)) + 1).sum()


def test_wrong_predictions_and_those_that_never_turn_are_told_apart():
    X, y = line(10)
    query = (np.array([[-1.0], [-2.0], [3.0]]), np.array([0, 1, 0]))  # the first is wrong to begin with
    score = np.vstack([nearest_first(X[:, 0], query[0][:2, 0]), np.zeros(20)])  # the last has no proponents
    scores = Attribution.of(score, query=range(3), train=range(20), method="distance")
    result = brittleness(scores, CORRECT, (X, y), query, largest=2, random=0)
    assert result.table["before"].tolist() == [0, 1, 1]
    assert result.table["k"].isna().all()
    np.testing.assert_array_equal(result.table["tested"], [np.nan, 2, 0])
    assert (result.right, result.flipped) == (2, 0)
    assert result.median == np.inf


def test_other_measurements_turn_where_the_label_has_less_than_half():
    X, y = line(15)
    query = (np.array([[-1.5]]), np.array([1]))
    scores = Attribution.of(nearest_first(X[:, 0], query[0][:, 0]), query=[0], train=range(30), method="distance")
    found = {
        m: brittleness(scores, SklearnRecipe(LogisticRegression(), measurement=m), (X, y), query, tolerance=0, random=0)
        for m in ("correct", "margin", "probability", "loss")
    }
    assert len({r.table["k"][0] for r in found.values()}) == 1
    assert found["margin"].table["k"][0] > 1
    function = FunctionRecipe(lambda e, s: 1.0, lambda m, q: np.ones(len(q)))
    with pytest.raises(InputError, match="threshold"):
        brittleness(scores, function, (X, y), query)


def test_several_seeds_vote():
    def train(examples, seed):
        return len(examples) - seed  # under seed 2 it turns two removals earlier than under seed 0

    recipe = FunctionRecipe(train, lambda model, query: np.full(len(query), float(model >= 15)))
    data, query = (np.arange(20.0)[:, None], np.zeros(20)), (np.zeros((1, 1)), np.zeros(1))
    scores = Attribution.of(np.arange(20.0)[None], query=[0], train=range(20), method="made")
    k = brittleness(scores, recipe, data, query, threshold=0.5, repeats=3, tolerance=0, random=0).table["k"]
    assert k.tolist() == [5]
