"""A scikit-learn estimator and a training set, read as the convex problem that it solves on any subset.

A StandardScaler in front is fitted to each subset anew: standardised weights v_j = σ_j w_j, so its model penalises the
raw weights by λ σ_j², and its means move nothing but the intercept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import sparse
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from proponent.convex.basis import Basis
from proponent.convex.sklearn_models import Objective, objective_of
from proponent.errors import UnsupportedModel
from proponent.examples import Examples
from proponent.retrain.newton_descent import Reached, inverse_curvatures, minimise
from proponent.retrain.newton_losses import ManyClasses, Squares, StackedLoss, TwoClasses
from proponent.retrain.newton_models import FittedClassifier, FittedLogistic, FittedRegression, numbers
from proponent.retrain.newton_stack import Design, Stack

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["regression", "ridge classifier", "logistic"]

KINDS: dict[type, Kind] = {
    Ridge: "regression",
    LinearRegression: "regression",
    RidgeClassifier: "ridge classifier",
    LogisticRegression: "logistic",
}

MAX_ORDER = 2_000
"""Parameters of one model up to which its curvature is formed."""

MAX_DENSE = 2**26
"""Numbers up to which the training rows are held densely."""


FAR = 30.0
"""Logits beyond which, without a penalty, no finite optimum is expected: e⁻³⁰ says that some rows are separated."""


@dataclass(frozen=True)
class Space:
    """Features as they are solved in: centred where an intercept takes the means up, and scaled; wide ones by a basis.

    Args:
        mean, scale: (p,) of the features without the constant.
        constant: the constant column's value; 0 without intercept.
        basis: coordinates that stand for wide features, or None.
    """

    mean: Array
    scale: Array
    constant: float
    basis: Basis | None = None

    def rows(self, x: Array) -> Array:
        """(n, p) from the features or the basis's coordinates; the constant column last."""
        z = (x - self.mean) / self.scale
        return np.hstack([z, np.full((len(z), 1), self.constant)]) if self.constant else z

    def raw(self, theta: Array) -> tuple[Array, Array]:
        """Weights per input column (s, c, d) and intercepts (s, c) from parameters (s, c, p)."""
        v = (theta[..., :-1] if self.constant else theta) / self.scale
        intercept = theta[..., -1] * self.constant - v @ self.mean if self.constant else np.zeros(theta.shape[:2])
        if self.basis is None:
            return v, intercept
        s, c, r = v.shape
        return self.basis.features(v.reshape(-1, r).T).T.reshape(s, c, -1), intercept


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear estimator on a training set.

    Args:
        kind: what is fitted, and how it predicts.
        objective: the loss and the penalty, as `proponent.convex` reads them.
        space: the features that it is solved in.
        design: the training rows in them.
        labels: (n,) values, or class codes.
        classes: the classes, sorted; None for a regression.
        weight: (n,) the examples' weights.
        balanced: whether each subset's classes get equal weight in all.
        spread: (n, d) the raw features, where a StandardScaler divides by each subset's standard deviations.
    """

    kind: Kind
    objective: Objective
    space: Space
    design: Design
    labels: Array
    classes: Array | None
    weight: Array
    balanced: bool
    spread: Array | None

    @cached_property
    def member(self) -> Array:
        """(n, classes) 1 where a row is of a class."""
        assert self.classes is not None
        return np.eye(len(self.classes))[self.labels]

    def present(self, counts: Array) -> Array:
        """(s, classes) which classes the subsets have."""
        return np.asarray(counts @ self.member > 0)

    def posed(self, counts: Array) -> Array:
        """(s,) whether there is something to fit: a row, and for a classifier two classes."""
        if self.classes is None:
            return np.asarray(counts.any(axis=1))
        return np.asarray(self.present(counts).sum(axis=1) > 1)

    @cached_property
    def main(self) -> Family:
        """The problems of subsets with all classes, or some: all but those of two among several."""
        if self.classes is None:
            return Family(self, Squares(self.labels[None, :]))
        if len(self.classes) == 2:
            return self.of_two(0, 1)
        if self.kind == "logistic":
            return Family(self, ManyClasses(self.labels, len(self.classes)))
        return Family(self, Squares(2.0 * self.member.T - 1.0))

    @cached_property
    def _pairs(self) -> dict[tuple[int, int], Family]:
        return {}

    def of_two(self, first: int, second: int) -> Family:
        """The problems of subsets with these two classes only."""
        if (first, second) not in self._pairs:
            y = np.where(self.labels == second, 1.0, -1.0)
            loss = TwoClasses(y) if self.kind == "logistic" else Squares(y[None, :])
            self._pairs[first, second] = Family(self, loss, np.isin(self.labels, (first, second)))
        return self._pairs[first, second]

    def penalty(self, counts: Array) -> Array:
        """(s, p) λ of each subset's features."""
        base = self.objective.penalty / np.square(self.space.scale)
        out = np.tile(base, (len(counts), 1))
        if self.spread is not None:
            out *= scaler_variance(self.spread, counts)
        if not self.space.constant:
            return out
        return np.hstack([out, np.full((len(out), 1), self.objective.intercept_penalty)])

    def models(self, theta: Array, counts: Array) -> list[Any]:
        """The fitted models with parameters (s, c, p), of subsets that hold each row so many times."""
        if self.classes is None:
            coef, intercept = self.space.raw(theta)
            return [FittedRegression(w[0], float(b[0])) for w, b in zip(coef, intercept, strict=True)]
        made = FittedLogistic if self.kind == "logistic" else FittedClassifier
        held = self.present(counts)
        if theta.shape[1] > 1 and self.kind == "logistic":
            # A softmax is blind to what all classes share: as in scikit-learn, nothing.
            theta = theta - (theta.sum(axis=1) / held.sum(axis=1, keepdims=True))[:, None, :]
        coef, intercept = self.space.raw(theta)
        if theta.shape[1] == 1:
            pair = self.classes[held.any(axis=0)]
            return [made(w, b, pair) for w, b in zip(coef, intercept, strict=True)]
        return [made(w[p], b[p], self.classes[p]) for w, b, p in zip(coef, intercept, held, strict=True)]


