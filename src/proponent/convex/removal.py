"""Leave-one-out by Newton steps from the optimum, many rows at once, each with a bound on what is left.

Remove row i. With A = H' − s_i ∇²ℓ_i ⊗ x_i x_iᵀ (H' the curvature with the penalty of n − 1 rows) the refitted
parameters Θ̂ + Δ* satisfy, exactly,

    A Δ = g_i + drift − Xᵀγ(Δ),     γ_j(Δ) = s_j [∇ℓ_j(f̂_j + Δ x_j) − ∇ℓ_j(f̂_j) − ∇²ℓ_j Δ x_j],  γ_i = 0,

so Δ₁ = A⁻¹(g_i + drift) is the leverage-corrected Newton step and Δ_{k+1} = Δ₁ − A⁻¹Xᵀγ(Δ_k) goes on from there.
A⁻¹ is H'⁻¹ with a rank-c correction, so nothing is factorised twice.

Index letters: j training rows, i removed rows (columns of a block, b of them), c outputs, p features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from proponent.convex.certificate import distance_after_step, distance_at_optimum, distance_by_strong_convexity
from proponent.convex.curvature import Factor, factorise
from proponent.convex.optimum import Optimum, find_optimum
from proponent.convex.problem import Problem
from proponent.errors import NotConverged

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Neighbourhood:
    """What all single removals share.

    Args:
        optimum: Θ̂.
        factor: Cholesky of H'.
        drift: (c·d,) what the changed penalty pulls, zero for most models.
        reach: the two largest over training rows j of the largest |x_j ⊗ u|_{H'⁻¹} (u = e_c − e_c', or 1 for one output),
            and the row of the largest: how far a unit step can move a logit.
    """

    optimum: Optimum
    factor: Factor
    drift: Array
    reach: tuple[float, float, int]

    @property
    def problem(self) -> Problem:
        return self.optimum.problem

    def reach_without(self, rows: Array) -> Array:
        """The reach over the other rows, for each removed row."""
        return np.where(rows == self.reach[2], self.reach[1], self.reach[0])

    @property
    def stiffness(self) -> float:
        """A bound on the largest eigenvalue of H' relative to the penalty: trace over smallest penalty."""
        weak = self.problem.penalty_without_one().min()
        return float(np.square(self.factor.lower).sum() / weak) if weak > 0 else float("inf")

    def stretch_of(self, factor: Factor) -> float:
        """√λ_max of H' relative to another curvature L Lᵀ."""
        relative = factor.half_solve(factor.half_solve(self.factor.lower @ self.factor.lower.T).T)
        if not np.isfinite(relative).all():
            return float("inf")
        return float(np.sqrt(max(np.linalg.eigvalsh(0.5 * (relative + relative.T))[-1], 0.0)))

    def rounding(self, size: Array, stretch: Array) -> Array:
        """What float64 can add to a distance: the backward error of the solves, and Θ̂'s own distance from the optimum."""
        epsilon = np.finfo(np.float64).eps * len(self.drift)
        return epsilon * self.factor.condition * size + 2.0 * stretch * self.optimum.error


@dataclass(frozen=True)
class Removals:
    """A block of rows, each removed alone: its step and how far the exact refit can be from it.

    Args:
        rows: (b,) positions.
        delta: (c·d, b) parameters after the removal minus before.
        size: (b,) |Δ₁|_A.
        distance: (b,) a bound on |Δ* − Δ|_A; infinite where nothing is known.
        stretch: (b,) |v|_{A⁻¹} ≤ stretch · |v|_{H'⁻¹} for every v.
    """

    rows: Array
    delta: Array
    size: Array
    distance: Array
    stretch: Array


def neighbourhood(optimum: Optimum) -> Neighbourhood:
    """Prepare all single removals from an optimum."""
    problem = optimum.problem
    penalty = problem.penalty_without_one()
    factor = factorise(problem.hessian(optimum.curvature, penalty))
    drift = ((problem.penalty - penalty) * optimum.theta).ravel()
    norms = np.concatenate([spread_norms(factor, problem, x).max(axis=1) for x in _row_blocks(problem)])
    order = np.argsort(norms)
    second = float(norms[order[-2]]) if len(norms) > 1 else 0.0
    return Neighbourhood(optimum, factor, drift, (float(norms[order[-1]]), second, int(order[-1])))


