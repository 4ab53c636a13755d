"""Linear models of scikit-learn refitted on many subsets at once, each to its own exact optimum.

LogisticRegression (binary or multinomial), Ridge, RidgeClassifier and LinearRegression, alone or after a StandardScaler
that is fitted to each subset anew. What a model becomes depends on its subset only, to rounding: not on what else is
fitted with it. scikit-learn's own solvers stop earlier, at `tol` or `max_iter`; a subset without a finite optimum, or
where none is reached, is fitted by scikit-learn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from proponent.errors import InputError, UnsupportedModel
from proponent.examples import Examples
from proponent.retrain.newton_chains import optima
from proponent.retrain.newton_models import FittedClassifier, FittedRegression
from proponent.retrain.newton_models import measure_many as measure_many
from proponent.retrain.newton_problem import Family, Linear, read, split

Array = np.ndarray[Any, np.dtype[Any]]

WORK = 2e10
"""Operations of a batch, about a second's."""

LIGHT = (FittedClassifier, FittedRegression)
"""What `fit_many` gives, apart from what scikit-learn fitted."""


def why_not(estimator: Any, train: Examples) -> str | None:
    """Why `fit_many` does not take an estimator on a training set, in words; None where it does.

    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> train = Examples.of((np.eye(4), [0, 1, 0, 1]))
    >>> why_not(LogisticRegression(), train) is None, why_not(DecisionTreeClassifier(), train)
    (True, 'DecisionTreeClassifier')
    """
    try:
        _linear(estimator, train)
    except (UnsupportedModel, InputError) as error:
        return error.got
    return None


def supports(estimator: Any, train: Examples) -> bool:
    """Whether `fit_many` takes this estimator on this training set."""
    return why_not(estimator, train) is None


def batch_size(estimator: Any, train: Examples) -> int:
    """How many subsets to give `fit_many` at once: enough to go side by side, few enough to be shared among workers.

    Raises:
        UnsupportedModel: the estimator is not a linear model with a smooth L2 objective.
    """
    linear = _linear(estimator, train)
    (n, p), c = linear.design.x.shape, linear.main.loss.outputs
    return int(np.clip(WORK / (80 * n * c * (4 * p + 300)), 64, 2048))


def fit_many(estimator: Any, train: Examples, included: Array) -> list[Any]:
    """A fitted model for each subset; None where no finite optimum was reached, which is for scikit-learn to fit.

    >>> from sklearn.linear_model import LogisticRegression
    >>> train = Examples.of((np.arange(6.0)[:, None], [0, 0, 1, 0, 1, 1]))
    >>> half, whole = fit_many(LogisticRegression(), train, np.array([[1, 0, 1, 0, 1, 1], [1] * 6]))
    >>> whole.predict([[0.0], [5.0]]).tolist(), bool(half.intercept_[0] != whole.intercept_[0])
    ([0, 1], True)

    Args:
        estimator: one that `supports` says yes to; its parameters are read, it is never changed.
        train: the training examples.
        included: (s, n) how often each subset holds each training row.

    Raises:
        UnsupportedModel: the estimator is not a linear model with a smooth L2 objective.
    """
    linear = _linear(estimator, train)
    first: dict[bytes, int] = {}
    which = [first.setdefault(row.tobytes(), len(first)) for row in included]
    distinct = np.frombuffer(b"".join(first), dtype=included.dtype).reshape(len(first), -1)
    fitted = _fit_distinct(linear, distinct)
    return [fitted[at] for at in which]


def _fit_distinct(linear: Linear, included: Array) -> list[Any]:
    """A model for each subset, None where no optimum was reached."""
    counts = included.astype(np.float64)
    fitted: list[Any] = [None] * len(counts)
    for family, rows in _families(linear, counts):
        theta, optimal = optima(family, counts[rows])
        at = rows[optimal]
        for s, model in zip(at, linear.models(theta[optimal], counts[at]), strict=True):
            fitted[s] = model
    return fitted


def _families(linear: Linear, counts: Array) -> Iterator[tuple[Family, Array]]:
    """The problems that subsets pose, and which subsets pose each; subsets of one class pose none."""
    if linear.classes is None or len(linear.classes) == 2:
        yield linear.main, np.flatnonzero(linear.posed(counts))
        return
    present = linear.present(counts)
    several = present.sum(axis=1)
    yield linear.main, np.flatnonzero(several > 2)
    for pair in np.unique(present[several == 2], axis=0):
        yield linear.of_two(*np.flatnonzero(pair)), np.flatnonzero((present == pair).all(axis=1))


@dataclass(frozen=True)
class _Source:
    """An estimator and a training set, equal where both are the same in content."""

    fingerprint: str
    estimator: Any = field(compare=False)
    train: Examples = field(compare=False)


def _linear(estimator: Any, train: Examples) -> Linear:
    split(estimator)  # most estimators are turned away here, before the training set is hashed
    return _read(
        _Source(f"{type(estimator)} {estimator.get_params(deep=True)} {train.fingerprint()}", estimator, train)
    )


@functools.lru_cache(maxsize=4)
def _read(source: _Source) -> Linear:
    """Read once for all batches of a run: the optimum on all training rows comes with it."""
    return read(source.estimator, source.train)
