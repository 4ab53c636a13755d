"""H⁻¹ for the curvature H of a problem: a Cholesky factor where H fits, conjugate gradients where it doesn't."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy import linalg

from proponent.convex.problem import Problem
from proponent.errors import NotConverged

Array = np.ndarray[Any, np.dtype[Any]]

MAX_DENSE = 8_000
"""Parameters up to which H is formed and factorised (288 MB at this size)."""


class Curvature(Protocol):
    """Anything that solves H v = g for the columns of g, shape (parameters, b)."""

    def solve(self, g: Array) -> Array: ...


@dataclass(frozen=True)
class Factor:
    """H = L Lᵀ.

    Args:
        lower: L.
        condition: an estimate of H's condition number, for rounding allowances.
        free: the number of directions in which H was zero to rounding (see `factorise`).
    """

    lower: Array
    condition: float
    free: int = 0

    def solve(self, g: Array) -> Array:
        return np.asarray(linalg.cho_solve((self.lower, True), g, check_finite=False))

    @cached_property
    def inverse(self) -> Array:
        """H⁻¹ itself, for products with sparse rows."""
        half, _ = linalg.lapack.dpotri(self.lower, lower=1)
        return np.asarray(np.tril(half) + np.tril(half, -1).T)

    def half_solve(self, g: Array) -> Array:
        """L⁻¹ g, so that |L⁻¹ g|² = gᵀ H⁻¹ g."""
        return np.asarray(linalg.solve_triangular(self.lower, g, lower=True, check_finite=False))


@dataclass(frozen=True)
class MatrixFree:
    """H⁻¹ by conjugate gradients with Jacobi preconditioning; H is only ever multiplied by.

    Args:
        problem, curvature, penalty: H = Σ_j x_j x_jᵀ ⊗ curvature_j + diag(penalty).
        tolerance: relative residual at which a column stops.
        steps: the most iterations.
    """

    problem: Problem
    curvature: Array
    penalty: Array
    tolerance: float = 1e-10
    steps: int = 2_000

    def multiply(self, v: Array) -> Array:
        f = self.problem.logits_of_columns(v)
        pulled = self.problem.pull_back(np.einsum("jkm,jmb->jkb", self.curvature, f, optimize=True))
        out = pulled + np.tile(self.penalty, self.problem.outputs)[:, None] * v
        c = self.problem.outputs
        shared = out.reshape(c, self.problem.features, -1)
        for p in self.problem.shared_directions(self.penalty):
            shared[:, p] += self.problem.shared_curvature(self.curvature) * v.reshape(shared.shape)[:, p].mean(axis=0)
        return out

    def solve(self, g: Array) -> Array:
        return self.solve_with_residuals(g)[0]

    def solve_with_residuals(self, g: Array) -> tuple[Array, Array]:
        """The solutions, and each column's relative residual |g − H v|/|g|.

        Raises:
            NotConverged: a column stayed above a hundred times the tolerance.
        """
        diagonal = self._diagonal()
        v, r = np.zeros_like(g), g.copy()
        size = np.maximum(np.linalg.norm(g, axis=0), 1e-300)
        z = r / diagonal
        p, rz = z.copy(), (r * z).sum(axis=0)
        for _ in range(self.steps):
            live = np.flatnonzero(np.linalg.norm(r, axis=0) > self.tolerance * size)
            if len(live) == 0:
                break
            hp = self.multiply(p[:, live])
            step = rz[live] / np.maximum((p[:, live] * hp).sum(axis=0), 1e-300)
            v[:, live] += step * p[:, live]
            r[:, live] -= step * hp
            z = r[:, live] / diagonal
            fresh = (r[:, live] * z).sum(axis=0)
            p[:, live] = z + (fresh / np.maximum(rz[live], 1e-300)) * p[:, live]
            rz[live] = fresh
        residual = np.linalg.norm(g - self.multiply(v), axis=0) / size
        if residual.max(initial=0.0) > 100 * self.tolerance:
            raise NotConverged(
                f"a relative residual of {residual.max():.1e} after {self.steps} conjugate-gradient steps",
                f"at most {100 * self.tolerance:.0e}",
                "regularise more (lower C), scale the features, or use fewer of them",
            )
        return v, residual

    def _diagonal(self) -> Array:
        x = self.problem.x
        squares = x.multiply(x) if hasattr(x, "multiply") else x * x
        per_output = [
            np.asarray(squares.T @ self.curvature[:, k, k]).ravel() + self.penalty for k in range(self.problem.outputs)
        ]
        return np.maximum(np.concatenate(per_output), 1e-12)[:, None]


def curvature_of(problem: Problem, curvature: Array, penalty: Array) -> Curvature:
    """H⁻¹ from per-row curvatures s_j ∇²ℓ_j (n, c, c) and a penalty (d,)."""
    if problem.parameters > MAX_DENSE:
        return MatrixFree(problem, curvature, penalty)
    return factorise(problem.hessian(curvature, penalty))


def factorise(h: Array) -> Factor:
    """Cholesky of H; directions in which H is zero to rounding get a curvature of their own.

    Such directions are those in which no training row has a component (collinear columns without regularisation), so no
    gradient ever has one either, and what curvature they have changes no answer.
    """
    try:
        lower = linalg.cholesky(h, lower=True, check_finite=False)
        pivots = np.square(np.diag(lower))
        if pivots.min() > 1e-14 * np.diag(h).max():
            return Factor(lower, _condition(h, lower))
    except linalg.LinAlgError:
        pass
    values, vectors = linalg.eigh(h, check_finite=False)
    zero = values <= len(h) * np.finfo(float).eps * max(values[-1], 1e-300)
    lifted = h + (vectors[:, zero] * max(values[~zero].mean() if (~zero).any() else 1.0, 1e-12)) @ vectors[:, zero].T
    lower = linalg.cholesky(lifted, lower=True, check_finite=False)
    return Factor(lower, _condition(lifted, lower), int(zero.sum()))


def _condition(h: Array, lower: Array) -> float:
    """1-norm condition number, estimated from the factor by LAPACK in O(p²)."""
    norm = float(np.abs(h).sum(axis=0).max())
    reciprocal, _ = linalg.lapack.dpocon(lower, norm, uplo="L")
    return 1.0 / max(float(reciprocal), 1e-300)
