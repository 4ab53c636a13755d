"""Data-OOB: how well the bootstrap models that have not seen a training example predict it."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import is_classifier, is_regressor

from proponent.attribution import Values
from proponent.errors import InputError, ProponentError, ProponentWarning, UnsupportedModel
from proponent.examples import Examples
from proponent.methods.retraining import HELD
from proponent.methods.rounds import AT_ONCE
from proponent.retrain.recipe import SklearnRecipe
from proponent.retrain.run import retrain
from proponent.retrain.subsets import bootstraps
from proponent.retrain.trained import Trained

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

    Bootstrap b's rows depend on (seed, b) alone, every `random_state` of its model on b, and sums are taken in the order
    of b: the number of workers changes no bit, as long as the estimator itself is deterministic. A bag of one class gives
    that class, as everywhere in this library. An example is never out of bag with probability about exp(−0.37 · estimators).

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

    def fit(self, recipe: Any, train: Any, *, ledger: str | Path | None = None) -> FittedDataOOB:
        """Fit a clone of the estimator to every bootstrap, and add up the out-of-bag agreement.

        Args:
            recipe: a scikit-learn estimator or pipeline, or a recipe that has one as `.estimator`. It is not changed.
            train: anything that `Examples.of` takes, with labels. Sample weights go with their rows into the fits;
                the out-of-bag means are unweighted.
            ledger: a directory that keeps every training, so that a killed run goes on and more bootstraps add to fewer.

        Raises:
            InputError: labels are missing, or there are fewer than two examples.
            UnsupportedModel: `soft` without `predict_proba`, or with a regressor.
            FingerprintMismatch: the ledger is of another model, another measure or other training examples.
            ProponentError: every bootstrap failed.
        """
        start, train = time.perf_counter(), Examples.of(train)
        estimator = getattr(recipe, "estimator", recipe) if not hasattr(recipe, "predict") else recipe
        measure = _measure(estimator, train, self.soft)
        if sparse.issparse(train.inputs):
            train = replace(train, inputs=train.inputs.tocsr())
        recipe = SklearnRecipe(estimator, MEASUREMENT[measure])
        kept = None if ledger is None else Trained.open(ledger, recipe, train)
        bags = bootstraps(self.estimators, seed=self.seed)(len(train))
        tally, failed, size = _Tally.empty(len(train)), [], max(16, min(AT_ONCE, HELD // len(train)))
        for first in range(0, self.estimators, size):
            some = bags.take(slice(first, first + size))
            models = retrain(recipe, train, train, some, ledger=kept, workers=self.workers)
            for b, (bag, measured, error) in enumerate(
                zip(models.included, models.measured, models.errors, strict=True)
            ):
                if error:
                    failed.append((first + b, error))
                else:
                    out = np.flatnonzero(bag == 0)
                    tally = tally.with_draw(out, measured[out])
        _report(failed, self.estimators, tally.count, train)
        return FittedDataOOB(self, train, measure, tally, tuple(failed), time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class FittedDataOOB:
    """Data-OOB's finished bootstraps; made by `DataOOB.fit`.

    Args:
        failed: (bootstrap, what its error said) of the models that could not be fitted, or whose predictions are not finite;
            they are left out of every count.
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
MEASUREMENT = {CORRECT: "correct", PROBABILITY: "probability", SQUARED_ERROR: "loss"}
"""What a recipe calls them."""


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
