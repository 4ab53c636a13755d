"""Linear models of scikit-learn as plain arrays and back: how a ledger keeps them, without a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from proponent.errors import UnsupportedModel
from proponent.retrain.newton_models import FittedClassifier, FittedLogistic, FittedRegression
from proponent.retrain.newton_problem import KINDS, Kind, split
from proponent.retrain.prior import Constant, Frequencies

Array = np.ndarray[Any, np.dtype[Any]]

PLAIN: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (FittedRegression, FittedClassifier, FittedLogistic, Frequencies, Constant)
}
"""Models that are nothing but arrays and numbers."""

FITTED: dict[Kind, type[Any]] = {
    "regression": FittedRegression,
    "ridge classifier": FittedClassifier,
    "logistic": FittedLogistic,
}


def packs(estimator: Any, labels: Array | None) -> bool:
    """Whether an estimator's models are linear, alone or after a StandardScaler.

    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.naive_bayes import GaussianNB
    >>> packs(Ridge(), None), packs(GaussianNB(), None)
    (True, False)

    Liblinear's models of three classes or more are not: their probabilities are those of a model for each class.
    """
    try:
        _, final = split(estimator)
    except UnsupportedModel:
        return False
    apart = isinstance(final, LogisticRegression) and final.solver == "liblinear"
    return not (apart and labels is not None and len(np.unique(labels)) > 2)


def pack(model: Any) -> dict[str, Array]:
    """A model as arrays by name.

    >>> model = unpack(pack(FittedRegression(np.array([2.0]), 1.0)))
    >>> model.predict([[3.0]]).tolist()
    [7.0]
    """
    plain = model if type(model).__name__ in PLAIN else _plain(model)
    kept = {field.name: np.asarray(getattr(plain, field.name)) for field in fields(plain)}
    return {"kind": np.array(type(plain).__name__)} | kept


def unpack(arrays: Mapping[str, Array]) -> Any:
    """The model of `pack`'s arrays."""
    kept = {name: array if array.ndim else float(array) for name, array in arrays.items() if name != "kind"}
    return PLAIN[str(arrays["kind"])](**kept)


def _plain(model: Any) -> Any:
    """What scikit-learn fitted, with the scaler in front multiplied in."""
    scaler, final = split(model)
    mean, scale = np.zeros(final.coef_.shape[-1]), np.ones(final.coef_.shape[-1])
    if scaler is not None:
        mean = scaler.mean_ if scaler.with_mean else mean
        scale = scaler.scale_ if scaler.with_std else scale
    coef = final.coef_ / scale
    intercept = final.intercept_ - coef @ mean
    kind = KINDS[type(final)]
    if kind == "regression":
        return FittedRegression(coef, float(intercept))
    return FITTED[kind](coef, intercept, final.classes_)
