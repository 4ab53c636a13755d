"""A fitted linear model as proponent sees it: preprocessing in front, a convex problem behind, its exact optimum."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline

from proponent.convex.basis import Basis
from proponent.convex.curvature import MAX_DENSE
from proponent.convex.optimum import Optimum, find_optimum
from proponent.convex.problem import Problem
from proponent.convex.sklearn_models import Objective, objective_of
from proponent.errors import InputError, ProponentWarning, UnsupportedModel
from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class LinearModel:
    """A fitted scikit-learn model, its problem and its optimum.

    Args:
        front: the fitted preprocessing, or None; it is held fixed while rows are removed.
        classes: the classes in the model's order, None for a regression.
        objective: what the model minimises.
        basis: coordinates that stand for wide features, or None.
        optimum: the problem's exact optimum.
    """

    front: Any
    classes: Array | None
    objective: Objective
    basis: Basis | None
    optimum: Optimum

    @property
    def problem(self) -> Problem:
        return self.optimum.problem

    def features(self, inputs: Any) -> Any:
        """(m, d) rows of the problem's features for raw inputs, the constant column last."""
        x = inputs if self.front is None else self.front.transform(inputs)
        x = _matrix(x)
        if self.basis is not None:
            x = self.basis.coordinates(x)
        x = _with_constant(x, self.objective.intercept)
        if x.shape[1] != self.problem.features:
            raise InputError(
                f"queries with {x.shape[1]} features", f"{self.problem.features}", "use the training set's columns"
            )
        return x

    def targets(self, labels: Array | None) -> Array | None:
        """(m,) labels as the loss wants them."""
        return None if labels is None else _targets(labels, self.classes)

    def weight_vectors(self, theta: Array) -> Array:
        """(c, d) weights per raw feature column from the problem's parameters, without the constant."""
        weights = theta[:, :-1] if self.objective.intercept else theta
        return weights if self.basis is None else self.basis.features(weights.T).T


def linear_model(fitted: Any, train: Examples) -> LinearModel:
    """Read a fitted estimator, or a Pipeline that ends in one, and find its problem's exact optimum.

    Raises:
        UnsupportedModel: the model is not a smooth convex problem.
        InputError: labels missing, or inputs that are not numbers.
        NotConverged: the problem has no finite optimum.
    """
    if train.labels is None:
        raise InputError("training examples without labels", "labels", "pass (inputs, labels)")
    front, final = (fitted[:-1], fitted[-1]) if isinstance(fitted, Pipeline) else (None, fitted)
    if front is not None and len(front) == 0:
        front = None
    classes = np.asarray(final.classes_) if is_classifier(final) and hasattr(final, "classes_") else None
    objective = objective_of(final, train.labels, classes)
    x = _matrix(train.inputs if front is None else front.transform(train.inputs))
    outputs = objective.loss.outputs(np.zeros(1))
    basis = Basis.of(x) if _too_wide(x, outputs, objective) else None
    z = x if basis is None else basis.coordinates(x)
    problem = _problem(z, train, objective, classes)
    optimum = find_optimum(problem, None if basis is not None else _start(final, objective, outputs))
    for note in (*objective.notes, *_moved(optimum, objective)):
        warnings.warn(note, ProponentWarning, stacklevel=4)
    return LinearModel(front, classes, objective, basis, optimum)


def objective_problem(model: LinearModel, inputs: Any, labels: Array) -> Problem:
    """The model's problem over other rows, in the same features."""
    x = model.features(inputs)
    problem = model.problem
    penalty = problem.penalty
    if problem.penalty_shrinks:
        penalty = np.where(penalty > 0, problem.penalty_shrinks * x.shape[0], 0.0)
    return Problem(
        x, _targets(labels, model.classes), np.ones(x.shape[0]), problem.loss, penalty, problem.penalty_shrinks
    )


def _too_wide(x: Any, outputs: int, objective: Objective) -> bool:
    """Whether the span of the rows is smaller than the features, and small enough to factorise."""
    rows, features = x.shape
    return objective.penalty > 0 and features > rows and outputs * rows <= MAX_DENSE


def _problem(x: Any, train: Examples, objective: Objective, classes: Array | None) -> Problem:
    assert train.labels is not None
    n, d = x.shape
    weight = np.ones(n) if train.weights is None else train.weights
    if objective.weight is not None:
        weight = weight * objective.weight
    penalty = np.full(d, objective.penalty)
    if objective.intercept:
        penalty = np.append(penalty, objective.intercept_penalty)
    y = _targets(train.labels, classes)
    return Problem(_with_constant(x, objective.intercept), y, weight, objective.loss, penalty, objective.shrinks)


def _start(final: Any, objective: Objective, outputs: int) -> Array:
    coef = np.atleast_2d(final.coef_)
    if coef.shape[0] != outputs:
        raise UnsupportedModel(f"{coef.shape[0]} targets", "one target", "fit one target at a time")
    if not objective.intercept:
        return np.asarray(coef, dtype=np.float64)
    intercept = np.reshape(final.intercept_, (-1, 1)) / objective.intercept
    return np.hstack([coef, np.broadcast_to(intercept, (outputs, 1))])


def _moved(optimum: Optimum, objective: Objective) -> tuple[str, ...]:
    scale = 1.0 if optimum.problem.loss.self_concordance > 0.0 else max(float(np.std(optimum.problem.y)), 1e-300)
    if optimum.moved <= 0.05 * scale or objective.notes:
        return ()
    return (
        f"The model stops short of its own objective's optimum: predictions (logits) there differ by up to {optimum.moved:.3g}. "
        "Scores describe the optimum; raise max_iter or lower tol to bring the model there.",
    )


def _targets(labels: Array, classes: Array | None) -> Array:
    if classes is None:
        return np.asarray(labels, dtype=np.float64)
    codes = np.searchsorted(classes, labels)
    known = (codes < len(classes)) & (classes[np.minimum(codes, len(classes) - 1)] == labels)
    if not known.all():
        strange = np.unique(np.asarray(labels)[~known])[:5].tolist()
        raise InputError(
            f"labels {strange} that the model never saw",
            f"labels among {classes.tolist()[:20]}",
            "leave those queries out",
        )
    return np.where(codes == 1, 1.0, -1.0) if len(classes) == 2 else codes.astype(np.float64)


def _matrix(x: Any) -> Any:
    """Dense float64 or CSR float64."""
    if sparse.issparse(x):
        return sparse.csr_matrix(x, dtype=np.float64)
    try:
        dense = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise InputError(
            "inputs that are not numbers", "numeric features", "put the preprocessing into a Pipeline with the model"
        ) from e
    if dense.ndim != 2:
        raise InputError(f"inputs of shape {dense.shape}", "(examples, features)", "reshape to two dimensions")
    if not np.isfinite(dense).all():
        bad = np.flatnonzero(~np.isfinite(dense).all(axis=1))[:5].tolist()
        raise InputError(
            f"inputs with NaN or inf (positions {bad})", "finite features", "impute them, in a Pipeline with the model"
        )
    return dense


def _with_constant(x: Any, value: float) -> Any:
    if not value:
        return x
    column = np.full((x.shape[0], 1), value)
    if sparse.issparse(x):
        return sparse.csr_matrix(sparse.hstack([x, column]))
    return np.hstack([x, column])
