"""The exact optimum of a convex problem, by Newton's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.convex.curvature import curvature_of
from proponent.convex.problem import Problem
from proponent.errors import InputError, NotConverged

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Optimum:
    """A problem's optimum Θ̂ with what every removal needs of it.

    Args:
        theta: (c, d) parameters.
        logits: (n, c).
        gradient: (n, c) s_j ∇ℓ_j.
        curvature: (n, c, c) s_j ∇²ℓ_j.
        error: the Newton decrement |∇F|_{H⁻¹} at Θ̂: how far from the exact optimum rounding left it.
        moved: the largest change of a training row's logit from the parameters that were given.
    """

    problem: Problem
    theta: Array
    logits: Array
    gradient: Array
    curvature: Array
    error: float
    moved: float


def find_optimum(problem: Problem, start: Array | None = None, *, steps: int = 100) -> Optimum:
    """The optimum by Newton's method with a line search, from `start` or from zero.

    Raises:
        NotConverged: there is no finite optimum (separable classes and nothing to regularise), or none was reached.
    """
    theta = np.zeros((problem.outputs, problem.features)) if start is None else np.array(start, dtype=np.float64)
    if not np.isfinite(theta).all():
        raise InputError(
            "model coefficients that are not finite", "a fitted model", "check the features for inf and NaN"
        )
    logits = given = problem.logits(theta)
    decrement = np.inf
    for _ in range(steps):
        gradient = problem.gradient(theta, logits)
        curvature = problem.weight[:, None, None] * problem.loss.hessian(logits, problem.y)
        direction = (
            curvature_of(problem, curvature, problem.penalty).solve(gradient.reshape(-1, 1)).reshape(theta.shape)
        )
        before, decrement = decrement, float(np.sqrt(max(0.0, (gradient * direction).sum())))
        if np.abs(logits).max() > _far(problem) or not np.isfinite(decrement):
            break
        floor = 1e-13 * np.sqrt(1.0 + abs(problem.value(theta, logits)))
        if decrement <= floor or (decrement < 1e-7 and decrement > 0.5 * before):
            pull = problem.weight[:, None] * problem.loss.gradient(logits, problem.y)
            moved = 0.0 if start is None else float(np.abs(logits - given).max())
            return Optimum(problem, theta, logits, pull, curvature, decrement, moved)
        theta, logits = _advance(problem, theta, logits, direction, decrement)
    raise NotConverged(
        f"no optimum after {steps} Newton steps (decrement {decrement:.2g}, largest logit {np.abs(logits).max():.3g})",
        "an objective with a finite minimum",
        "the classes are probably separable with too little regularisation: lower C (raise alpha), or drop redundant columns",
    )


def _far(problem: Problem) -> float:
    """Logits beyond which no finite optimum is expected: without a penalty, e^−30 says that some rows are separated."""
    free = problem.penalty.max() == 0.0
    return 30.0 / problem.loss.self_concordance if free and 0.0 < problem.loss.self_concordance < np.inf else 1e8


def _advance(problem: Problem, theta: Array, logits: Array, direction: Array, decrement: float) -> tuple[Array, Array]:
    """Backtrack until F falls enough; close to the optimum, where rounding hides the fall, the full step is right."""
    now = problem.value(theta, logits)
    if decrement > 1e-5 * np.sqrt(1.0 + abs(now)):
        along, step = problem.logits(direction), 1.0
        while step > 1e-8:
            trial, trial_logits = theta - step * direction, logits - step * along
            if problem.value(trial, trial_logits) <= now - 0.25 * step * decrement**2:
                return trial, trial_logits
            step *= 0.5
    return theta - direction, problem.logits(theta - direction)
