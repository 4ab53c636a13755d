"""True refits without one row, warm-started, in float64, each to its own optimum: what `koh_liang.py` judges influence by.

Every objective is (1/n) Σ_{j ≠ i} ℓ_j + λ/2 ‖θ‖²: what is removed is the row, as influence functions have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

CHUNK = 2_000
"""Training rows that many models meet at once."""


# Multinomial logistic regression


@dataclass(frozen=True)
class Softmax:
    """min (1/n) Σ (logsumexp(Θx) − θ_y·x) + λ/2 ‖Θ‖², Θ (classes, d), no bias."""

    X: np.ndarray
    y: np.ndarray
    ridge: float
    classes: int = 10

    def probabilities(self, theta: np.ndarray) -> np.ndarray:
        f = self.X @ theta.T
        f -= f.max(1, keepdims=True)
        np.exp(f, out=f)
        return f / f.sum(1, keepdims=True)

    def factor(self, theta: np.ndarray) -> tuple[np.ndarray, bool]:
        """The Cholesky factor of the Hessian: 45 blocks −Xᵀ diag(p_a p_b) X/n, and diagonal ones, since rows sum to λ."""
        c, d, p = self.classes, self.X.shape[1], self.probabilities(theta)
        h = np.zeros((c, d, c, d))
        for a in range(c):
            for b in range(a):
                block = np.zeros((d, d))
                for at in range(0, len(self.X), 10 * CHUNK):
                    part = slice(at, at + 10 * CHUNK)
                    scaled = self.X[part] * np.sqrt(p[part, a] * p[part, b] / len(self.X))[:, None]
                    block += scaled.T @ scaled
                h[a, :, b] = h[b, :, a] = -block
                h[a, :, a] += block
                h[b, :, b] += block
        flat = h.reshape(c * d, c * d)
        flat.flat[:: c * d + 1] += self.ridge
        return linalg.cho_factor(flat, lower=True, overwrite_a=True, check_finite=False)

    def gradients(self, thetas: np.ndarray, without: Sequence[int]) -> np.ndarray:
        """(m, classes, d) of the objectives of m models, each without its own row."""
        m, c, d = thetas.shape
        weights, total = thetas.reshape(m * c, d).T.copy(), np.zeros((d, m * c))
        for at in range(0, len(self.X), CHUNK):
            x = self.X[at : at + CHUNK]
            total += x.T @ self._pull((x @ weights).reshape(len(x), m, c), self.y[at : at + CHUNK]).reshape(len(x), -1)
        own = self.X[list(without)]
        pull = self._pull(np.einsum("mcd,md->mc", thetas, own)[:, None], self.y[list(without)])[:, 0]
        return (total.T.reshape(m, c, d) - pull[:, :, None] * own[:, None]) / len(self.X) + self.ridge * thetas

    def _pull(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """∂ℓ/∂logits of (rows, models, classes), in place."""
        f -= f.max(2, keepdims=True)
        np.exp(f, out=f)
        f /= f.sum(2, keepdims=True)
        f[np.arange(len(f)), :, y] -= 1.0
        return f

    def without_each(
        self,
        theta: np.ndarray,
        factor: tuple[np.ndarray, bool],
        rows: Sequence[int],
        tolerance: float,
        together: int = 250,
    ) -> tuple[np.ndarray, float, float]:
        """(m, classes, d) optima, the largest gradient norm among them, and passes over the training rows a refit took.

        θ ← θ − H⁻¹ ∇F₋ᵢ(θ), H the Hessian of all rows, which n − 1 of them change little.
        """
        found, norms, passes = [], [], []
        for at in range(0, len(rows), together):
            part = list(rows[at : at + together])
            thetas = np.repeat(theta[None], len(part), axis=0)
            used, size = 0, np.inf
            while np.max(size) > tolerance and used < 60:
                used += 1
                gradient = self.gradients(thetas, part)
                size = np.sqrt((gradient**2).sum((1, 2)))
                step = linalg.cho_solve(factor, gradient.reshape(len(part), -1).T, check_finite=False)
                thetas -= step.T.reshape(thetas.shape)
            found.append(thetas)
            norms.append(size.max())
            passes.append(used)
        return np.concatenate(found), float(max(norms)), float(np.mean(passes))

    def losses(self, thetas: np.ndarray, x: np.ndarray, y: int) -> np.ndarray:
        """(m,) of one query."""
        f = thetas @ x
        top = f.max(1)
        return top + np.log(np.exp(f - top[:, None]).sum(1)) - f[:, y]


# The hinge


@dataclass(frozen=True)
class Hinge:
    """min (1/n) Σ max(0, 1 − y w·x) + λ/2 ‖w‖², by its dual over α in [0, 1]: w = Σ α_j y_j x_j/(λn).

    Args:
        Z: (n, d) y_j x_j.
    """

    Z: np.ndarray
    ridge: float

    def fit(self, alpha: np.ndarray, without: int | None = None) -> tuple[np.ndarray, np.ndarray, float]:
        """(α, w, largest violation of the optimum's conditions over all rows).

        Rows far beyond their margin cannot matter; the conditions of all are checked at the end, and what breaks one joins.
        """
        alpha, scale = alpha.copy(), self.ridge * len(self.Z)
        if without is not None:
            alpha[without] = 0.0
        chosen = np.flatnonzero((alpha > 0) | (self.Z @ self._weights(alpha) < 1.1))
        while True:
            chosen = chosen[chosen != (-1 if without is None else without)]
            part = self.Z[chosen]
            alpha[chosen] = _box(part @ part.T / scale, alpha[chosen])
            w = self._weights(alpha)
            violation = _violation(alpha, self.Z @ w - 1)
            if without is not None:
                violation[without] = 0.0
            more = np.setdiff1d(np.flatnonzero(violation > 1e-9), chosen)
            if not len(more):
                return alpha, w, float(violation.max())
            chosen = np.union1d(chosen, more)

    def _weights(self, alpha: np.ndarray) -> np.ndarray:
        on = alpha > 0
        return alpha[on] @ self.Z[on] / (self.ridge * len(self.Z))


def _box(K: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """argmin ½ αᵀKα − Σα over [0, 1]: an active-set method, Newton's step on the free coordinates up to the first bound.

    A sweep over the coordinates first, which settles most of them; a bound is left when the free ones are at their optimum.
    """
    alpha = alpha.copy()
    for j in np.repeat(np.arange(len(K))[None], 3, axis=0).ravel():
        alpha[j] = min(max(alpha[j] - (K[j] @ alpha - 1) / K[j, j], 0.0), 1.0)
    free = (alpha > 0) & (alpha < 1)
    for _ in range(20 * len(K)):
        g = K @ alpha - 1
        if np.abs(g[free]).max(initial=0.0) < 1e-11:
            outside = np.where(free, 0.0, _violation(alpha, g))
            if outside.max() < 1e-11:
                break
            free[outside.argmax()] = True
        step = -linalg.solve(K[np.ix_(free, free)], g[free], assume_a="pos", check_finite=False)
        now = alpha[free]
        room = np.where(step > 0, 1 - now, -now) / np.where(step == 0, 1.0, step)
        room[step == 0] = np.inf
        if room.min(initial=np.inf) >= 1:
            alpha[free] = now + step
            continue
        stopped = np.flatnonzero(free)[room.argmin()]
        alpha[free] = np.clip(now + max(room.min(), 0.0) * step, 0, 1)
        alpha[stopped] = 1.0 if step[room.argmin()] > 0 else 0.0
        free[stopped] = False
    return alpha


def _violation(alpha: np.ndarray, g: np.ndarray) -> np.ndarray:
    """How far each row is from its condition: α = 0 where g > 0, α = 1 where g < 0, g = 0 between."""
    return np.abs(alpha - np.clip(alpha - g, 0, 1))