@dataclass(frozen=True, eq=False)
class Family:
    """All subsets' problems with one loss.

    Args:
        linear: the estimator and the training set.
        loss: ℓ.
        rows: (n,) whether a training row may be in such a subset; None for all.
    """

    linear: Linear
    loss: StackedLoss
    rows: Array | None = None

    def stack(self, counts: Array) -> Stack:
        """The problems of subsets that hold each training row so many times, (s, n)."""
        weight = counts * self.linear.weight
        if self.linear.balanced:
            weight *= _balanced(counts @ self.linear.member)[:, self.linear.labels]
        absent = ~self.linear.present(counts) if isinstance(self.loss, ManyClasses) else None
        return Stack(self.linear.design, self.loss, weight, self.linear.penalty(counts), absent)

    def shares(self, counts: Array) -> Array:
        """(s,) each subset's share of the training weight, to the nearest of steps by a fifth."""
        weight = self.linear.weight if self.rows is None else self.linear.weight * self.rows
        share = np.maximum(counts @ weight / weight.sum(), 1e-12)
        return np.exp2(np.round(4.0 * np.log2(share)) / 4.0)

    def zeros(self, count: int) -> Array:
        """(s, c, p) parameters that are zero."""
        return np.zeros((count, self.loss.outputs, self.linear.design.x.shape[1]))

    def solve(self, stack: Stack, theta: Array, inverse: Array | None = None, unit: Array | None = None) -> Reached:
        """`minimise`, which without a penalty on the weights trusts nothing that it is not shown.

        An inverse curvature from elsewhere would hide that a subset does not determine its weights; and where classes are
        separable F falls for ever, however small the steps become.
        """
        if self.linear.objective.penalty > 0:
            return minimise(stack, theta, inverse, unit)
        reached = minimise(stack, theta)
        if not isinstance(self.loss, Squares):
            f = np.where(stack.weight[:, None] > 0, stack.logits(reached.theta), 0.0)
            size = np.abs(f, where=np.isfinite(f), out=np.zeros_like(f)).max(axis=(1, 2))
            reached.short[size > FAR] = np.inf
        return reached

    @cached_property
    def _typical(self) -> dict[float, Typical | None]:
        return {}

    def typical(self, share: float) -> Typical | None:
        """What subsets with this share of the training weight have in common, or None where that has no optimum."""
        if share not in self._typical:
            self._typical[share] = self._find_typical(share)
        return self._typical[share]

    def _find_typical(self, share: float) -> Typical | None:
        rows = np.ones(len(self.linear.labels)) if self.rows is None else self.rows.astype(np.float64)
        stack = self.stack(share * rows[None])
        reached = self.solve(stack, self.zeros(1))
        inverse = inverse_curvatures(stack, reached.theta)[0]
        if not (reached.optimal[0] and np.isfinite(inverse).all()):
            return None
        return Typical(reached.theta[0], inverse, stack.penalty[0])


