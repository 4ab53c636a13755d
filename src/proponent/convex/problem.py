"""The convex problem that a linear model solves.

    F(Θ) = Σ_j s_j ℓ(Θ x_j; y_j) + ½ Σ_cp λ_p Θ_cp²

Index letters: j training rows, c outputs, p features, b columns (one parameter vector each). Parameters as a matrix
have shape (c, p), as a vector (c·p,).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from proponent.convex.losses import Loss, Softmax

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Problem:
    """F over a fixed set of training rows.

    Args:
        x: (n, d) features, dense or CSR, a column of ones last where the model has an intercept.
        y: (n,) targets as the loss wants them.
        weight: (n,) s_j ≥ 0.
        loss: ℓ.
        penalty: (d,) λ_p ≥ 0; 0 where a feature (the intercept) is not regularised.
        penalty_shrinks: the part of λ_p that goes away with each removed row (objectives that divide by n, as SGDClassifier's).
    """

    x: Any
    y: Array
    weight: Array
    loss: Loss
    penalty: Array
    penalty_shrinks: float = 0.0

    @property
    def rows(self) -> int:
        return int(self.x.shape[0])

    @property
    def features(self) -> int:
        return int(self.x.shape[1])

    @property
    def outputs(self) -> int:
        return self.loss.outputs(self.y)

    @property
    def parameters(self) -> int:
        return self.outputs * self.features

    def penalty_without_one(self) -> Array:
        """(d,) λ after one row is removed; unregularised features stay so."""
        return np.where(self.penalty > 0, self.penalty - self.penalty_shrinks, 0.0)

    def logits(self, theta: Array) -> Array:
        """(n, c) from (c, d)."""
        return np.asarray(self.x @ theta.T)

    def logits_of_columns(self, columns: Array, x: Any = None) -> Array:
        """(rows, c, b) from parameter vectors (c·d, b), for the training rows or for the rows of `x`."""
        x = self.x if x is None else x
        c, b = self.outputs, columns.shape[1]
        if c == 1:
            return np.asarray(x @ columns)[:, None, :]
        wide = columns.reshape(c, self.features, b).transpose(1, 0, 2).reshape(self.features, c * b)
        return np.asarray(x @ np.ascontiguousarray(wide)).reshape(-1, c, b)

    def pull_back(self, g: Array) -> Array:
        """Σ_j g_jcb x_jp: parameter vectors (c·d, b) from (n, c, b)."""
        n, c, b = g.shape
        wide = np.asarray(self.x.T @ g.reshape(n, c * b))
        if c == 1:
            return wide
        return np.ascontiguousarray(wide.reshape(self.features, c, b).transpose(1, 0, 2)).reshape(c * self.features, b)

    def value(self, theta: Array, logits: Array) -> float:
        return float(self.weight @ self.loss.value(logits, self.y) + 0.5 * (self.penalty * theta**2).sum())

    def gradient(self, theta: Array, logits: Array) -> Array:
        """(c, d)."""
        g = self.weight[:, None] * self.loss.gradient(logits, self.y)
        return np.asarray((self.x.T @ g).T + self.penalty * theta)

    def hessian(self, curvature: Array, penalty: Array) -> Array:
        """(c·d, c·d) dense, from per-row curvatures s_j ∇²ℓ_j of shape (n, c, c)."""
        c, d = self.outputs, self.features
        out = np.empty((c, d, c, d))
        # A softmax's rows of curvature sum to zero, so the last class's blocks follow from the others'.
        known = c - 1 if isinstance(self.loss, Softmax) else c
        for k in range(known):
            for m in range(k, known):
                out[k, :, m, :] = out[m, :, k, :] = _weighted_gram(self.x, curvature[:, k, m])
        for k in range(known, c):
            out[:k, :, k, :] = -out[:k, :, :k, :].sum(axis=2)
            out[k, :, :k, :] = out[:k, :, k, :].transpose(1, 0, 2)
            out[k, :, k, :] = -out[:k, :, k, :].sum(axis=0)
        for k in range(c):
            out[k, np.arange(d), k, np.arange(d)] += penalty
        for p in self.shared_directions(penalty):
            out[:, p, :, p] += self.shared_curvature(curvature) / c
        return out.reshape(c * d, c * d)

    def shared_directions(self, penalty: Array) -> Array:
        """Features whose weights can all move by one constant, over the classes, and nothing changes.

        Where nothing regularises such a direction H is singular along it, and no gradient ever points there: any
        curvature will do, so it gets one.
        """
        return np.flatnonzero(penalty == 0) if isinstance(self.loss, Softmax) else np.zeros(0, dtype=int)

    def shared_curvature(self, curvature: Array) -> float:
        """The curvature that such a direction gets: of the order of the others."""
        return max(float(curvature[:, 0, 0].sum()), 1e-8)

    def keep(self, rows: Array) -> Problem:
        """The problem on these rows only."""
        gone = self.rows - len(rows)
        penalty = np.where(self.penalty > 0, self.penalty - gone * self.penalty_shrinks, 0.0)
        return replace(self, x=self.x[rows], y=self.y[rows], weight=self.weight[rows], penalty=penalty)


def _weighted_gram(x: Any, w: Array) -> Array:
    """Xᵀ diag(w) X, dense."""
    if sparse.issparse(x):
        return np.asarray((x.T @ x.multiply(w[:, None]).tocsr()).toarray())
    if (w >= 0).all():
        half = x * np.sqrt(w)[:, None]
        return np.asarray(half.T @ half)
    return np.asarray(x.T @ (x * w[:, None]))


def dense(x: Any) -> Array:
    """Rows as a dense array, whichever way they are held."""
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float64)