def spread_norms(factor: Factor, problem: Problem, x: Any, against: Array | None = None) -> Array:
    """|x_j ⊗ u|_{H'⁻¹} for all pairs of outputs, or for pairs with output `against`: shape (rows, pairs or outputs)."""
    k = leverage(factor, problem, x)
    if problem.outputs == 1:
        return np.asarray(np.sqrt(np.maximum(k[:, 0], 0.0)))
    own = np.diagonal(k, axis1=1, axis2=2)
    square = own[:, :, None] + own[:, None, :] - 2 * k
    if against is None:
        return np.asarray(np.sqrt(np.maximum(square, 0.0)).reshape(len(k), -1))
    return np.asarray(np.sqrt(np.maximum(square[np.arange(len(k)), :, against], 0.0)))


def leverage(factor: Factor, problem: Problem, x: Any) -> Array:
    """(I ⊗ x_j)ᵀ H'⁻¹ (I ⊗ x_j), shape (rows, c, c)."""
    dense = _dense(x)
    c, d = problem.outputs, problem.features
    if c == 1:
        half = factor.half_solve(dense.T)
        return np.einsum("pb,pb->b", half, half)[:, None, None]
    halves = np.empty((c, c * d, len(dense)))
    for k in range(c):
        lifted = np.zeros((c, d, len(dense)))
        lifted[k] = dense.T
        halves[k] = factor.half_solve(lifted.reshape(c * d, -1))
    return np.einsum("kpb,mpb->bkm", halves, halves, optimize=True)


@dataclass(frozen=True)
class _Block:
    """A⁻¹ for each of b removed rows: A_i⁻¹ = H'⁻¹ + H'⁻¹ U_i M_i U_iᵀ H'⁻¹ with U_i = I ⊗ x_i."""

    home: Neighbourhood
    rows: Array
    x: Array
    middle: Array  # (b, c, c) M = (I − W K)⁻¹ W
    stretch: Array

    def lift(self, k: Array) -> Array:
        """Σ_c k_bc (e_c ⊗ x_b): (c·d, b) from (b, c)."""
        return np.asarray((k.T[:, None, :] * self.x.T[None]).reshape(-1, len(self.rows)))

    def solve(self, v: Array) -> Array:
        u = self.home.factor.solve(v)
        c = self.middle.shape[1]
        t = np.einsum("bp,cpb->bc", self.x, u.reshape(c, -1, len(self.rows)), optimize=True)
        return np.asarray(u + self.home.factor.solve(self.lift(np.einsum("bkm,bm->bk", self.middle, t))))

    def nonlinearity(self, delta: Array) -> tuple[Array, Array]:
        """Xᵀγ(Δ) (c·d, b), and the largest move of another row's logits (b,)."""
        problem, optimum = self.home.problem, self.home.optimum
        d = problem.logits_of_columns(delta)
        d[self.rows, :, np.arange(len(self.rows))] = 0.0
        spread = problem.loss.spread(d).max(axis=0)
        gamma = problem.loss.remainder(optimum.logits, d, problem.y)
        if not (problem.weight == 1.0).all():
            gamma *= problem.weight[:, None, None]
        return problem.pull_back(gamma), spread


def remove_each(home: Neighbourhood, rows: Array, *, steps: int = 2, tolerance: float = 1e-3) -> Iterator[Removals]:
    """Remove each of these rows alone, block by block.

    Args:
        rows: (m,) positions of training rows.
        steps: 1 for the Newton step alone (no bound), 2 or more for further steps, with a bound.
        tolerance: rows whose bound exceeds tolerance · |Δ₁|_A get more steps, at the last a Newton refit of their own.
    """
    # A block of logits of about 16 MB keeps the passes over it in the cache's reach and the memory flat in n.
    block = 1024 if steps <= 1 else max(8, min(1024, int(2e6 / (home.problem.rows * home.problem.outputs))))
    for at in range(0, len(rows), block):
        yield _remove_block(home, rows[at : at + block], steps, tolerance)


def _remove_block(home: Neighbourhood, rows: Array, steps: int, tolerance: float) -> Removals:
    made = _block(home, rows)
    pull = made.lift(home.optimum.gradient[rows]) + home.drift[:, None]
    first = made.solve(pull)
    size = np.sqrt(np.maximum((first * pull).sum(axis=0), 0.0))
    moved = Removals(rows, first, size, np.full(len(rows), np.inf), made.stretch)
    if steps <= 1:
        return moved
    path = _Path(made, first, np.zeros_like(first), moved.distance)
    for _ in range(steps - 1):
        path = _advance(path, size)
    distance, delta = path.distance, path.delta
    loose = np.flatnonzero(~(distance <= tolerance * size))
    if len(loose):
        part = _Path(_subset(made, loose), delta[:, loose], path.pulled[:, loose], distance[loose])
        for _ in range(MORE_STEPS):
            part = _advance(part, size[loose])
        delta[:, loose], distance[loose] = part.delta, part.distance
    stretch = made.stretch.copy()
    for k in np.flatnonzero(~(distance <= tolerance * size)):
        better = _refit(home, int(rows[k]), delta[:, k])
        if better is not None:
            delta[:, k], distance[k], stretch[k] = better
    return Removals(rows, delta, size, distance, stretch)