@dataclass(frozen=True, eq=False)
class Typical:
    """The optimum of share·Σ_j ℓ_j + penalty, which is the mean objective of subsets with that share: where they start.

    Args:
        theta: (c, p) parameters.
        inverse: (k, k) inverse curvature there.
        penalty: (p,).
    """

    theta: Array
    inverse: Array
    penalty: Array

    def unit(self, penalty: Array) -> Array:
        """(s, p) 1/√λ_sp over its own: in such units all subsets are penalised alike, and their curvatures are alike."""
        kept = np.where(penalty > 0, penalty, 1.0)
        return np.where(penalty > 0, np.sqrt(self.penalty / kept), 1.0)


def read(estimator: Any, train: Examples) -> Linear:
    """An estimator, or a StandardScaler and an estimator in a Pipeline, with its training set.

    Raises:
        UnsupportedModel: not a linear model with a smooth L2 objective, or too many parameters.
    """
    scaler, final = split(estimator)
    if train.labels is None:
        raise UnsupportedModel("training examples without labels", "labels", "pass (inputs, labels)")
    kind = KINDS[type(final)]
    classes, labels = _labels(kind, np.asarray(train.labels))
    objective = _objective(final, train.labels, classes)
    if scaler is not None and scaler.with_mean and (objective.intercept_penalty or not objective.intercept):
        raise UnsupportedModel("centred features without a free intercept", "a free intercept", "set with_mean=False")
    balanced = getattr(final, "class_weight", None) == "balanced"
    weight = np.ones(len(train)) if train.weights is None else train.weights
    if balanced and train.weights is not None:
        raise UnsupportedModel("class_weight='balanced' with sample weights", "one of them", "drop one of them")
    if objective.weight is not None and not balanced:
        weight = weight * objective.weight
    x, basis = _features(train.inputs, objective, scaler)
    space = _space(x, objective, basis)
    design = Design(space.rows(x))
    outputs = 1 if classes is None or len(classes) == 2 else len(classes)
    order = design.x.shape[1] * (outputs if kind == "logistic" else 1)
    if order > MAX_ORDER:
        raise UnsupportedModel(f"{order:,} parameters", f"at most {MAX_ORDER:,}", "refit one by one")
    if objective.penalty == 0 and design.x.shape[1] > len(train):
        raise UnsupportedModel("more features than rows and no penalty", "a penalty", "use Ridge, or a finite C")
    spread = x if scaler is not None and scaler.with_std else None
    return Linear(kind, objective, space, design, labels, classes, weight, balanced, spread)


