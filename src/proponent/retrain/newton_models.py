"""Fitted linear models without their estimator: coefficients that predict as scikit-learn's models do, one or many at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, softmax
from sklearn.utils import ClassifierTags, RegressorTags, Tags, TargetTags, check_array

from proponent.errors import InputError
from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]

LEAST = float(np.log(1e-300))
"""The log-probability of a class that a subset lacks."""

AT_ONCE = 2**22
"""Logits that are held at once."""


def numbers(inputs: Any) -> Any:
    """(n, d) rows as float64, dense or CSR.

    Raises:
        ValueError: inputs that are not finite numbers in two dimensions.
    """
    return check_array(inputs, accept_sparse="csr", dtype=np.float64)


@dataclass(frozen=True, eq=False)
class FittedRegression:
    """A linear regression.

    Args:
        coef_: (d,) weights per input column; a scaler in front is multiplied in.
        intercept_: what is predicted for inputs of zero.
    """

    coef_: Array
    intercept_: float

    def predict(self, inputs: Any) -> Array:
        """(q,) predicted values."""
        return np.asarray(numbers(inputs) @ self.coef_ + self.intercept_)

    def __sklearn_tags__(self) -> Tags:
        return Tags("regressor", TargetTags(required=True), regressor_tags=RegressorTags())


@dataclass(frozen=True, eq=False)
class FittedClassifier:
    """A linear classifier: the class with the largest score, or of two classes the second where the score is positive.

    Args:
        coef_: (c, d) weights per input column; a scaler in front is multiplied in. One row where there are two classes.
        intercept_: (c,).
        classes_: the classes that the subset had, sorted.
    """

    coef_: Array
    intercept_: Array
    classes_: Array

    def decision_function(self, inputs: Any) -> Array:
        """(q,) scores of the second class, or (q, c) where there are more."""
        f = np.asarray(numbers(inputs) @ self.coef_.T + self.intercept_)
        return f[:, 0] if f.shape[1] == 1 else f

    def predict(self, inputs: Any) -> Array:
        """(q,) classes."""
        f = self.decision_function(inputs)
        return np.asarray(self.classes_[(f > 0).astype(int) if f.ndim == 1 else f.argmax(axis=1)])

    def __sklearn_tags__(self) -> Tags:
        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags())


@dataclass(frozen=True, eq=False)
class FittedLogistic(FittedClassifier):
    """A logistic regression, of two classes or multinomial."""

    def predict_proba(self, inputs: Any) -> Array:
        """(q, classes) probabilities."""
        f = self.decision_function(inputs)
        if f.ndim == 2:
            return np.asarray(softmax(f, axis=1))
        return np.stack([expit(-f), expit(f)], axis=1)


def measure_many(models: Sequence[Any], query: Examples, measurement: str) -> Array:
    """(m, q) measurements of fitted linear models, in one product for all that have the same classes.

    Args:
        models: what `fit_many` gave, without failures and without models that scikit-learn fitted.
        query: what to measure.
        measurement: "loss", "margin", "probability", "correct" or "prediction", as `SklearnRecipe` means them.

    Raises:
        InputError: labels missing, or a measurement that these models cannot give.
    """
    if query.labels is None and measurement != "prediction":
        raise InputError("queries without labels", f"labels, which {measurement!r} needs", "measure 'prediction'")
    x, out = numbers(query.inputs), np.empty((len(models), len(query)))
    kinds: dict[tuple[type, bytes], list[int]] = {}
    for at, model in enumerate(models):
        kinds.setdefault((type(model), getattr(model, "classes_", np.zeros(0)).tobytes()), []).append(at)
    for places in kinds.values():
        for part in _parts(places, len(query) * np.size(models[places[0]].intercept_)):
            out[part] = _measured([models[at] for at in part], x, query.labels, measurement)
    return out


def _parts(places: list[int], size: int) -> Iterator[list[int]]:
    step = max(1, AT_ONCE // size)
    return (places[at : at + step] for at in range(0, len(places), step))


def _measured(models: list[Any], x: Any, labels: Array | None, measurement: str) -> Array:
    """(m, q) of models of one kind with the same classes."""
    m, d = len(models), models[0].coef_.shape[-1]
    coef = np.array([model.coef_ for model in models]).reshape(m, -1, d)
    intercept = np.array([model.intercept_ for model in models]).reshape(m, -1)
    c = coef.shape[1]
    f = np.asarray((x @ coef.reshape(m * c, d).T).T).reshape(m, c, -1) + intercept[:, :, None]
    if isinstance(models[0], FittedRegression):
        return _of_values(f[:, 0], labels, measurement)
    classes = models[0].classes_
    if measurement == "correct":
        code = f.argmax(axis=1) if c > 1 else (f[:, 0] > 0).astype(int)
        return np.asarray(classes[code] == labels, dtype=np.float64)
    if not isinstance(models[0], FittedLogistic):
        raise InputError(
            f"measurement {measurement!r} of a classifier without probabilities",
            "'correct'",
            "choose it, or wrap the model",
        )
    return _of_scores(f, None if measurement == "prediction" else _codes(labels, classes), measurement)


def _of_values(predicted: Array, labels: Array | None, measurement: str) -> Array:
    if measurement == "prediction":
        return predicted
    truth = np.asarray(labels)
    if measurement == "correct":
        return np.asarray(predicted == truth, dtype=np.float64)
    return -((predicted - truth.astype(np.float64)) ** 2)


def _codes(labels: Any, classes: Array) -> Array:
    """Where each label stands among the classes; −1 for one that is not there."""
    codes = np.clip(np.searchsorted(classes, labels), 0, len(classes) - 1)
    return np.where(classes[codes] == labels, codes, -1)


def _of_scores(f: Array, codes: Array | None, measurement: str) -> Array:
    """Of logits (m, c, q): what is measured of the class `codes`, or of the predicted class where that is None."""
    if f.shape[1] == 1:
        margin = np.abs(f[:, 0]) if codes is None else f[:, 0] * np.where(codes == 1, 1.0, -1.0)
    else:
        own = f.argmax(axis=1) if codes is None else np.broadcast_to(np.maximum(codes, 0), (len(f), f.shape[2]))
        margin = _lead(f, own[:, None, :])
    if measurement == "probability":
        return _or_least(expit(margin), codes, 0.0)
    return _or_least(log_expit(margin) if measurement == "loss" else margin, codes, LEAST)


def _or_least(value: Array, codes: Array | None, least: float) -> Array:
    """The value, or the least one where the model never saw the query's class."""
    return value if codes is None else np.where(codes < 0, least, value)


def _lead(f: Array, own: Array) -> Array:
    """log p/(1 − p) of the class `own` (m, 1, q): its logit over the log-sum-exp of the others'."""
    mine = np.take_along_axis(f, own, axis=1)[:, 0]
    np.put_along_axis(f, own, -np.inf, axis=1)
    top = f.max(axis=1)
    f -= top[:, None, :]
    return np.asarray(mine - top - np.log(np.exp(f, out=f).sum(axis=1)))
