"""Data-OOB against an explicit loop, and what may not change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_diabetes, load_digits
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from proponent.attribution import Values
from proponent.errors import FingerprintMismatch, InputError, ProponentError, ProponentWarning, UnsupportedModel
from proponent.examples import Examples
from proponent.methods.data_oob import DataOOB
from proponent.retrain.maps import pmap, tmap

Array = np.ndarray[Any, np.dtype[Any]]


def digits(n: int = 200) -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    return x[:n], y[:n]


def bags(n: int, estimators: int, seed: int = 0) -> list[Array]:
    return [np.random.default_rng([seed, b]).integers(n, size=n) for b in range(estimators)]


def test_equals_an_explicit_loop_over_nearest_neighbour_bags() -> None:
    x, y = digits(60)
    agreed: list[list[float]] = [[] for _ in y]
    for bag in bags(60, 30):
        for i in sorted(set(range(60)) - set(bag.tolist())):
            distance = ((x[bag] - x[i]) ** 2).sum(axis=1)
            agreed[i].append(float(y[bag][distance.argmin()] == y[i]))
    values = DataOOB(estimators=30).fit(KNeighborsClassifier(1, algorithm="brute"), (x, y)).values()
    np.testing.assert_allclose(values.value, [np.mean(a) for a in agreed], atol=1e-15)
    assert values.dataset["count"].values.tolist() == [len(a) for a in agreed]


def test_count_weighted_mean_is_the_mean_out_of_bag_accuracy() -> None:
    x, y = digits(80)
    correct, rows = 0, 0
    for bag in bags(80, 25):
        out = np.setdiff1d(np.arange(80), bag)
        correct += int((GaussianNB().fit(x[bag], y[bag]).predict(x[out]) == y[out]).sum())
        rows += len(out)
    values = DataOOB(estimators=25).fit(GaussianNB(), (x, y)).values()
    assert np.average(values.value, weights=values.dataset["count"]) == pytest.approx(correct / rows, abs=1e-14)


def test_regression_is_minus_the_squared_error_with_its_standard_error() -> None:
    x, y = (a[:50] for a in load_diabetes(return_X_y=True))
    errors: list[list[float]] = [[] for _ in y]
    for bag in bags(50, 40):
        model = LinearRegression().fit(x[bag], y[bag])
        for i in np.setdiff1d(np.arange(50), bag):
            errors[i].append(-float((y[i] - model.predict(x[i : i + 1])[0]) ** 2))
    values = DataOOB(estimators=40).fit(LinearRegression(), (x, y)).values()
    np.testing.assert_allclose(values.value, [np.mean(e) for e in errors], rtol=1e-9)
    expected = [np.std(e, ddof=1) / np.sqrt(len(e)) for e in errors]
    np.testing.assert_allclose(values.dataset["stderr"], expected, rtol=1e-7)


def test_flipped_labels_have_the_lowest_values() -> None:
    x, y = digits(400)
    rng = np.random.default_rng(0)
    flipped = rng.random(400) < 0.1
    noisy = np.where(flipped, (y + rng.integers(1, 10, 400)) % 10, y)
    values = DataOOB(estimators=60).fit(DecisionTreeClassifier(), (x, noisy)).values()
    assert roc_auc_score(flipped, -values.value) > 0.9


def same_bits(a: Values, b: Values) -> bool:
    return all(a.dataset[v].values.tobytes() == b.dataset[v].values.tobytes() for v in ("value", "stderr", "count"))


def test_workers_back_ends_and_string_labels_change_no_bit() -> None:
    x, y = digits(100)
    model = make_pipeline(StandardScaler(), DecisionTreeClassifier(max_features=5))
    spec = DataOOB(estimators=25, soft=True)
    one = spec.fit(model, (x, y)).values()
    assert same_bits(one, DataOOB(estimators=25, soft=True, workers=2).fit(model, (x, y)).values())
    with joblib.parallel_config("threading", n_jobs=2):
        assert same_bits(one, spec.fit(model, (x, y)).values())
    assert same_bits(one, spec.fit(model, (x, np.array([f"class {c}" for c in y]))).values())
    assert same_bits(one, spec.fit(model, (x, y.astype(str).astype(object))).values())
    assert not same_bits(one, DataOOB(estimators=25, soft=True, seed=1).fit(model, (x, y)).values())


def test_more_bootstraps_go_on_from_fewer() -> None:
    x, y = digits(80)
    few = DataOOB(estimators=40).fit(GaussianNB(), (x, y)).values()
    many = DataOOB(estimators=41).fit(GaussianNB(), (x, y)).values()
    difference = many.dataset["count"].values - few.dataset["count"].values
    assert difference.sum() == 80 - len(np.unique(bags(80, 41)[40]))


def test_a_bag_without_the_class_counts_as_wrong_and_as_probability_zero() -> None:
    x, y = np.arange(12.0)[:, None], np.array(["rare"] + ["common", "other"] * 5 + ["common"])
    lacking = [0 not in bag for bag in bags(12, 80)]
    for soft in (False, True):
        values = DataOOB(estimators=80, soft=soft).fit(GaussianNB(var_smoothing=1.0), (x, y)).values()
        assert values.value[0] == 0  # "rare" is out of bag exactly where the model does not know it
        assert int(values.dataset["count"][0]) == sum(lacking)
    assert values.value[1:].max() > 0.3


def test_standard_error_stays_positive_where_all_draws_agree_and_covers() -> None:
    x, y = digits(50)
    truth = DataOOB(estimators=400, seed=99).fit(GaussianNB(), (x, y)).values().value
    covered = []
    for seed in range(6):
        short = DataOOB(estimators=40, seed=seed).fit(GaussianNB(), (x, y)).values()
        stderr = short.dataset["stderr"].values
        assert (stderr[short.value == 1] > 0).all() and (short.value == 1).any()
        covered.append(np.abs(short.value - truth) <= 2 * stderr)
    assert 0.9 < np.mean(covered) < 0.99


def test_sample_weights_reach_the_fits() -> None:
    x, y = np.zeros((30, 1)), np.array(["light", "heavy"] * 15)
    train = Examples.of((x, y), weights=np.where(y == "heavy", 10.0, 0.1))
    values = DataOOB(estimators=30).fit(DummyClassifier(), train).values()
    assert values.value.tolist() == (y == "heavy").astype(float).tolist()


class Moody(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Refuses bags whose first row's label is 0; predicts a column, not a row."""

    def fit(self, x: Array, y: Array) -> Moody:
        if y[0] == 0:
            raise RuntimeError("not today")
        return self

    def predict(self, x: Array) -> Array:
        return np.ones((len(x), 1), dtype=int)


