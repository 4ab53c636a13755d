"""Label errors that were planted are found, clean labels are left alone, and neither names nor order matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.optimize import approx_fprime
from sklearn.datasets import load_digits, load_iris, make_regression
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from proponent.applications import label_noise, outliers
from proponent.applications.label_errors import LabelErrors, find_label_errors
from proponent.applications.label_noise import fit_label_noise, label_error_scores
from proponent.applications.out_of_sample import assign_folds, keys, out_of_sample
from proponent.errors import InputError
from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]
LINEAR = [LogisticRegression(C=0.3, max_iter=300)]


def digits(rows: int = 900) -> tuple[Array, Array]:
    X, y = load_digits(return_X_y=True)
    return StandardScaler().fit_transform(X)[:rows], y[:rows]


def planted(y: Array, rate: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
    random, classes = np.random.default_rng(seed), int(y.max()) + 1
    chosen = random.permutation(len(y))[: round(rate * len(y))]
    given, wrong = y.copy(), np.zeros(len(y), bool)
    given[chosen] = (y[chosen] + random.integers(1, classes, len(chosen))) % classes
    wrong[chosen] = True
    return given, wrong


def blobs(n: int = 600, apart: float = 3.0, seed: int = 0) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    y = (random.random(n) < 0.4).astype(int)
    X = random.normal(size=(n, 5))
    X[:, 0] += apart * y
    return X, y


def wrong(found: LabelErrors) -> Array:
    return found.table["wrong"].to_numpy()


@pytest.fixture(scope="module")
def on_digits() -> tuple[Array, Array, LabelErrors]:
    X, y = digits()
    given, where = planted(y)
    return y, where, find_label_errors((X, given), estimators=LINEAR)


def test_planted_errors_come_first(on_digits: tuple[Array, Array, LabelErrors]) -> None:
    _, where, found = on_digits
    assert roc_auc_score(where, wrong(found)) > 0.99
    first = np.argsort(-wrong(found))[: where.sum()]
    assert where[first].mean() > 0.88


def test_refits_that_trust_suspects_less_beat_one_pass() -> None:
    X, y = digits()
    given, where = planted(y)
    loose = [LogisticRegression(max_iter=300)]
    one_pass, refitted = (wrong(find_label_errors((X, given), estimators=loose, rounds=r)) for r in (0, 2))
    assert roc_auc_score(where, refitted) > roc_auc_score(where, one_pass) + 0.002
    assert where[np.argsort(-refitted)[: where.sum()]].mean() > 0.94  # 0.92 where the refits trust all rows alike


def test_flags_are_mostly_right_and_suggest_the_true_label(on_digits: tuple[Array, Array, LabelErrors]) -> None:
    y, where, found = on_digits
    table = found.table
    flagged = table["flagged"].to_numpy()
    assert where[flagged].mean() > 0.85 and where[flagged].sum() > 0.8 * where.sum()
    assert (table["suggested"].to_numpy()[flagged & where] == y[flagged & where]).mean() > 0.85
    assert (table["suggested"] != table["label"]).all()
    assert list(found.flagged()["wrong"]) == sorted(found.flagged()["wrong"], reverse=True)


def test_scores_are_probabilities(on_digits: tuple[Array, Array, LabelErrors]) -> None:
    _, where, found = on_digits
    assert abs(found.rate - 0.1) < 0.02
    assert wrong(found).min() >= 0 and wrong(found).max() <= 1
    assert abs(np.mean((wrong(found) - where) ** 2)) < 0.03
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-9)
    assert found.classes == tuple(range(10))


def test_flips_of_one_class_only_are_told_from_flips_of_all() -> None:
    X, y = blobs(3000, apart=5.0)
    random = np.random.default_rng(1)
    given = np.where((y == 1) & (random.random(len(y)) < 0.25), 0, y)
    P = out_of_sample(LINEAR, X, given, assign_folds(keys(np.arange(len(y)), 0), given, 5))
    rates = fit_label_noise(P, given).rates
    assert abs(rates[1] - 0.25) < 0.06 and rates[0] < 0.03


def test_clean_labels_are_left_alone() -> None:
    for X, y in (digits(), blobs(apart=1.0), load_iris(return_X_y=True)):
        found = find_label_errors((X, y), estimators=LINEAR)
        assert found.table["flagged"].mean() < 0.01
        assert found.rate < 0.03


def test_labels_that_cannot_be_predicted_are_not_flagged() -> None:
    random = np.random.default_rng(0)
    found = find_label_errors((random.normal(size=(400, 5)), random.integers(0, 2, 400)), estimators=LINEAR)
    assert not found.table["flagged"].any()


def test_the_same_seed_gives_the_same_bits() -> None:
    X, y = blobs()
    given, _ = planted(y)
    once, again = (wrong(find_label_errors((X, given), estimators=LINEAR, seed=3)) for _ in range(2))
    assert (once == again).all()
    assert not np.array_equal(once, wrong(find_label_errors((X, given), estimators=LINEAR, seed=4)))


def test_scores_follow_the_rows_wherever_they_stand() -> None:
    X, y = blobs(200)
    given, _ = planted(y)
    ids = np.array([f"row {i}" for i in range(len(y))])
    order = np.random.default_rng(5).permutation(len(y))
    straight = find_label_errors(Examples(X, ids, given))
    mixed = find_label_errors(Examples(X[order], ids[order], given[order]))
    assert (mixed.table["row"].to_numpy() == ids[order]).all()
    assert (wrong(mixed) == wrong(straight)[order]).all()
    assert mixed.probabilities is not None and straight.probabilities is not None
    assert (mixed.probabilities == straight.probabilities[order]).all()


def test_what_the_classes_are_called_does_not_matter() -> None:
    X, y = digits(400)
    given, _ = planted(y)
    names = np.array(["q", "b", "z", "a", "m", "c", "y", "d", "x", "e"])
    numbers, words = (find_label_errors((X, g), estimators=LINEAR) for g in (given, names[given]))
    assert (wrong(numbers) == wrong(words)).all()
    assert (names[numbers.table["suggested"].to_numpy()] == words.table["suggested"].to_numpy()).all()
    assert words.classes == tuple(sorted(names))
    assert words.probabilities is not None and numbers.probabilities is not None
    assert (words.probabilities[:, words.classes.index("q")] == numbers.probabilities[:, 0]).all()


def test_sparse_and_dense_features_agree() -> None:
    X, y = blobs()
    given, _ = planted(y)
    dense, thin = (find_label_errors((F, given), estimators=LINEAR) for F in (X, sparse.csr_matrix(X)))
    np.testing.assert_allclose(wrong(dense), wrong(thin), atol=1e-3)
    assert find_label_errors((sparse.csr_matrix(X), given)).rate > 0.03  # the default panel takes sparse features


def test_classes_of_few_rows_are_not_judged_and_hurt_nobody() -> None:
    X, y = blobs()
    given, where = planted(y)
    names = np.array(["no", "yes"])[given].astype(object)
    names[[0, 1, 2]] = ["rare", "rare", "single"]
    found = find_label_errors((X, names.astype(str)), estimators=LINEAR)
    assert not found.table["flagged"][:3].any()
    assert "rare, single" in found.notes[0]
    assert np.isfinite(wrong(found)).all()
    assert roc_auc_score(where[3:], wrong(found)[3:]) > 0.85


def test_rows_of_weight_zero_teach_nothing_but_are_judged() -> None:
    X, y = blobs(apart=5.0)
    given, weights = y.copy(), np.ones(len(y))
    ignored = np.flatnonzero(y == 1)[:150]
    given[ignored], weights[ignored] = 0, 0.0
    found = find_label_errors(Examples(X, np.arange(len(y)), given, weights=weights), estimators=LINEAR)
    assert found.rate < 0.02  # among the rows that count
    assert found.probabilities is not None and (found.probabilities[ignored, 1] > 0.5).mean() > 0.9


def test_models_without_weights_leave_suspects_out() -> None:
    X, y = blobs(apart=4.0)
    given, where = planted(y)
    for model in (KNeighborsClassifier(15), make_pipeline(StandardScaler(), LogisticRegression())):
        assert roc_auc_score(where, wrong(find_label_errors((X, given), estimators=[model]))) > 0.9


def test_an_untrusted_row_does_not_teach_models_without_weights() -> None:
    X, y = np.repeat([0.0, 1.0, 0.1, 0.9], 3)[:, None], np.repeat([0, 1, 1, 1], 3)
    fold, keep = np.tile([0, 1, 2], 4), np.repeat([1.0, 1.0, 0.1, 1.0], 3)
    at = 6  # its two equals in the other folds are not trusted, so the next rows, of class 0, decide
    for trust, expected in ((None, 1), (keep, 0)):
        assert out_of_sample([KNeighborsClassifier(1)], X, y, fold, keep=trust)[0][at].argmax() == expected


def test_heavy_tails_are_not_errors() -> None:
    X, _ = make_regression(1000, 4, random_state=2)
    y = X.sum(axis=1) + np.random.default_rng(0).standard_t(4, 1000)
    assert find_label_errors((X, y), estimators=[LinearRegression()]).table["flagged"].sum() <= 5


def test_out_of_sample_predictions_never_saw_their_row() -> None:
    random = np.random.default_rng(0)
    X, y = random.normal(size=(60, 3)), random.integers(0, 2, 60)
    P = out_of_sample([KNeighborsClassifier(1)], X, y, assign_folds(np.arange(60), y, 5))[0]
    assert 0.2 < (P.argmax(axis=1) == y).mean() < 0.8  # the nearest row of a row that was seen is itself: 1.0


def test_folds_spread_every_class_evenly() -> None:
    codes = np.repeat([0, 1, 2], [50, 13, 4])
    fold = assign_folds(keys(np.arange(67), 1), codes, 5)
    table = pd.crosstab(codes, fold)
    assert int(np.ptp(table.to_numpy(), axis=1).max()) <= 1
    assert np.ptp(np.bincount(fold)) <= 1


def test_gradient_of_the_noise_model() -> None:
    random = np.random.default_rng(0)
    logs = random.normal(size=(2, 40, 3))
    codes, weight = random.integers(0, 3, 40), random.dirichlet(np.ones(40))
    v = np.concatenate([[0.4, 1.1], random.normal(size=3), random.normal(size=3) - 2])
    numeric = approx_fprime(v, lambda u: label_noise._objective(u, logs, codes, weight)[0], 1e-7)
    np.testing.assert_allclose(label_noise._objective(v, logs, codes, weight)[1], numeric, atol=1e-5)


def test_outlying_numbers_are_found_and_put_right() -> None:
    X, y = make_regression(500, 8, noise=5.0, random_state=0)
    at = np.random.default_rng(0).permutation(500)[:15]
    given = y.copy()
    given[at] += np.where(np.arange(15) % 2, 400.0, -400.0)
    found = find_label_errors((X, given))
    flagged = np.flatnonzero(found.table["flagged"])
    assert set(at) <= set(flagged) and len(flagged) <= 17
    assert np.abs(found.table["suggested"].to_numpy()[at] - y[at]).max() < 60
    assert (np.sign(found.table["residual"].to_numpy()[at]) == np.where(np.arange(15) % 2, 1, -1)).all()


def test_clean_numbers_are_left_alone_and_order_does_not_matter() -> None:
    X, y = make_regression(300, 5, noise=5.0, random_state=1)
    ids = np.arange(300)
    found = find_label_errors(Examples(X, ids, y), estimators=[LinearRegression()])
    assert found.table["flagged"].sum() <= 2 and found.classes == () and found.probabilities is None
    order = np.random.default_rng(0).permutation(300)
    mixed = find_label_errors(Examples(X[order], ids[order], y[order]), estimators=[LinearRegression()])
    assert (wrong(mixed) == wrong(found)[order]).all()
    assert np.std(found.table["residual"]) == pytest.approx(1.0, abs=0.15)


def test_leverage_is_the_diagonal_of_the_hat_matrix() -> None:
    X = np.random.default_rng(0).normal(size=(50, 4))
    hat = X @ np.linalg.inv(X.T @ X) @ X.T
    np.testing.assert_allclose(outliers.leverage(X), np.diag(hat), rtol=2e-3)
    np.testing.assert_allclose(outliers.leverage(sparse.csr_matrix(X)), outliers.leverage(X))
    assert outliers.leverage(sparse.csr_matrix((3, 5000))).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda X, y: (np.where(X > 2, np.nan, X), y), "not finite"),
        (lambda X, y: (X.astype(str), y), "encode"),
        (lambda X, y: (X, np.zeros(len(y), int)), "at least two classes"),
        (lambda X, y: (X[:6], y[:6]), "at least 2 · folds rows"),
        (lambda X, y: (X, np.where(y == 1, np.nan, 0.5)), "missing labels"),
        (lambda X, y: (X, np.arange(len(y))), "per class"),
        (lambda X, y: Examples(X, np.arange(len(y))), "examples without labels"),
    ],
)
def test_wrong_input_is_refused_in_words(change: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_label_errors(change(*blobs(100)))


def test_unfit_models_and_probabilities_are_refused() -> None:
    with pytest.raises(InputError, match="predict_proba"):
        find_label_errors(blobs(100), estimators=[LinearSVC()])
    with pytest.raises(InputError, match="one column per class"):
        label_error_scores(np.full((5, 2), 0.5), np.arange(5))
