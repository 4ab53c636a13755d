"""The optima of many convex problems at once: steps by an inverse curvature that is kept while it serves.

One step of a problem is Θ − B ∇F(Θ). B starts as an inverse curvature H⁻¹ (of a subset close by, or of all training
rows), is bent by the latest steps as L-BFGS does, and H⁻¹ is computed anew where the steps that are left at the present
rate would cost more than that. With a new H⁻¹ at every step this is Newton's method.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from proponent.retrain.newton_stack import Stack

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCE = 1e-9
"""The decrement √(∇F·B∇F), relative to √(1 + |F|), at which one more step ends a descent."""

ACCEPTED = 1e-6
"""The largest such decrement that counts as an optimum where rounding keeps it from falling further."""

MEMORY = 10
"""How many of the latest steps bend B."""

STEPS, PATIENCE = 400, 30
"""The most steps of a descent, and the most in which its decrement does not halve."""

SINGULAR = 1e11
"""How many times a parameter's variance may grow by the others'; beyond, the curvature is singular to rounding."""


@dataclass(frozen=True)
class Reached:
    """Where descents ended.

    Args:
        theta: (s, c, p) parameters.
        short: (s,) the relative decrement before the last step; inf where the descent was given up.
        inverse: (s, k, k) inverse curvatures close by, or the (k, k) that all shared.
    """

    theta: Array
    short: Array
    inverse: Array

    @property
    def optimal(self) -> Array:
        """(s,) whether it is an optimum."""
        return self.short <= ACCEPTED


def minimise(stack: Stack, theta: Array, inverse: Array | None = None, unit: Array | None = None) -> Reached:
    """The optimum of each problem, from `theta` (s, c, p).

    Args:
        stack: the problems.
        theta: where to start.
        inverse: (s, k, k) inverse curvatures to start with, changed in place where they are computed anew; (k, k) one that
            all problems share to the end; None computes one for each first.
        unit: (s, k) what to multiply a shared inverse curvature by, on both sides, for each problem.
    """
    if inverse is None:
        inverse = inverse_curvatures(stack, theta)
    ends, short, at = theta.copy(), np.full(len(stack), np.inf), np.arange(len(stack))
    value, gradient = stack.at(theta)
    steps, pace = Steps(), Pace.start(len(stack), renewal_cost(stack) if inverse.ndim == 3 else np.inf)
    for _ in range(STEPS):
        direction, fall = _direction(stack, gradient, steps, _held(inverse, at, len(ends)), unit)
        left = np.sqrt(np.abs(fall) / (1.0 + np.abs(value)))
        if (renew := pace.wants(left, fall < 0)).any():
            inverse[at[renew]] = inverse_curvatures(stack.take(renew), theta[renew])
            steps.forget(renew)
            direction, fall = _direction(stack, gradient, steps, _held(inverse, at, len(ends)), unit)
            left = np.sqrt(np.abs(fall) / (1.0 + np.abs(value)))
        pace.see(left, renew)
        if (done := pace.done).any():
            ends[at[done]], short[at[done]] = theta[done] - direction[done], left[done]
            go = ~done
            if not go.any():
                break
            stack, at, steps, pace = stack.take(go), at[go], steps.take(go), pace.take(go)
            unit = None if unit is None else unit[go]
            theta, value, gradient, direction, fall = (a[go] for a in (theta, value, gradient, direction, fall))
        moved, value, bent = _advance(stack, theta, value, direction, fall)
        steps.add(*(_parts(stack, change) for change in (moved - theta, bent - gradient)))
        theta, gradient = moved, bent
    return Reached(ends, np.where(np.isfinite(short), short, np.inf), inverse)


def inverse_curvatures(stack: Stack, theta: Array) -> Array:
    """(s, k, k) inverses of the problems' curvatures; NaN where one is singular to rounding."""
    curvature = stack.curvatures(theta)
    diagonal = np.einsum("skk->sk", curvature)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    curvature *= scale[:, :, None]
    curvature *= scale[:, None, :]
    try:
        inverse = np.linalg.inv(curvature)
    except np.linalg.LinAlgError:
        inverse = np.stack([_inverse_or_nan(one) for one in curvature])
    grown = np.einsum("skk->sk", inverse)
    inverse[~((grown > 0.5) & (grown < SINGULAR)).all(axis=1)] = np.nan
    inverse *= scale[:, :, None]
    inverse *= scale[:, None, :]
    return inverse