def test_failed_fits_are_reported_and_never_counted_as_zero() -> None:
    x, y = np.zeros((20, 1)), np.array([0, 1] * 10)
    with pytest.warns(ProponentWarning, match="bootstraps failed and are left out; .* RuntimeError: not today"):
        fitted = DataOOB(estimators=60).fit(Moody(), (x, y))
    refused = [b for b, bag in enumerate(bags(20, 60)) if y[bag.min()] == 0]
    assert [b for b, _ in fitted.failed] == refused
    assert fitted.values().value.tolist() == y.tolist()
    with pytest.raises(ProponentError, match="each of 5 bootstraps, the first: RuntimeError: not today"):
        DataOOB(estimators=5).fit(Moody(), (x, np.array([0, 0, 0, 0, 0, 0, 0, 1] + [1, 2] * 6)))


def test_a_ledger_keeps_the_bootstraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = digits(60)
    for soft in (False, True):
        whole = DataOOB(estimators=30, soft=soft).fit(GaussianNB(), (x, y)).values()
        DataOOB(estimators=20, soft=soft).fit(GaussianNB(), (x, y), ledger=tmp_path / str(soft))
        fits = []
        real = GaussianNB.fit
        monkeypatch.setattr(GaussianNB, "fit", lambda *given, fits=fits, real=real: fits.append(1) or real(*given))
        more = DataOOB(estimators=30, soft=soft).fit(GaussianNB(), (x, y), ledger=tmp_path / str(soft)).values()
        monkeypatch.undo()
        assert same_bits(whole, more) and len(fits) == 10
    with pytest.raises(FingerprintMismatch, match="another recipe"):
        DataOOB(soft=True).fit(GaussianNB(), (x, y), ledger=tmp_path / "False")


def test_never_out_of_bag_is_nan_with_a_warning() -> None:
    x, y = digits(40)
    with pytest.warns(ProponentWarning, match="never out of bag"):
        values = DataOOB(estimators=1).fit(DummyClassifier(), (x, y)).values()
    never = np.isin(np.arange(40), bags(40, 1)[0])
    np.testing.assert_array_equal(np.isnan(values.value), never)
    np.testing.assert_array_equal(np.isnan(values.dataset["stderr"]), never)


def test_takes_tables_texts_and_sparse_rows() -> None:
    x, y = digits(60)
    dense = DataOOB(estimators=20).fit(GaussianNB(), (x, y)).values()
    table = pd.DataFrame(x, columns=[f"pixel {j}" for j in range(64)], index=[f"r{i}" for i in range(60)])
    found = DataOOB(estimators=20).fit(GaussianNB(), (table, y)).values()
    assert found.dataset["train"].values[1] == "r1" and np.array_equal(found.value, dense.value)
    tree = DecisionTreeClassifier(max_depth=3)
    rows = DataOOB(estimators=20).fit(tree, (sparse.coo_array(x), y)).values()
    np.testing.assert_allclose(rows.value, DataOOB(estimators=20).fit(tree, (x, y)).values().value)
    texts = ["good film", "bad film", "good play", "bad play"] * 5
    model = make_pipeline(CountVectorizer(), LogisticRegression())
    values = DataOOB(estimators=20, soft=True).fit(model, (texts, ["yes", "no"] * 10)).values()
    assert values.value.min() > 0.5


def test_leaves_the_estimator_alone() -> None:
    x, y = digits(40)
    model = DecisionTreeClassifier(random_state=7)
    DataOOB(estimators=20).fit(model, (x, y))
    assert model.random_state == 7 and not hasattr(model, "tree_")


def test_wrong_input_is_refused() -> None:
    x, y = digits(40)
    with pytest.raises(InputError, match="without labels"):
        DataOOB().fit(GaussianNB(), x)
    with pytest.raises(InputError, match="at least two"):
        DataOOB().fit(GaussianNB(), (x[:1], y[:1]))
    with pytest.raises(InputError, match="estimators=0"):
        DataOOB(estimators=0)
    with pytest.raises(UnsupportedModel, match="pass soft=False"):
        DataOOB(soft=True).fit(SVC(), (x, y))
    with pytest.raises(UnsupportedModel, match="fit, predict and get_params"):
        DataOOB().fit(object(), (x, y))


def test_maps_keep_order_and_pass_errors_on() -> None:
    assert list(pmap(abs, range(-5, 0), "sizes", workers=1)) == [5, 4, 3, 2, 1]
    assert list(tmap(abs, range(-500, 0), workers=3)) == list(range(500, 0, -1))
    with pytest.raises(ZeroDivisionError):
        list(tmap(lambda d: 1 // d, [1, 0], workers=2))
    with pytest.raises(ZeroDivisionError):
        list(pmap(lambda d: 1 // d, [1, 0], "quotients"))
