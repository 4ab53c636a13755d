"""What is predicted by a model that has nothing to learn from: the utility of the empty set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier

from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]


class Prior:
    """The model of a subset that is empty or holds one class.

    A classifier predicts p_c = (n_c + 1) / (n + C), n_c the subset's examples of class c among the C classes of all
    training examples: finite log-probabilities, uniform for the empty set. A regressor predicts the mean of the subset's
    targets, and of all targets for the empty set.
    """

    @staticmethod
    def of(estimator: Any, train: Examples, row: Array) -> Any:
        """The prior in place of this estimator fitted to a subset.

        >>> from sklearn.tree import DecisionTreeClassifier
        >>> train = Examples.of((np.zeros((3, 1)), np.array([0, 0, 1])))
        >>> Prior.of(DecisionTreeClassifier(), train, np.array([1, 1, 0])).predict_proba(np.zeros((1, 1))).tolist()
        [[0.75, 0.25]]
        """
        labels = np.asarray(train.labels)
        if not is_classifier(estimator):
            held = np.repeat(labels, row) if row.any() else labels
            return Constant(float(np.mean(held.astype(np.float64))))
        classes, code = np.unique(labels, return_inverse=True)
        count = np.bincount(code, weights=row, minlength=len(classes))
        return Frequencies(classes, (count + 1) / (count.sum() + len(classes)))


@dataclass(frozen=True, eq=False)
class Frequencies(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that predicts the same probabilities everywhere.

    Args:
        classes_: (c,) the classes, sorted.
        probability: (c,) theirs.
    """

    classes_: Array
    probability: Array

    def predict_proba(self, inputs: Any) -> Array:
        """(q, c)."""
        return np.tile(self.probability, (inputs.shape[0], 1))

    def predict(self, inputs: Any) -> Array:
        """(q,) the most probable class, the first of several."""
        return np.repeat(self.classes_[[self.probability.argmax()]], inputs.shape[0])


@dataclass(frozen=True, eq=False)
class Constant(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor that predicts one value."""

    value: float

    def predict(self, inputs: Any) -> Array:
        """(q,)."""
        return np.full(inputs.shape[0], self.value)
