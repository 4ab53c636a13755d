"""The check by refitting: paired, without leaks, the same for the same seed, and with intervals that cover."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from proponent.applications.removal_check import (
    Flags,
    Removal,
    accuracy,
    balanced_accuracy,
    check,
    minus_log_loss,
    minus_mae,
    r2,
    removal_curve,
    run_split,
)
from proponent.applications.removal_summary import interval, summarise, summarise_curve
from proponent.errors import InputError, ProponentWarning


class Centroids:
    """Predicts the class with the nearer mean; fast enough for simulations."""

    def __init__(self, X, y):
        self.means = np.stack([X[y == c].mean(axis=0) for c in (0, 1)])

    def predict(self, X):
        d = ((X[:, None] - self.means) ** 2).sum(axis=2)
        return d.argmin(axis=1)


def centroids(X, y, seed):
    if len(np.unique(y)) < 2:
        raise ValueError("only one class is left")
    return Centroids(X, y)


def noisy(n, rng, noise=0.2, d=3):
    y = rng.integers(0, 2, n)
    X = rng.normal(size=(n, d)) + 0.7 * y[:, None]
    return X, np.where(rng.random(n) < noise, 1 - y, y)


def flag_random(X, y, seed):
    rows = np.random.default_rng(seed).permutation(len(y))
    return {"random rows": Flags(rows[: len(y) // 5], ranking=rows)}


def flag_far(X, y, seed):
    """Rows on the wrong side, the furthest first."""
    model = Centroids(X, y)
    d = ((X[:, None] - model.means) ** 2).sum(axis=2)
    margin = d[np.arange(len(y)), y] - d[np.arange(len(y)), 1 - y]
    order = np.argsort(-margin)
    rows = order[: len(y) // 8]
    return {"label errors": Flags(rows, suggested=1 - y[rows], ranking=order)}


def plan(flag, fit=centroids, **settings):
    return Removal(fit, settings.pop("scores", {"accuracy": accuracy}), flag, **settings)


def smooth(model, X, y):
    """Minus a logistic loss of the distances."""
    d = ((X[:, None] - model.means) ** 2).sum(axis=2)
    return float(-np.logaddexp(0, (d[:, 0] - d[:, 1]) * (2 * y - 1) * -1).mean())


def simulated(flag, evaluation, draws=100, n=150):
    """Checks of many simulated data sets, one table per score."""
    found = []
    scores = {"accuracy": accuracy, "smooth": smooth}
    for s in range(draws):
        rng = np.random.default_rng(s)
        X, y = noisy(n, rng)
        held = noisy(n, rng) if evaluation else None
        p = plan(flag, actions=("remove",), draws=1, scores=scores)
        found.append(check(p, X, y, evaluation=held, seed=s))
    return dict(list(pd.concat(found).groupby("metric")))


@pytest.mark.parametrize("evaluation", [False, True], ids=["rows held out", "fixed evaluation set"])
def test_intervals_cover_the_mean_over_data_sets(evaluation):
    for metric, table in simulated(flag_far, evaluation).items():
        for kind in ("gain", "change"):
            truth = table[kind].mean()
            covers = (table[f"{kind}_lower"] <= truth) & (truth <= table[f"{kind}_upper"])
            assert covers.mean() >= (0.87 if metric == "smooth" else 0.95)  # 0.92 to 0.97 over many more data sets
            halfwidth = (table[f"{kind}_upper"] - table[f"{kind}_lower"]).mean() / 2
            assert halfwidth < 6 * table[kind].std()


def test_random_flags_gain_nothing():
    for table in simulated(flag_random, False).values():
        assert abs(table["gain"].mean()) < 3.5 * table["gain"].std() / np.sqrt(len(table))
        assert ((table["gain_lower"] <= 0) & (table["gain_upper"] >= 0)).mean() >= 0.95


def flag_unlikely(X, y, seed):
    p = cross_val_predict(LogisticRegression(), X, y, cv=3, method="predict_proba")[np.arange(len(y)), y]
    order = np.argsort(p)
    rows = order[: int((p < 0.3).sum())]
    return {"label errors": Flags(rows, 1 - y[rows], order)}


def test_removing_planted_errors_beats_removing_random_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1200, 4))
    truth = (X[:, 0] + X[:, 1] > 0).astype(int)
    y = np.where(rng.random(1200) < 0.25, 1 - truth, truth)
    knn = plan(flag_unlikely, fit=lambda X, y, seed: KNeighborsClassifier(3).fit(X, y))
    result = check(knn, X, y, splits=8).set_index("action")
    assert list(result.index) == ["remove", "relabel"]
    assert (result["gain_lower"] > 0).all()
    assert (result["change_lower"] > 0).all()
    assert (result["random_lower"] < 0.02).all()
    assert result["gain"].tolist() == pytest.approx((result["change"] - result["random_change"]).tolist())
    assert result["change"].tolist() == pytest.approx((result["after"] - result["before"]).tolist())
    curve = removal_curve(knn, X, y, splits=6)
    assert curve["fraction"].tolist() == [0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3]
    assert curve.loc[0, "flagged"] == curve.loc[0, "random"] == curve.loc[0, "flagged_upper"]
    last = curve.set_index("fraction").loc[0.2]
    assert last["flagged_lower"] > last["random"]


def test_flags_never_see_the_evaluation_part():
    X, y = noisy(100, np.random.default_rng(0))
    seen, fitted, scored = [], [], []

    def flag(X, y, seed):
        seen.append({tuple(x) for x in X})
        return flag_far(X, y, seed)

    def fit(X, y, seed):
        fitted.append({tuple(x) for x in X})
        return centroids(X, y, seed)

    def score(model, X, y):
        scored.append({tuple(x) for x in X})
        return accuracy(model, X, y)

    run_split(plan(flag, fit, scores={"accuracy": score}), X, y, 0)
    assert (len(seen[0]), len(scored[0])) == (80, 20)
    assert all(not (s & seen[0]) for s in scored)
    assert all(f <= seen[0] for f in fitted)


def test_a_split_depends_on_seed_and_number_alone():
    X, y = noisy(120, np.random.default_rng(0))
    p = plan(flag_random)
    first = [run_split(p, X, y, r, seed=4) for r in (0, 1, 2)]
    again = [run_split(p, X, y, r, seed=4) for r in (2, 0)]
    assert first[2] == again[0]
    assert first[0] == again[1]
    assert first[0] != first[1]
    assert first[0] != run_split(p, X, y, 0, seed=5)
    assert all(isinstance(v, (int, float)) for v in first[0].values())


def test_numbers_by_hand():
    """Five rows trained on, none random: what is refitted, what is compared."""
    X, y = np.arange(10.0)[:, None], np.arange(10.0)

    class Mean:
        def __init__(self, y):
            self.y = y

    sums = {"total": lambda model, X, y: model.y.sum(), "rows": lambda model, X, y: len(model.y)}

    def flag(X, y, seed):
        return {"high": Flags(np.flatnonzero(y >= 8), np.zeros((y >= 8).sum()))}

    outcome = run_split(plan(flag, lambda X, y, seed: Mean(y), scores=sums, fractions=()), X, y, 3)
    kept = outcome["total|before"]
    high = int(outcome["high|remove|rows"])
    assert outcome["rows|high|remove|after"] == 8 - high
    assert outcome["rows|high|remove|random"] == 8 - high
    assert outcome["rows|high|relabel|after"] == 8
    assert outcome["total|high|remove|after"] == outcome["total|high|relabel|after"] < kept
    row = summarise([outcome, outcome]).query("metric == 'rows' and action == 'remove'").iloc[0]
    assert (row["change"], row["gain"], row["rows"], row["splits"], row["failed"]) == (-high, 0, high, 2, 0)


def test_the_interval_is_that_of_nadeau_and_bengio():
    d = np.array([0.1, 0.3, 0.2, 0.0, 0.4])
    mean, lower, upper = interval(d, 0.25)
    half = 2.776445 * np.sqrt((1 / 5 + 0.25) * 0.025)
    assert (mean, lower, upper) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert interval(d[:1], 0.25) == (0.1, -np.inf, np.inf)


def test_failed_refits_are_reported_and_not_counted_as_zero():
    X, y = noisy(60, np.random.default_rng(0))

    def flag(X, y, seed):  # in about half of the splits: a whole class
        many = seed % 2
        return {"a class": Flags(np.flatnonzero(y == 1) if many else np.arange(3))}

    with pytest.warns(ProponentWarning, match="only one class is left"):
        row = check(plan(flag, actions=("remove",)), X, y, splits=8).iloc[0]
    assert 1 <= row["failed"] <= 7
    assert row["splits"] == 8 - row["failed"]
    assert np.isfinite(row["gain"])
    assert row["after"] > 0.4
    with pytest.warns(ProponentWarning):
        row = check(
            plan(lambda X, y, s: {"a class": Flags(np.flatnonzero(y))}, actions=("remove",)), X, y, splits=2
        ).iloc[0]
    assert (row["splits"], row["failed"]) == (0, 2)
    assert np.isnan(row["gain"])


def test_nothing_flagged_changes_nothing():
    X, y = noisy(60, np.random.default_rng(0))
    row = check(plan(lambda X, y, seed: {"none": Flags(np.empty(0, dtype=int))}), X, y, splits=3).iloc[0]
    assert (row["rows"], row["change"], row["gain"], row["gain_lower"], row["gain_upper"]) == (0, 0, 0, 0, 0)


def test_a_ranking_that_ends_early_ends_the_curve():
    X, y = noisy(100, np.random.default_rng(0))
    p = plan(lambda X, y, seed: {"few": Flags(np.arange(9), ranking=np.arange(9))})
    assert removal_curve(p, X, y, splits=2)["fraction"].tolist() == [0, 0.025, 0.05, 0.1]


def test_several_scores_kinds_and_containers():
    X, y = noisy(200, np.random.default_rng(0))
    names = np.array(["no", "yes"])[y]

    def flag(X, y, seed):
        return {"first": Flags(np.arange(5), np.array(["no"] * 5)), "last": Flags(np.arange(len(y) - 5, len(y)))}

    scores = {"accuracy": accuracy, "balanced accuracy": balanced_accuracy, "minus log loss": minus_log_loss}
    fit = lambda X, y, seed: LogisticRegression().fit(X, y)  # noqa: E731
    tables = []
    for inputs in (X, sparse.csr_array(X), pd.DataFrame(X)):
        outcomes = [run_split(plan(flag, fit, scores=scores), inputs, names, r) for r in range(2)]
        tables.append(summarise(outcomes))
        assert summarise_curve(outcomes, "accuracy").empty
    assert len(tables[0]) == 3 * 3
    assert set(zip(tables[0]["what"], tables[0]["action"], strict=True)) == {
        ("first", "remove"),
        ("first", "relabel"),
        ("last", "remove"),
    }
    pd.testing.assert_frame_equal(tables[0], tables[2])
    assert np.allclose(tables[0]["before"], tables[1]["before"], atol=1e-3)
    model = fit(X, names, 0)
    assert minus_log_loss(model, X, np.array(["what"] * 200)) == pytest.approx(np.log(1e-15))


def test_regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    y = X @ np.ones(3) + 0.3 * rng.normal(size=200)
    y[:20] += 20

    def flag(X, y, seed):
        return {"outliers": Flags(np.argsort(-y)[:16])}

    p = plan(flag, lambda X, y, seed: Ridge().fit(X, y), scores={"R²": r2, "−MAE": minus_mae}, fractions=())
    result = check(p, X, y, evaluation=(X[20:], y[20:])).set_index("metric")
    assert (result["gain_lower"] > 0).all()


def test_every_class_keeps_its_share():
    y = np.array([0] * 95 + [1] * 5)
    counts = []

    def flag(X, y, seed):
        counts.append(np.bincount(y).tolist())
        return {}

    for r in range(5):
        run_split(plan(flag, lambda X, y, seed: None, scores={}), np.zeros((100, 1)), y, r)
    assert all(c in ([76, 4], [75, 4], [76, 3], [77, 4], [76, 5], [75, 5]) for c in counts)


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="train_share"):
        plan(flag_random, train_share=1.0)
    with pytest.raises(InputError, match=r"a\|b"):
        run_split(plan(lambda X, y, seed: {"a|b": Flags(np.arange(2))}), *noisy(50, np.random.default_rng(0)), 0)
