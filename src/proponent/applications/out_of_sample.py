"""Predictions for rows that the predicting model was not fitted on."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import clone, is_classifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils.validation import has_fit_parameter
from threadpoolctl import threadpool_limits

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

STRENGTHS = (2.0, 20.0)  # inverse weight decay of the linear members, for rows of mean squared norm 1
LEAST = 1e-6  # probabilities below are not believed
BOOSTED_NUMBERS = 20_000_000  # numbers in a dense matrix, times trees per round, up to which boosting is worth its time
SMALL = 1_000_000  # and up to which more and smaller steps are
HALF = 0.5
BINS = 63  # per feature; scikit-learn's weighted quantiles take about a third of a millisecond each


def keys(ids: Sequence[Any] | Array, seed: int) -> Array:
    """A random number per id that depends on the id and the seed alone, so that rows may come in any order.

    >>> bool((keys(["a", "b"], 0)[::-1] == keys(["b", "a"], 0)).all())
    True
    """
    salt = int(seed).to_bytes(16, "little", signed=True)
    digests = (hashlib.blake2b(str(i).encode(), digest_size=8, salt=salt).digest() for i in ids)
    return np.fromiter((int.from_bytes(d, "little") for d in digests), np.uint64, len(ids))


def assign_folds(order: Array, codes: Array, folds: int) -> Array:
    """A fold for each row, (n,), dealt out class by class in the order of the keys: every class is spread evenly.

    >>> assign_folds(np.arange(6), np.array([0, 0, 0, 0, 1, 1]), 2).tolist()
    [0, 1, 0, 1, 0, 1]
    """
    fold = np.empty(len(codes), np.intp)
    fold[np.lexsort((order, codes))] = np.arange(len(codes)) % folds
    return fold


def default_classifiers(X: Any, classes: int) -> list[Any]:
    """Two logistic regressions of different strength; with them boosted trees where the features are dense and not too many.

    The inverse weight decay is divided by the rows' mean squared norm, so that it means the same for any scale of features.
    """
    members: list[Any] = [LogisticRegression(C=c / _mean_squared_norm(X), tol=1e-3, max_iter=300) for c in STRENGTHS]
    work = X.shape[0] * X.shape[1] * max(classes - 1, 1)
    if not sparse.issparse(X) and work <= BOOSTED_NUMBERS:
        rounds = 40 if work <= SMALL else 25
        members.append(
            HistGradientBoostingClassifier(
                max_iter=rounds,
                learning_rate=6 / rounds,
                max_leaf_nodes=12,
                l2_regularization=1.0,
                early_stopping=False,
                max_bins=BINS,
            )
        )
    return members


def default_regressors(X: Any) -> list[Any]:
    """Ridge regression; with it boosted trees where the features are dense and not too many."""
    members: list[Any] = [Ridge(alpha=_mean_squared_norm(X), solver="lsqr" if sparse.issparse(X) else "auto")]
    if not sparse.issparse(X) and X.size <= BOOSTED_NUMBERS:
        members.append(HistGradientBoostingRegressor(max_iter=60, max_leaf_nodes=12, max_bins=63, early_stopping=False))
    return members


def out_of_sample(
    estimators: Sequence[Any], X: Any, y: Array, fold: Array, *, weights: Array | None = None, keep: Array | None = None
) -> Array:
    """Each estimator's predictions for each fold, by a copy fitted on the other folds.

    >>> X, y = np.array([[0.0], [0.2], [0.9], [1.0]]), np.array([0, 0, 1, 1])
    >>> P = out_of_sample([LogisticRegression(C=100)], X, y, np.array([0, 1, 0, 1]))
    >>> P.shape, P[0].argmax(axis=1).tolist()
    ((1, 4, 2), [0, 0, 1, 1])

    Args:
        estimators: scikit-learn classifiers with `predict_proba`, or regressors; they are copied, never fitted.
        X: (n, d) dense or CSR.
        y: (n,) class codes 0 … C−1 for classifiers, numbers for regressors.
        fold: (n,) the fold of each row.
        weights: (n,) sample weights ≥ 0; rows of weight 0 are predicted but not learned from.
        keep: (n,) probability that a row's label is right. It multiplies the weights; an estimator that takes no
            weights is fitted on the rows where it is at least 1/2.

    Returns:
        (members, n, C) probabilities, none below 1e-6, or (members, n) predictions.

    Raises:
        InputError: a classifier without `predict_proba`.
    """
    classify = is_classifier(estimators[0])
    for e in estimators:
        if classify and not hasattr(e, "predict_proba"):
            raise InputError(
                f"{type(e).__name__} without predict_proba", "classifiers that give probabilities", "use one"
            )
    n = X.shape[0]
    weight = np.ones(n) if weights is None else np.asarray(weights, float)
    trust = np.ones(n) if keep is None else np.asarray(keep, float)
    shape = (len(estimators), n, int(y.max()) + 1) if classify else (len(estimators), n)
    result = np.full(shape, LEAST if classify else np.nan)
    # One OpenMP thread: boosted trees on small parts gain little from more, and on a busy machine waiting threads cost minutes.
    with threadpool_limits(1, user_api="openmp"):
        return _predict(estimators, X, y, fold, (weight, trust), result)


def _predict(
    estimators: Sequence[Any], X: Any, y: Array, fold: Array, weight_and_trust: tuple[Array, Array], result: Array
) -> Array:
    weight, trust = weight_and_trust
    for k in np.unique(fold):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        for m, estimator in enumerate(estimators):
            fitted = _fit(estimator, X[inside], y[inside], weight[inside], trust[inside])
            if is_classifier(estimator):
                result[m][np.ix_(outside, fitted.classes_)] = np.maximum(fitted.predict_proba(X[outside]), LEAST)
            else:
                result[m, outside] = fitted.predict(X[outside])
    return result


def _fit(estimator: Any, X: Any, y: Array, weight: Array, trust: Array) -> Any:
    weighted = has_fit_parameter(estimator, "sample_weight")
    rows = np.flatnonzero(weight > 0 if weighted else (weight > 0) & (trust >= HALF))
    if len(rows) == 0 or (is_classifier(estimator) and np.ptp(y[rows]) == 0):  # nothing left to tell apart
        rows = np.arange(len(y))
        weight, trust = np.ones(len(y)), np.ones(len(y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopped early is only a slightly other member
        combined = (weight * trust)[rows]
        if weighted and (combined != 1.0).any():
            return clone(estimator).fit(X[rows], y[rows], sample_weight=combined)
        return clone(estimator).fit(X[rows], y[rows])


def _mean_squared_norm(X: Any) -> float:
    squares = X.multiply(X).sum() if sparse.issparse(X) else np.einsum("ij,ij->", X, X)
    return max(float(squares) / X.shape[0], 1e-12)
