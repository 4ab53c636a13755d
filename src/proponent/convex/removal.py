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
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from proponent.convex.certificate import distance_after_step, distance_at_optimum, distance_by_strong_convexity
from proponent.convex.curvature import Factor, factorise
from proponent.convex.optimum import Optimum, find_optimum
from proponent.convex.problem import Problem, dense
from proponent.errors import NotConverged

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Neighbourhood:
    """What all single removals share.

    Args:
        optimum: Θ̂.
        factor: Cholesky of H'.
        drift: (c·d,) what the changed penalty pulls, zero for most models.
    """

    optimum: Optimum
    factor: Factor
    drift: Array

    @property
    def problem(self) -> Problem:
        return self.optimum.problem

    @cached_property
    def reach(self) -> tuple[float, float, int]:
        """How far a unit step can move a row's logits, |x_j ⊗ u|_{H'⁻¹} with u = 1, or e_c − e_c' for several outputs.

        The largest and the second largest over the training rows, and the row of the largest.
        """
        x = _row_blocks(self.problem)
        norms = np.concatenate([spread_norms(self.factor, self.problem, block).max(axis=1) for block in x])
        order = np.argsort(norms)
        second = float(norms[order[-2]]) if len(norms) > 1 else 0.0
        return float(norms[order[-1]]), second, int(order[-1])

    def reach_without(self, rows: Array) -> Array:
        """The reach over the other rows, for each removed row."""
        return np.where(rows == self.reach[2], self.reach[1], self.reach[0])

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
    return Neighbourhood(optimum, factor, drift)


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
    return _own(solved_rows(factor, problem, x), dense(x))


def solved_rows(factor: Factor, problem: Problem, x: Any) -> Array:
    """H'⁻¹ (e_c ⊗ x_j) for every row and output: (c, c·d, rows)."""
    c, d = problem.outputs, problem.features
    if c == 1 and not sparse.issparse(x):
        return factor.solve(x.T)[None]
    blocks = factor.inverse.reshape(c, d, c * d)
    return np.stack([np.asarray(x @ blocks[k]).T for k in range(c)])


def _own(z: Array, x: Array) -> Array:
    """K_bcm = (e_m ⊗ x_b)ᵀ z_cb, from solved rows z (c, c·d, b)."""
    c = len(z)
    return np.einsum("bp,cmpb->bcm", x, z.reshape(c, c, -1, len(x)), optimize=True)


@dataclass(frozen=True)
class _Block:
    """A⁻¹ for each of b removed rows: A_i⁻¹ = H'⁻¹ + H'⁻¹ U_i M_i U_iᵀ H'⁻¹ with U_i = I ⊗ x_i, M_i = (I − W_i K_i)⁻¹ W_i.

    Args:
        share: (b, c, c) (I − W_i K_i)⁻¹, the leverage correction.
        curvature: (b, c, c) W_i.
        z: (c, c·d, b) H'⁻¹ (e_c ⊗ x_i), kept because every step needs it.
    """

    home: Neighbourhood
    rows: Array
    x: Array
    share: Array
    curvature: Array
    stretch: Array
    z: Array

    def spread_out(self, k: Array) -> Array:
        """H'⁻¹ Σ_c k_bc (e_c ⊗ x_b): (c·d, b) from (b, c)."""
        return (
            np.asarray(self.z[0] * k[:, 0]) if len(self.z) == 1 else np.einsum("cpb,bc->pb", self.z, k, optimize=True)
        )

    def first(self) -> tuple[Array, Array]:
        """The Newton step Δ₁ = A⁻¹(U g + drift), and |Δ₁|_A."""
        g = self.home.optimum.gradient[self.rows]
        step = self.spread_out(np.einsum("bkm,bm->bk", self.share, g))
        along = np.einsum("bc,bc->b", self._own(step), g)  # Δ₁ᵀ U g
        if self.home.drift.any():
            drift = np.broadcast_to(self.home.drift[:, None], step.shape)
            step = step + self.solve(drift)
            along = np.einsum("bc,bc->b", self._own(step), g) + self.home.drift @ step
        return step, np.sqrt(np.maximum(along, 0.0))

    def solve(self, v: Array) -> Array:
        u = self.home.factor.solve(v)
        return np.asarray(u + self.spread_out(np.einsum("bkl,blm,bm->bk", self.share, self.curvature, self._own(u))))

    def _own(self, u: Array) -> Array:
        """U_iᵀ u_i: (b, c)."""
        c = self.share.shape[1]
        return np.einsum("bp,cpb->bc", self.x, u.reshape(c, -1, len(self.rows)), optimize=True)

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
    # A block of logits of about 6 MB keeps the passes over it in the cache's reach and the memory flat in n.
    logits = home.problem.rows * home.problem.outputs if steps > 1 else 1
    solved = home.problem.outputs * home.problem.parameters
    block = max(8, min(1024, int(7e5 / logits), int(8e6 / solved)))
    for at in range(0, len(rows), block):
        yield _remove_block(home, rows[at : at + block], steps, tolerance)