MORE_STEPS = 3


@dataclass(frozen=True)
class _Path:
    """Where the iteration stands: Δ_{k+1}, Xᵀγ(Δ_k), and the bound on what is left."""

    made: _Block
    delta: Array
    pulled: Array
    distance: Array


def _advance(path: _Path, size: Array) -> _Path:
    """One more step for every row of the block, with the bound that it gives."""
    home, made = path.made.home, path.made
    pulled, spread = made.nonlinearity(path.delta)
    residual = pulled - path.pulled
    step = made.solve(residual)
    nu = np.sqrt(np.maximum((step * residual).sum(axis=0), 0.0))
    concordance = home.problem.loss.self_concordance
    if np.isfinite(concordance):
        distance = distance_after_step(nu, spread, home.reach_without(made.rows) * made.stretch, concordance)
    else:
        penalty = np.tile(home.problem.penalty_without_one(), home.problem.outputs)
        distance = distance_by_strong_convexity(residual, penalty, home.stiffness)
    return _Path(made, path.delta - step, pulled, distance + home.rounding(size, made.stretch))


def _refit(home: Neighbourhood, row: int, start: Array) -> tuple[Array, float, float] | None:
    """The exact refit without one row by Newton's method, its bound, and its own stretch; None where there is no optimum."""
    problem, theta = home.problem, home.optimum.theta
    weight = problem.weight.copy()
    weight[row] = 0.0
    without = replace(problem, weight=weight, penalty=problem.penalty_without_one(), penalty_shrinks=0.0)
    try:
        found = find_optimum(without, theta + start.reshape(theta.shape) if np.isfinite(start).all() else theta)
    except NotConverged:
        return None
    factor = factorise(without.hessian(found.curvature, without.penalty))
    if (
        factor.free > home.factor.free
    ):  # the row alone determined a coefficient: what the refit would do is a convention
        return None
    stretch = home.stretch_of(factor)
    delta = (found.theta - theta).ravel()
    error = np.array([found.error])
    concordance = problem.loss.self_concordance
    if np.isfinite(concordance):
        left = distance_at_optimum(error, np.array([home.reach[0] * stretch]), concordance)
    else:
        residual = without.gradient(found.theta, found.logits).reshape(-1, 1)
        left = distance_by_strong_convexity(residual, np.tile(without.penalty, problem.outputs), home.stiffness)
    size = np.array([np.linalg.norm(home.factor.lower.T @ delta)])
    return delta, float(left[0] + home.rounding(size, np.array([stretch]))[0]), stretch


def _subset(made: _Block, at: Array) -> _Block:
    return _Block(made.home, made.rows[at], made.x[at], made.middle[at], made.stretch[at])


def _block(home: Neighbourhood, rows: Array) -> _Block:
    problem = home.problem
    x = _dense(problem.x[rows])
    w = home.optimum.curvature[rows]
    k = leverage(home.factor, problem, x)
    identity = np.eye(problem.outputs)
    wk = w @ k
    taken = (
        np.clip(np.linalg.eigvals(wk).real.max(axis=1), 0.0, None)
        if problem.outputs > 1
        else np.clip(wk[:, 0, 0], 0.0, None)
    )
    left = np.where(taken < 1.0 - 1e-11, 1.0 - taken, np.nan)  # NaN: without the row a coefficient is not determined
    known = np.where(np.isnan(left), 0.0, 1.0)[:, None, None]
    middle = np.linalg.solve(identity - known * wk, w) / np.where(known > 0, 1.0, np.nan)
    return _Block(home, rows, x, middle, np.nan_to_num(1.0 / np.sqrt(left), nan=np.inf))


def _dense(x: Any) -> Array:
    return np.asarray(x.toarray() if sparse.issparse(x) else x)


def _row_blocks(problem: Problem) -> Iterator[Any]:
    size = max(16, int(4e6 / (problem.parameters * problem.outputs)))
    for at in range(0, problem.rows, size):
        yield problem.x[at : at + size]