def scaler_variance(x: Array, counts: Array) -> Array:
    """(s, d) σ² of each column on each subset, as StandardScaler has it: 1 where a column is constant."""
    size = counts.sum(axis=1, keepdims=True)
    middle, unit = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-300)
    z = (x - middle) / unit
    mean, square = counts @ z / size, counts @ np.square(z) / size
    variance = (square - np.square(mean)) * np.square(unit)
    mean = mean * unit + middle
    unclear = square * np.square(unit) * 1e-3 > variance  # few digits are left: two passes, over these columns
    for column in np.flatnonzero(unclear.any(axis=0)):
        at = np.flatnonzero(unclear[:, column])
        held = counts[at]
        mean[at, column] = held @ x[:, column] / size[at, 0]
        off = x[:, column] - mean[at, column, None]
        variance[at, column] = np.einsum("sj,sj->s", held, np.square(off)) / size[at, 0]
    eps = np.finfo(np.float64).eps
    constant = variance <= size * eps * variance + np.square(size * mean * eps)
    return np.where(constant, 1.0, variance)


def split(estimator: Any) -> tuple[StandardScaler | None, Any]:
    """The scaler in front, if there is one, and the linear model.

    Raises:
        UnsupportedModel: another kind of estimator.
    """
    steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    steps = [step for step in steps if step is not None and not isinstance(step, str)]
    if not steps or type(steps[-1]) not in KINDS or [type(step) for step in steps[:-1]] not in ([], [StandardScaler]):
        names = ", ".join(kind.__name__ for kind in KINDS)
        raise UnsupportedModel(
            " → ".join(type(step).__name__ for step in steps) or "an empty Pipeline",
            f"{names}, alone or after a StandardScaler",
            "refit one by one",
        )
    return (steps[0] if len(steps) == 2 else None), steps[-1]


def _labels(kind: Kind, labels: Array) -> tuple[Array | None, Array]:
    """The classes and their codes, or None and values."""
    if kind == "regression":
        if labels.dtype.kind not in "iufb":
            raise UnsupportedModel(f"labels of type {labels.dtype}", "numbers", "use a classifier")
        return None, labels.astype(np.float64)
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UnsupportedModel("labels of one class", "two or more", "check the labels")
    return classes, codes


def _objective(final: Any, labels: Array, classes: Array | None) -> Objective:
    """What is minimised; a class_weight by numbers is the objective's `weight`."""
    if not isinstance(final, RidgeClassifier):
        return objective_of(final, labels, classes)
    ridge = Ridge(alpha=final.alpha, fit_intercept=final.fit_intercept, positive=final.positive)
    objective = objective_of(ridge, labels, classes)
    if final.class_weight in (None, "balanced"):
        return objective
    assert classes is not None
    per_class = compute_class_weight(final.class_weight, classes=classes, y=labels)
    return replace(objective, weight=per_class[np.searchsorted(classes, labels)])


def _features(inputs: Any, objective: Objective, scaler: Any) -> tuple[Array, Basis | None]:
    """Dense features; wide ones as coordinates in the span of the training rows."""
    try:
        x = numbers(inputs)
    except (TypeError, ValueError) as error:
        raise UnsupportedModel(f"inputs that scikit-learn refuses ({error})", "finite numbers", "clean them") from error
    if x.shape[1] > x.shape[0] and objective.penalty > 0 and not (scaler is not None and scaler.with_std):
        basis = Basis.of(x)
        return basis.coordinates(x), basis
    if np.prod(x.shape) > MAX_DENSE:
        raise UnsupportedModel(f"{np.prod(x.shape):,} features in all", f"at most {MAX_DENSE:,}", "refit one by one")
    return (x.toarray() if sparse.issparse(x) else x), None


def _space(x: Array, objective: Objective, basis: Basis | None) -> Space:
    free = bool(objective.intercept) and not objective.intercept_penalty
    mean = x.mean(axis=0) if free else np.zeros(x.shape[1])
    scale = np.sqrt(np.square(x - mean).mean(axis=0))
    return Space(
        mean, np.where(scale > 1e-12 * np.abs(x).max(axis=0, initial=0.0), scale, 1.0), objective.intercept, basis
    )


def _balanced(count: Array) -> Array:
    """(s, classes) n/(K n_c) over the K classes that a subset has."""
    held = count > 0
    return np.where(
        held, count.sum(axis=1, keepdims=True) / (held.sum(axis=1, keepdims=True) * np.maximum(count, 1)), 0.0
    )