def _remove_block(home: Neighbourhood, rows: Array, steps: int, tolerance: float) -> Removals:
    made = _block(home, rows)
    first, size = made.first()
    moved = Removals(rows, first, size, np.full(len(rows), np.inf), made.stretch)
    if steps <= 1:
        return moved
    path = _Path(made, first, np.zeros_like(first), moved.distance)
    for _ in range(steps - 1):
        path = _advance(path, size)
    distance, delta, pulled = path.distance, path.delta, path.pulled
    for _ in range(MORE_STEPS):
        loose = np.flatnonzero(~(distance <= tolerance * size) & np.isfinite(size))
        if len(loose) == 0:
            break
        part = _Path(_subset(made, loose), delta[:, loose], pulled[:, loose], distance[loose])
        part = _advance(part, size[loose])
        delta[:, loose], pulled[:, loose], distance[loose] = part.delta, part.pulled, part.distance
    stretch = made.stretch.copy()
    refitted = np.flatnonzero(~(distance <= tolerance * size))
    for k in refitted if home.problem.parameters <= REFIT_PARAMETERS else []:
        better = refit(home, _without_row(home.problem, int(rows[k])), delta[:, k])
        if better is not None:
            delta[:, k], distance[k], stretch[k] = better
    return Removals(rows, delta, size, distance, stretch)


MORE_STEPS = 8
REFIT_PARAMETERS = 1_500
"""Parameters up to which a row whose bound stays loose is refitted alone; beyond, it keeps its wide bound."""


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
        penalty = home.problem.penalty_without_one()
        stiff = stiffness(home.factor, penalty)
        distance = distance_by_strong_convexity(residual, np.tile(penalty, home.problem.outputs), stiff)
    return _Path(made, path.delta - step, pulled, distance + home.rounding(size, made.stretch))


def refit(home: Neighbourhood, without: Problem, start: Array) -> tuple[Array, float, float] | None:
    """The exact refit by Newton's method, its bound, and its own stretch.

    None where there is no optimum, or where what was removed alone determined a coefficient: then what a refit does is a
    convention.

    Args:
        home: the full problem's neighbourhood.
        without: the problem after the removal.
        start: (c·d,) a step to start from; ignored where it is not finite.
    """
    theta, loss = home.optimum.theta, without.loss
    try:
        found = find_optimum(without, theta + start.reshape(theta.shape) if np.isfinite(start).all() else theta)
    except NotConverged:
        return None
    factor = factorise(without.hessian(found.curvature, without.penalty))
    if factor.free > home.factor.free:
        return None
    stretch, delta = home.stretch_of(factor), (found.theta - theta).ravel()
    if np.isfinite(loss.self_concordance):
        reach = np.array([home.reach[0] * stretch])
        left = distance_at_optimum(np.array([found.error]), reach, loss.self_concordance)
    else:
        residual = without.gradient(found.theta, found.logits).reshape(-1, 1)
        penalty = np.tile(without.penalty, without.outputs)
        left = distance_by_strong_convexity(residual, penalty, stiffness(factor, without.penalty))
    size = np.array([np.linalg.norm(home.factor.lower.T @ delta)])
    return delta, float(left[0] + home.rounding(size, np.array([stretch]))[0]), stretch


def stiffness(factor: Factor, penalty: Array) -> float:
    """A bound on the largest eigenvalue of a curvature relative to the penalty: trace over smallest penalty."""
    weak = penalty.min()
    return float(np.square(factor.lower).sum() / weak) if weak > 0 else float("inf")


def _without_row(problem: Problem, row: int) -> Problem:
    weight = problem.weight.copy()
    weight[row] = 0.0
    return replace(problem, weight=weight, penalty=problem.penalty_without_one(), penalty_shrinks=0.0)


def _subset(made: _Block, at: Array) -> _Block:
    return replace(
        made,
        rows=made.rows[at],
        x=made.x[at],
        share=made.share[at],
        curvature=made.curvature[at],
        stretch=made.stretch[at],
        z=made.z[:, :, at],
    )


def _block(home: Neighbourhood, rows: Array) -> _Block:
    problem = home.problem
    x, w = problem.x[rows], home.optimum.curvature[rows]
    z, x = solved_rows(home.factor, problem, x), dense(x)
    wk = w @ _own(z, x)
    taken = np.maximum(wk[:, 0, 0] if problem.outputs == 1 else np.linalg.eigvals(wk).real.max(axis=1), 0.0)
    left = np.where(taken < 1.0 - 1e-11, 1.0 - taken, np.nan)  # NaN: without the row a coefficient is not determined
    known = np.where(np.isnan(left), 0.0, 1.0)[:, None, None]
    share = np.linalg.inv(np.eye(problem.outputs) - known * wk) / np.where(known > 0, 1.0, np.nan)
    return _Block(home, rows, x, share, w, np.nan_to_num(1.0 / np.sqrt(left), nan=np.inf), z)


def _row_blocks(problem: Problem) -> Iterator[Any]:
    size = max(16, int(8e6 / (problem.parameters * problem.outputs)))
    for at in range(0, problem.rows, size):
        yield problem.x[at : at + size]
