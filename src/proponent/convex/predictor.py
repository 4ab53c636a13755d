"""A linear model refitted many times: Newton's method from the last optimum, with scikit-learn's way of predicting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from proponent.convex.model import LinearModel, objective_problem
from proponent.convex.optimum import find_optimum

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Predictor:
    """A refitted linear model.

    Args:
        model: the model that it is a refit of.
        theta: (c, d) its parameters.
    """

    model: LinearModel
    theta: Array

    @property
    def classes_(self) -> Array | None:
        """The classes in the model's order."""
        return self.model.classes

    def predict_proba(self, inputs: Any) -> Array:
        """(m, classes)."""
        f = np.asarray(self.model.features(inputs) @ self.theta.T)
        if f.shape[1] > 1:
            return np.asarray(softmax(f, axis=1))
        p = expit(f[:, 0])
        return np.stack([1.0 - p, p], axis=1)

    def predict(self, inputs: Any) -> Array:
        """(m,) classes or values."""
        if self.model.classes is None:
            return np.asarray(self.model.features(inputs) @ self.theta.T)[:, 0]
        return np.asarray(self.model.classes[self.predict_proba(inputs).argmax(axis=1)])


def refit(model: LinearModel, inputs: Any, labels: Array, penalty: float = 1.0) -> Predictor:
    """The same model fitted to other rows, its preprocessing held, its penalty multiplied by `penalty`.

    Raises:
        NotConverged: no finite optimum on these rows.
    """
    problem = objective_problem(model, inputs, labels)
    problem = replace(problem, penalty=penalty * problem.penalty)
    return Predictor(model, find_optimum(problem, model.optimum.theta).theta)
