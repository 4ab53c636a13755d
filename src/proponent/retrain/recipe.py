"""A recipe: how to train a model on a subset, and what to measure of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from proponent.errors import InputError
from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class SklearnRecipe:
    """A scikit-learn estimator or pipeline, refitted from its parameters each time.

    >>> from sklearn.linear_model import Ridge
    >>> model = SklearnRecipe(Ridge(alpha=1.0)).fit(Examples.of(([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])))
    >>> bool(0.5 < model.coef_[0] < 1.0)
    True

    Args:
        estimator: any classifier or regressor; it is cloned, never changed.
        measurement: what is measured of a query: "loss" (minus its loss), "margin" (log-odds of its label),
            "probability" (of its label) or "prediction" (the predicted value, or the predicted class's margin).
    """

    estimator: Any
    measurement: str = "loss"

    def fit(self, examples: Examples, seed: int | None = None) -> Any:
        """A fresh estimator fitted to these examples.

        Raises:
            InputError: labels missing, or weights that the estimator does not take.
        """
        if examples.labels is None:
            raise InputError("training examples without labels", "labels", "pass (inputs, labels)")
        model = clone(self.estimator)
        if seed is not None and "random_state" in model.get_params():
            model.set_params(random_state=seed)
        if examples.weights is None:
            return model.fit(examples.inputs, examples.labels)
        name, final = "sample_weight", model
        if isinstance(model, Pipeline):
            name, final = f"{model.steps[-1][0]}__sample_weight", model.steps[-1][1]
        if not has_fit_parameter(final, "sample_weight"):
            raise InputError(
                f"sample weights for a {type(final).__name__}",
                "an estimator that takes sample_weight",
                "drop the weights",
            )
        return model.fit(examples.inputs, examples.labels, **{name: examples.weights})

    def measure(self, model: Any, query: Examples) -> Array:
        """(q,) the measurement of each query by a fitted model, from its public predictions alone.

        Raises:
            InputError: labels missing, or a measurement that this model cannot give.
        """
        if query.labels is None and self.measurement != "prediction":
            raise InputError(
                "queries without labels", f"labels, which {self.measurement!r} needs", "measure 'prediction'"
            )
        if not is_classifier(model):
            predicted = np.asarray(model.predict(query.inputs), dtype=np.float64)
            return (
                predicted
                if self.measurement == "prediction"
                else -((predicted - np.asarray(query.labels, dtype=np.float64)) ** 2)
            )
        if not hasattr(model, "predict_proba"):
            raise InputError(
                f"a {type(model).__name__} without probabilities", "predict_proba", "wrap it in CalibratedClassifierCV"
            )
        p = np.asarray(model.predict_proba(query.inputs), dtype=np.float64)
        own = p.max(axis=1) if self.measurement == "prediction" else _probability_of(p, model.classes_, query.labels)
        if self.measurement == "probability":
            return own
        bounded = np.clip(own, 1e-300, 1.0)
        if self.measurement == "loss":
            return np.log(bounded)
        return np.asarray(np.log(bounded) - np.log(np.maximum(1.0 - bounded, 1e-300)))


def _probability_of(p: Array, classes: Array, labels: Any) -> Array:
    """p[i, label i]; zero where a subset lacked the class."""
    codes = np.clip(np.searchsorted(classes, labels), 0, len(classes) - 1)
    return np.where(classes[codes] == labels, p[np.arange(len(p)), codes], 0.0)
