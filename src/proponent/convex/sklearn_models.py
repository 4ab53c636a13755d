"""scikit-learn's linear models, read as the convex problems they solve: one function per model, in one table.

scikit-learn's objectives differ in what they sum, average and regularise; each function says what its model minimises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight

from proponent.convex.losses import Logistic, Loss, Softmax, Squared, SquaredHinge
from proponent.errors import UnsupportedModel

Array = np.ndarray[Any, np.dtype[Any]]

SMOOTH = 0.01
"""Temperature of the smooth hinge that stands for a hinge (Koh & Liang 2017 use 0.001 to 0.1)."""


@dataclass(frozen=True)
class Objective:
    """Σ s_j ℓ + ½ λ |w|², and how the model holds its intercept.

    Args:
        loss: ℓ.
        penalty: λ on the weights, for the sum over all training rows.
        shrinks: the part of λ that each removed row takes away.
        intercept: the constant column's value: 0 without intercept.
        intercept_penalty: λ on the intercept; 0 where it is free.
        weight: a factor on each row's weight.
        notes: what should be known, in words.
    """

    loss: Loss
    penalty: float
    shrinks: float = 0.0
    intercept: float = 1.0
    intercept_penalty: float = 0.0
    weight: Array | None = None
    notes: tuple[str, ...] = ()


def objective_of(model: Any, labels: Array, classes: Array | None) -> Objective:
    """What a scikit-learn model minimises over these training labels.

    Raises:
        UnsupportedModel: the model or a setting of it is not a smooth convex problem with an L2 penalty.
    """
    for kind, read in OBJECTIVES.items():
        if isinstance(model, kind):
            return read(model, labels, classes)
    names = ", ".join(kind.__name__ for kind in OBJECTIVES)
    raise UnsupportedModel(
        f"a {type(model).__name__}",
        f"a linear model with a convex objective ({names}), alone or at the end of a Pipeline",
        "use KNNShapley or DataOOB, which take any model, or LeaveOneOut(steps='refit')",
    )


def _ridge(model: Any, labels: Array, classes: Array | None) -> Objective:
    """|y − Xw − b|² + α|w|², halved."""
    if model.positive:
        raise UnsupportedModel("Ridge(positive=True)", "an unconstrained problem", "set positive=False")
    if np.ndim(model.alpha) != 0:
        raise UnsupportedModel("one alpha per target", "a single alpha and a single target", "fit one target at a time")
    return Objective(Squared(), float(model.alpha), intercept=float(model.fit_intercept))


def _least_squares(model: Any, labels: Array, classes: Array | None) -> Objective:
    """|y − Xw − b|², halved."""
    if model.positive:
        raise UnsupportedModel("LinearRegression(positive=True)", "an unconstrained problem", "set positive=False")
    return Objective(Squared(), 0.0, intercept=float(model.fit_intercept))


def _logistic(model: Any, labels: Array, classes: Array | None) -> Objective:
    """C Σ s ℓ + ½|w|², divided by C; liblinear also regularises the intercept, as the weight of a constant feature."""
    assert classes is not None
    kind = getattr(model, "penalty", "l2")
    if kind in ("l1", "elasticnet") or getattr(model, "l1_ratio", None):
        raise UnsupportedModel(
            "an L1 penalty", "L2 or none: L1 optima have no curvature where coefficients are zero", "use l1_ratio=0"
        )
    penalty = 0.0 if kind is None or np.isinf(model.C) else 1.0 / float(model.C)
    liblinear = model.solver == "liblinear"
    if liblinear and len(classes) > 2:
        raise UnsupportedModel(
            "liblinear with several classes (one-versus-rest)", "a multinomial model", "use solver='lbfgs'"
        )
    loss: Loss = Logistic() if len(classes) == 2 else Softmax(len(classes))
    weight, notes = _class_weight(model.class_weight, classes, labels)
    column = float(model.fit_intercept) * (float(model.intercept_scaling) if liblinear else 1.0)
    return Objective(loss, penalty, 0.0, column, penalty if liblinear else 0.0, weight, notes)


def _linear_svc(model: Any, labels: Array, classes: Array | None) -> Objective:
    """C Σ s ℓ + ½(|w|² + b²), divided by C."""
    assert classes is not None
    _two_classes(model, classes)
    if model.penalty != "l2":
        raise UnsupportedModel(f"LinearSVC(penalty={model.penalty!r})", "penalty='l2'", "set penalty='l2'")
    loss, notes = _hinge(model.loss)
    weight, more = _class_weight(model.class_weight, classes, labels)
    penalty = 1.0 / float(model.C)
    column = float(model.fit_intercept) * float(model.intercept_scaling)
    return Objective(loss, penalty, 0.0, column, penalty, weight, notes + more)


def _sgd(model: Any, labels: Array, classes: Array | None) -> Objective:
    """(1/n) Σ s ℓ + ½ α|w|², times n: each removed row takes α of the penalty with it."""
    assert classes is not None
    _two_classes(model, classes)
    if model.penalty != "l2":
        raise UnsupportedModel(f"SGDClassifier(penalty={model.penalty!r})", "penalty='l2'", "set penalty='l2'")
    loss, notes = (Logistic(), ()) if model.loss == "log_loss" else _hinge(model.loss)
    weight, more = _class_weight(model.class_weight, classes, labels)
    return Objective(
        loss,
        float(model.alpha) * len(labels),
        float(model.alpha),
        float(model.fit_intercept),
        0.0,
        weight,
        notes + more,
    )


OBJECTIVES: dict[type, Callable[[Any, Array, Array | None], Objective]] = {
    Ridge: _ridge,
    LinearRegression: _least_squares,
    LogisticRegression: _logistic,
    LinearSVC: _linear_svc,
    SGDClassifier: _sgd,
}


def _two_classes(model: Any, classes: Array) -> None:
    if len(classes) != 2:
        name = type(model).__name__
        raise UnsupportedModel(
            f"{name} with {len(classes)} classes (one-versus-rest)", "two classes", "use LogisticRegression"
        )


def _hinge(name: str) -> tuple[Loss, tuple[str, ...]]:
    if name == "squared_hinge":
        return SquaredHinge(), ()
    if name == "hinge":
        note = (
            f"The hinge has no curvature; the smooth hinge with temperature {SMOOTH} (Koh & Liang 2017) stands for it."
        )
        return Logistic(offset=1.0, temperature=SMOOTH), (note,)
    raise UnsupportedModel(f"loss={name!r}", "'log_loss', 'squared_hinge' or 'hinge'", "choose one of these losses")


def _class_weight(setting: Any, classes: Array, labels: Array) -> tuple[Array | None, tuple[str, ...]]:
    if setting is None:
        return None, ()
    per_class = compute_class_weight(setting, classes=classes, y=labels)
    note = ("Balanced class weights are held as they are while a row is removed.",) if setting == "balanced" else ()
    return per_class[np.searchsorted(classes, labels)], note
