"""Data-OOB: how well the bootstrap models that have not seen a training example predict it."""

from __future__ import annotations

import functools
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.base import clone, is_classifier, is_regressor

from proponent.attribution import Values
from proponent.errors import InputError, ProponentError, ProponentWarning, UnsupportedModel
from proponent.examples import Examples
from proponent.retrain.maps import pmap
from proponent.retrain.recipe import SklearnRecipe, random_states

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class DataOOB:
    """The mean out-of-bag agreement of each training example with models trained on bootstraps without it.

    ψ_i = Σ_b 1[i ∉ bag b] T(y_i, f_b(x_i)) / Σ_b 1[i ∉ bag b], with f_b fitted on n rows drawn with replacement, and
    T = 1[correct]; or the predicted probability of y_i (`soft`); or −(y_i − f_b(x_i))² where the estimator is a regressor.

    >>> from sklearn.tree import DecisionTreeClassifier
    >>> x, y = [[0.0], [0.1], [0.2], [0.9], [1.0], [1.1]], ["a", "a", "b", "b", "b", "b"]
    >>> values = DataOOB(estimators=50).fit(DecisionTreeClassifier(), (x, y)).values()
    >>> values.lowest(1)["id"].tolist()
    [2]

    Bootstrap b's rows, and every `random_state` of its model, depend on (seed, b) alone, and sums are taken in the order
    of b: the number of workers changes no bit, as long as the estimator itself is deterministic. An example is never out
    of bag with probability about exp(−0.37 · estimators).

    Args:
        estimators: bootstraps.
        seed: of the bootstraps and the models.
        soft: T is the predicted probability of the label; 0 where the bootstrap lacks the label's class.
        workers: models fitted at once; None takes what `joblib.parallel_config` says, or 1, in this process.

    Source: Kwon & Zou, Data-OOB: Out-of-bag Estimate as a Simple and Efficient Data Value, ICML 2023.
    """

    estimators: int = 200
    seed: int = 0
    soft: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.estimators < 1:
            raise InputError(f"estimators={self.estimators}", "at least one bootstrap", "pass estimators ≥ 1")

    def fit(self, recipe: Any, train: Any) -> FittedDataOOB:
        """Fit a clone of the estimator to every bootstrap, and add up the out-of-bag agreement.

        Args:
            recipe: a scikit-learn estimator or pipeline, or a recipe that has one as `.estimator`. It is not changed.
            train: anything that `Examples.of` takes, with labels. Sample weights go with their rows into the fits;
                the out-of-bag means are unweighted.

        Raises:
            InputError: labels are missing, or there are fewer than two examples.
            UnsupportedModel: `soft` without `predict_proba`, or with a regressor.
            ProponentError: every bootstrap failed.
        """
        start, train = time.perf_counter(), Examples.of(train)
        estimator = getattr(recipe, "estimator", recipe) if not hasattr(recipe, "predict") else recipe
        labels, measure = _labels(train), _measure(estimator, train, self.soft)
        inputs = train.inputs.tocsr() if sparse.issparse(train.inputs) else train.inputs
        work = functools.partial(_bootstrap, estimator, inputs, labels, train.weights, measure, self.seed)
        tally = _Tally.empty(len(train))
        failed: list[tuple[int, str]] = []
        for b, outcome in enumerate(pmap(work, range(self.estimators), "bootstraps", self.workers)):
            if isinstance(outcome, str):
                failed.append((b, outcome))
            else:
                tally = tally.with_draw(*outcome)
        _report(failed, self.estimators, tally.count, train)
        return FittedDataOOB(self, train, measure, tally, tuple(failed), time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class FittedDataOOB:
    """Data-OOB's finished bootstraps; made by `DataOOB.fit`.

    Args:
        failed: (bootstrap, what its error said) of the models that could not be fitted or did not predict; they are left
            out of every count.
    """

    spec: DataOOB
    train: Examples
    measure: str
    tally: _Tally
    failed: tuple[tuple[int, str], ...]
    seconds: float

    def values(self) -> Values:
        """ψ with `stderr` and `count`, the number of bootstraps that the example was out of; NaN where that is 0.

        `stderr` is the Monte Carlo error against infinitely many bootstraps of this same data, not the error against other
        data. Examples share bootstraps, so that errors of two examples are dependent: for a difference, their stderr do
        not add in squares. For 1[correct] it is the posterior standard deviation under a uniform prior, which stays above
        zero where all draws agree; otherwise the draws' standard deviation over √count, NaN for a single draw.
        """
        tally = self.tally
        facts = {
            "settings": asdict(self.spec) | {"measure": self.measure},
            "failed": [list(f) for f in self.failed],
            "seconds": self.seconds,
        }
        return Values.of(
            np.where(tally.count > 0, tally.mean, np.nan),
            train=self.train,
            method="DataOOB",
            unit=f"out-of-bag mean of {self.measure}",
            variables={"stderr": tally.stderr(binary=self.measure == CORRECT), "count": tally.count},
            attributes=facts,
        )


CORRECT = "1[the prediction is the label]"
PROBABILITY = "the predicted probability of the label"
SQUARED_ERROR = "minus the squared error"


@dataclass(frozen=True, eq=False)
class _Tally:
    """Count, mean and sum of squared deviations per example, updated one draw at a time (Welford 1962)."""

    count: Array
    mean: Array
    deviations: Array

    @classmethod
    def empty(cls, n: int) -> _Tally:
        return cls(np.zeros(n, np.int64), np.zeros(n), np.zeros(n))

    def with_draw(self, rows: Array, measured: Array) -> _Tally:
        count, mean, deviations = self.count.copy(), self.mean.copy(), self.deviations.copy()
        count[rows] += 1
        before = measured - mean[rows]
        mean[rows] += before / count[rows]
        deviations[rows] += before * (measured - mean[rows])
        return _Tally(count, mean, deviations)

    def stderr(self, *, binary: bool) -> Array:
        c = self.count
        if binary:
            p = (self.mean * c + 1) / (c + 2)
            return np.where(c > 0, np.sqrt(p * (1 - p) / (c + 3)), np.nan)
        return np.where(c > 1, np.sqrt(self.deviations / np.maximum(c - 1, 1) / np.maximum(c, 1)), np.nan)


def _bootstrap(
    estimator: Any, inputs: Any, labels: Array, weights: Array | None, measure: str, seed: int, b: int
) -> tuple[Array, Array] | str:
    """The rows out of bag b and what was measured on them, or what the error said."""
    n = len(labels)
    rng = np.random.default_rng([seed, b])
    bag = rng.integers(n, size=n)
    out = np.setdiff1d(np.arange(n), bag)
    if len(out) == 0:
        return out, np.zeros(0)
    own = None if weights is None else weights[bag]
    drawn = Examples.of((_rows(inputs, bag), labels[bag]), ids=np.arange(n), weights=own)
    try:
        model = SklearnRecipe(_seeded(clone(estimator), rng)).fit(drawn)
        measured = _measured(model, _rows(inputs, out), labels[out], measure)
    except Exception as error:  # whatever the user's estimator raises is a fact about that bootstrap, reported as such
        return f"{type(error).__name__}: {error}"
    return (out, measured) if np.isfinite(measured).all() else "the predictions are not finite"


def _seeded(model: Any, rng: np.random.Generator) -> Any:
    """The model with all its random states, nested ones too, drawn from the bootstrap's generator."""
    states = {name: int(rng.integers(2**31)) for name in random_states(model)}
    return model.set_params(**states) if states else model


def _measured(model: Any, inputs: Any, labels: Array, measure: str) -> Array:
    if measure == PROBABILITY:
        classes = pd.Index(model.classes_)
        column = np.asarray(classes.get_indexer(pd.Index(labels)))
        probabilities = np.asarray(model.predict_proba(inputs), dtype=np.float64)
        return np.where(column >= 0, probabilities[np.arange(len(labels)), column], 0.0)
    predicted = np.asarray(model.predict(inputs)).reshape(len(labels))
    if measure == SQUARED_ERROR:
        return -((labels.astype(np.float64) - predicted.astype(np.float64)) ** 2)
    return np.asarray(predicted == labels, dtype=np.float64)


def _rows(inputs: Any, at: Array) -> Any:
    if isinstance(inputs, pd.DataFrame):
        return inputs.iloc[at]
    return inputs[at] if hasattr(inputs, "shape") else [inputs[i] for i in at]


def _labels(train: Examples) -> Array:
    if train.labels is None:
        raise InputError("training examples without labels", "a label for each", "pass (inputs, labels)")
    if len(train) < 2:
        raise InputError(f"{len(train)} training examples", "at least two", "pass more: one alone is never out of bag")
    return train.labels


def _measure(estimator: Any, train: Examples, soft: bool) -> str:
    if not (hasattr(estimator, "fit") and hasattr(estimator, "predict") and hasattr(estimator, "get_params")):
        raise UnsupportedModel(
            f"a {type(estimator).__name__}", "a scikit-learn estimator", "pass one with fit, predict and get_params"
        )
    labels = _labels(train)
    regression = is_regressor(estimator) or (not is_classifier(estimator) and labels.dtype.kind == "f")
    if not soft:
        return SQUARED_ERROR if regression else CORRECT
    if regression or not hasattr(estimator, "predict_proba"):
        raise UnsupportedModel(
            f"soft=True with {type(estimator).__name__}, which predicts no probabilities",
            "a classifier with predict_proba",
            "pass soft=False",
        )
    return PROBABILITY


def _report(failed: list[tuple[int, str]], estimators: int, count: Array, train: Examples) -> None:
    if len(failed) == estimators:
        raise ProponentError(
            f"an error from each of {estimators} bootstraps, the first: {failed[0][1]}",
            "models that can be fitted",
            "try the estimator's fit on the data alone",
        )
    if failed:
        message = f"{len(failed)} of {estimators} bootstraps failed and are left out; bootstrap {failed[0][0]} said: "
        warnings.warn(message + failed[0][1], ProponentWarning, stacklevel=3)
    if (count == 0).any():
        some = train.ids[count == 0][:5].tolist()
        message = (
            f"{int((count == 0).sum())} examples were never out of bag, such as {some}: their value is NaN; raise "
        )
        warnings.warn(message + "`estimators`", ProponentWarning, stacklevel=3)
