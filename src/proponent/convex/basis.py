"""Wide features, exactly: with more features than rows, the problem is solved in the span of the training rows.

An L2-regularised optimum is a combination of training rows, for the full set and for every subset of it. So features can
be replaced by coordinates z in an orthonormal basis of the rows' span without changing any prediction or any
leave-one-out score: with K = X Xᵀ and a pivoted Cholesky K = L Lᵀ over r = rank(X) pivot rows X_r,

    z(x) = L_r⁻¹ X_r x,     so that z(x)·z(x') = x·x' on the span.

This is the dual (kernel) form of the problem, written so that the same code serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from proponent.convex.problem import dense

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Basis:
    """Coordinates in the span of the training rows.

    Args:
        pivots: (r, d) linearly independent training rows that span them all.
        lower: (r, r) Cholesky factor of pivots · pivotsᵀ.
    """

    pivots: Any
    lower: Array

    @classmethod
    def of(cls, x: Any) -> Basis:
        """The basis of the rows of x, rank found by pivoting."""
        gram = dense(x @ x.T)
        factor, order, rank, _ = linalg.lapack.dpstrf(
            np.asfortranarray(gram), lower=1, tol=1e-12 * max(gram.diagonal().max(), 1e-300)
        )
        lower = np.tril(factor[:rank, :rank])
        return cls(x[order[:rank] - 1], np.ascontiguousarray(lower))

    def coordinates(self, x: Any) -> Array:
        """(m, r) from rows (m, d)."""
        return np.asarray(linalg.solve_triangular(self.lower, dense(x @ self.pivots.T).T, lower=True).T)

    def features(self, v: Array) -> Array:
        """(d, b) the feature-space vectors with coordinates v (r, b)."""
        return np.asarray(self.pivots.T @ linalg.solve_triangular(self.lower, v, lower=True, trans="T"))