def renewal_cost(stack: Stack) -> float:
    """How many steps cost as much as a new inverse curvature.

    Counted in floating-point operations, with weights as measured: an inverse, and what is done to it before and after, runs
    at a twelfth of a product's speed, and a logit's exponential takes as long as 200 operations of a product.
    """
    (n, p), c, k = stack.design.x.shape, stack.loss.outputs, stack.order
    pairs = k // p * (k // p + 1) // 2
    return float((pairs * n * p**2 + 12 * k**3) / (4 * n * c * p + 200 * n * c + 4 * k**2 * (c * p // k)))


@dataclass
class Steps:
    """The latest steps of some descents, and by how much each changed the gradient: both (s, parts, k)."""

    moved: list[Array] = field(default_factory=list)
    bent: list[Array] = field(default_factory=list)
    scale: list[Array] = field(default_factory=list)

    def add(self, moved: Array, bent: Array) -> None:
        """Take in a step of every descent."""
        along, size = _dot(moved, bent), _dot(bent, bent)
        scale = np.divide(1.0, along, out=np.zeros_like(along), where=along > 1e-300 + 1e-14 * size)
        self.moved, self.bent = [*self.moved, moved][-MEMORY:], [*self.bent, bent][-MEMORY:]
        self.scale = [*self.scale, scale][-MEMORY:]

    def forget(self, at: Array) -> None:
        """The steps of these descents."""
        for scale in self.scale:
            scale[at] = 0.0

    def take(self, at: Array) -> Steps:
        """The steps of these descents."""
        return Steps(*([part[at] for part in parts] for parts in (self.moved, self.bent, self.scale)))

    def direction(self, gradient: Array, inverse: Array, unit: Array | None) -> Array:
        """B ∇F by the two-loop recursion around H⁻¹ (Nocedal & Wright, algorithm 7.4)."""
        shares: list[Array] = []
        for moved, bent, scale in zip(self.moved[::-1], self.bent[::-1], self.scale[::-1], strict=True):
            shares.append(scale * _dot(moved, gradient))
            gradient = gradient - shares[-1][:, None, None] * bent
        step = gradient @ inverse if unit is None else (gradient * unit[:, None]) @ inverse * unit[:, None]
        for moved, bent, scale, share in zip(self.moved, self.bent, self.scale, shares[::-1], strict=True):
            step += (share - scale * _dot(bent, step))[:, None, None] * moved
        return step


@dataclass
class Pace:
    """How fast descents get on.

    Args:
        cost: of a new inverse curvature, in steps.
        first: the decrement when the inverse curvature was new.
        age: steps since then.
        best: the smallest decrement so far, to a factor of two.
        stale: steps since then.
        left: the decrement now.
    """

    cost: float
    first: Array
    age: Array
    best: Array
    stale: Array
    left: Array

    @classmethod
    def start(cls, count: int, cost: float) -> Pace:
        far = np.full(count, np.inf)
        return cls(cost, far, np.zeros(count), far, np.zeros(count), far)

    def wants(self, left: Array, uphill: Array) -> Array:
        """Which descents are better off with a new inverse curvature."""
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.log(self.first / left) / self.age
            slow = np.log(left / TOLERANCE) > self.cost * np.maximum(rate, 0.0)
        return ((self.age > 0) & slow & (left > TOLERANCE) | uphill) & np.isfinite(self.cost)

    def see(self, left: Array, renewed: Array) -> None:
        """Take in the decrements of one more step."""
        begins = renewed | (self.age == 0) & ~np.isfinite(self.first)
        self.first = np.where(begins, left, self.first)
        self.age = np.where(begins, 1.0, self.age + 1.0)
        better = left < 0.5 * self.best
        self.best = np.where(better, left, self.best)
        self.stale = np.where(better, 0.0, self.stale + 1.0)
        self.left = left

    @property
    def done(self) -> Array:
        """Which descents end with one more step, or are given up."""
        return ~(self.left > TOLERANCE) | (self.stale > PATIENCE) & (self.left < ACCEPTED)

    def take(self, at: Array) -> Pace:
        """The pace of these descents."""
        return Pace(self.cost, *(a[at] for a in (self.first, self.age, self.best, self.stale, self.left)))


def _direction(stack: Stack, gradient: Array, steps: Steps, inverse: Array, unit: Array | None) -> tuple[Array, Array]:
    """B ∇F, and ∇F·B∇F."""
    direction = steps.direction(_parts(stack, gradient), inverse, unit).reshape(gradient.shape)
    if stack.absent is not None:
        direction[stack.absent] = 0.0
    return direction, _dot(gradient, direction)


def _advance(stack: Stack, theta: Array, value: Array, direction: Array, fall: Array) -> tuple[Array, Array, Array]:
    """The step, halved until F falls enough; close to the optimum, where rounding hides the fall, the whole step.

    A descent that does not fall at all has NaN as its gradient.
    """
    moved = theta - direction
    reached, gradient = stack.at(moved)
    far, step = fall > 1e-10 * (1.0 + np.abs(value)), np.ones(len(theta))
    high = np.flatnonzero(far & ~(reached <= value - 1e-4 * fall))
    while len(high) and step[high[0]] > 1e-12:
        step[high] *= 0.5
        moved[high] = theta[high] - step[high, None, None] * direction[high]
        reached[high], gradient[high] = stack.take(high).at(moved[high])
        high = high[~(reached[high] <= value[high] - 1e-4 * step[high] * fall[high])]
    gradient[high] = np.nan
    return moved, reached, gradient


def _held(inverse: Array, at: Array, count: int) -> Array:
    """The inverse curvatures of the descents that go on."""
    return inverse if inverse.ndim == 2 or len(at) == count else inverse[at]


def _parts(stack: Stack, theta: Array) -> Array:
    """Parameters (s, c, p) as the (s, parts, k) that a curvature (k, k) multiplies."""
    return theta.reshape(len(theta), -1, stack.order)


def _dot(a: Array, b: Array) -> Array:
    return np.asarray(np.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1)))


def _inverse_or_nan(curvature: Array) -> Array:
    try:
        return np.asarray(np.linalg.inv(curvature))
    except np.linalg.LinAlgError:
        return np.full_like(curvature, np.nan)
