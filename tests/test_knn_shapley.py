"""KNN-Shapley against enumeration of all subsets, and what may not change it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from tests.truth.games import knn_game, shapley

from proponent.errors import InputError, ProponentWarning
from proponent.examples import Examples
from proponent.methods.knn_games import shapley_by_distance
from proponent.methods.knn_shapley import KNNShapley

Array = np.ndarray[Any, np.dtype[Any]]


def scores(spec: KNNShapley, train: Any, query: Any) -> Array:
    return np.asarray(spec.fit(train).score(query).dataset["score"])


@pytest.mark.parametrize("utility", ["soft", "fixed", "squared_error"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 12])
def test_equals_enumeration_of_all_subsets(utility: Any, n: int, k: int) -> None:
    rng = np.random.default_rng([n, k])
    # integer points on a small grid: many exact ties
    train, query = rng.integers(0, 3, (n, 2)).astype(float), rng.integers(0, 3, (2, 2)).astype(float)
    if utility == "squared_error":
        labels, targets = rng.normal(2, 3, n), rng.normal(1, 3, 2)
    else:
        labels, targets = rng.integers(0, 3, n), rng.integers(0, 3, 2)
        targets[0] = labels[0]
    found = scores(KNNShapley(k=k, utility=utility), (train, labels), (query, targets))
    classes = len(np.unique(labels))
    for q in range(2):
        game = knn_game(cdist(query, train)[q], labels, targets[q], k, utility, classes)
        np.testing.assert_allclose(found[q], shapley(game, n), rtol=0, atol=1e-12)


@given(
    st.integers(1, 60), st.integers(1, 80), st.integers(0, 2**31), st.sampled_from(["soft", "fixed", "squared_error"])
)
@settings(max_examples=60, deadline=None)
def test_values_sum_to_what_all_examples_are_worth(n: int, k: int, seed: int, utility: Any) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(3, n)) if utility == "squared_error" else rng.random((3, n)) < 0.4
    t = rng.normal(size=3)
    found = shapley_by_distance(y, k, utility, target=t, classes=4).sum(axis=1)
    top = y[:, : min(k, n)].sum(axis=1)
    worth = {"soft": top / min(k, n) - 1 / 4, "fixed": top / k, "squared_error": t**2 - (top / k - t) ** 2}[utility]
    np.testing.assert_allclose(found, worth, atol=1e-11)


def digits() -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    x, y = load_digits(return_X_y=True)
    return (x[:600], y[:600]), (x[600:700], y[600:700])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_orders_neighbours_as_distances_do(metric: Any) -> None:
    train, query = digits()
    order = np.argsort(cdist(query[0], train[0], metric), axis=1, kind="stable")
    matches = train[1][order] == query[1][:, None]
    expected = np.empty(order.shape)
    np.put_along_axis(expected, order, shapley_by_distance(matches, 5, "soft", classes=10), axis=1)
    found = scores(KNNShapley(k=5, metric=metric), train, query)
    # scipy's cosine splits ties of parallel rows by rounding; a euclidean distance of integers is exact
    assert np.abs(found - expected).max() < (1e-14 if metric == "euclidean" else 1e-6)


def test_zero_row_has_cosine_zero() -> None:
    train = ([[0.0, 0.0], [-1.0, 1e-3], [1.0, 1.0]], [1, 0, 0])
    found = scores(KNNShapley(k=1, utility="fixed", metric="cosine"), train, ([[1.0, 0.0]], [1]))
    game = knn_game(np.array([1.0, 2.0, 0.3]), np.array([1, 0, 0]), 1, 1, "fixed")
    np.testing.assert_allclose(found[0], shapley(game, 3), atol=1e-15)


def test_does_not_depend_on_chunks_threads_or_container() -> None:
    train, query = digits()
    at_once = scores(KNNShapley(), train, query)
    others = {
        "small chunks": scores(KNNShapley(memory=1), train, query),
        "one thread": scores(KNNShapley(workers=1), train, query),
        "float32": scores(KNNShapley(precision="float32"), train, query),
        "bytes": scores(KNNShapley(), (train[0].astype(np.uint8), train[1]), query),
        "sparse": scores(KNNShapley(), (sparse.csr_matrix(train[0]), train[1]), (sparse.coo_array(query[0]), query[1])),
        "sparse queries": scores(KNNShapley(), train, (sparse.csr_array(query[0]), query[1])),
        "table": scores(KNNShapley(), (pd.DataFrame(train[0]), train[1]), query),
        "images": scores(KNNShapley(), (train[0].reshape(-1, 8, 8), train[1]), query),
        "names": scores(KNNShapley(), (train[0], train[1].astype(str)), (query[0], query[1].astype(str))),
        "far from zero": scores(KNNShapley(), (train[0] + 2.0**40, train[1]), (query[0] + 2.0**40, query[1])),
    }
    for how, found in others.items():
        np.testing.assert_array_equal(found, at_once, err_msg=how)


def test_values_are_the_mean_over_queries_with_its_standard_error() -> None:
    train, query = digits()
    all_scores = scores(KNNShapley(), train, query)
    values = KNNShapley().fit(train).values(query)
    np.testing.assert_allclose(values.value, all_scores.mean(axis=0), atol=1e-16)
    expected = all_scores.std(axis=0, ddof=1) / np.sqrt(len(all_scores))
    np.testing.assert_allclose(values.dataset["stderr"], expected, rtol=1e-9)
    same = [KNNShapley(memory=m, workers=w).fit(train).values(query).value for m, w in ((1, 1), (1, 2), (2**30, 2))]
    assert all(np.array_equal(s, values.value) for s in same)
    assert np.isnan(KNNShapley().fit(train).values((query[0][:1], query[1][:1])).dataset["stderr"]).all()


def test_values_hold_neither_the_score_matrix_nor_its_distances() -> None:
    rng = np.random.default_rng(0)
    n, q = 5_000, 1_500  # a score matrix of 60 MB
    train, query = (rng.normal(size=(n, 3)), rng.integers(0, 2, n)), (rng.normal(size=(q, 3)), rng.integers(0, 2, q))
    fitted = KNNShapley(memory=4_000_000, workers=1).fit(train)
    tracemalloc.start()
    fitted.values(query)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000


def test_result_says_what_it_is() -> None:
    train, query = digits()
    found = KNNShapley(k=3).fit((pd.DataFrame(train[0], index=[f"r{i}" for i in range(600)]), train[1])).score(query)
    assert found.unit == "Shapley value of the KNN utility"
    assert found.dataset["score"].dims == ("query", "train")
    assert found.dataset["train"].to_numpy()[0] == "r0"
    assert '"utility": "soft"' in found.dataset.attrs["settings"]


def test_floating_point_labels_are_regression() -> None:
    fitted = KNNShapley().fit(([[0.0], [1.0]], [0.5, 1.5]))
    assert fitted.utility == "squared_error"
    assert KNNShapley().fit(([[0.0], [1.0]], [0, 1])).utility == "soft"


def test_labels_of_any_kind_and_labels_that_training_lacks() -> None:
    train = (np.arange(4.0)[:, None], np.array(["a", 1, "a", True], dtype=object))
    found = scores(KNNShapley(k=1, utility="fixed"), train, ([[0.0], [0.0]], np.array(["a", "new"], dtype=object)))
    assert found[0].sum() == pytest.approx(1) and not found[1].any()


def test_sample_weights_are_not_taken_silently() -> None:
    with pytest.warns(ProponentWarning, match="no sample weights"):
        KNNShapley().fit(Examples.of(([[0.0], [1.0]], [0, 1]), weights=[1.0, 2.0]))


def test_wrong_input_is_refused() -> None:
    good = ([[0.0, 1.0], [1.0, 2.0]], [0, 1])
    with pytest.raises(InputError, match="k=0"):
        KNNShapley(k=0)
    with pytest.raises(InputError, match="metric='manhattan'"):
        KNNShapley(metric="manhattan")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without labels"):
        KNNShapley().fit(np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"infinite features in \[1\]"):
        KNNShapley().fit(([[0.0], [np.nan]], [0, 1]))
    with pytest.raises(InputError, match=r"infinite features in \[0\]"):
        KNNShapley().fit(([[np.inf], [1.0]], [0, 1]))
    with pytest.raises(InputError, match="numbers, for squared_error"):
        KNNShapley(utility="squared_error").fit((good[0], ["a", "b"]))
    with pytest.raises(InputError, match="missing labels"):
        KNNShapley().fit(([[0.0], [1.0]], [0.0, np.nan]))
    with pytest.raises(InputError, match="encode the columns"):
        KNNShapley().fit((["a text", "another"], [0, 1]))
    with pytest.raises(InputError, match="1 features"):
        KNNShapley().fit(good).score(([[0.0]], [1]))
    with pytest.raises(InputError, match="the same labels"):
        KNNShapley().fit(good).score(([[0.0, 1.0]], ["1"]))
    with pytest.raises(InputError, match="no queries"):
        KNNShapley().fit(good).score((np.zeros((0, 2)), np.zeros(0, int)))
