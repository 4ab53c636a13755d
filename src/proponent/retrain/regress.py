"""Measurements of subsets regressed on which examples were in them: ridge, for all queries and all penalties at once.

m subsets, n examples, c columns of measurements. Rows are subsets that are drawn independently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg
from scipy.stats import rankdata

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

FOLDS = 5
PENALTIES = np.logspace(-6, 4, 41)
"""In units of the mean eigenvalue."""
RANK = 1e-12
"""Of the largest eigenvalue: below, a direction is taken for rounding."""


@dataclass(frozen=True, eq=False)
class Regression:
    """measured ≈ intercept + Σ_{i in the subset} coefficient[i].

    Args:
        coefficient: (n, c).
        stderr: (n, c), of the penalised estimate about its own expectation: the penalty's bias is not in it.
        penalty: as chosen; what it multiplies is the method's.
        r2: (c,) of held-out predictions, 1 − Σ (y − ŷ)² / Σ (y − ȳ)², both means of the other folds; NaN where all
            measurements are alike.
        lds: (c,) Spearman correlation of held-out predictions with the measurements, in the mean over folds.
    """

    coefficient: Array
    stderr: Array
    penalty: float
    r2: Array
    lds: Array


def ridge(included: Array, measured: Array, penalties: Array = PENALTIES) -> Regression:
    """Least squares with a penalty λ Σ θ², chosen by the mean over columns of the exact leave-one-out R².

    θ_λ = Zᵀ (Z Zᵀ + λ I)⁻¹ y, columns of Z and y centred: one eigendecomposition, of the smaller Gram matrix, serves all
    columns and penalties. Row s's leave-one-out residual is (y_s − ŷ_s) / (1 − h_s), with h_s the leverage. Standard
    errors are the sandwich Σ_s G_is² r_s² with these residuals (HC3) for θ = G y.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.integers(0, 2, (60, 4))
    >>> found = ridge(z, (z @ [1.0, 0.0, -2.0, 0.5] + 3.0)[:, None])
    >>> bool(np.allclose(found.coefficient.ravel(), [1.0, 0.0, -2.0, 0.5], atol=1e-3))
    True

    Args:
        included: (m, n) counts.
        measured: (m, c), finite.
        penalties: to choose among, in units of the mean eigenvalue.

    Raises:
        InputError: fewer subsets than folds.
    """
    if len(included) < 2 * FOLDS:
        raise InputError(f"{len(included)} subsets", f"at least {2 * FOLDS}", "draw more")
    spectrum = Spectrum.of(included)
    y = measured - measured.mean(axis=0)
    projected = spectrum.left.T @ y
    scale = spectrum.values.mean() if len(spectrum.values) else 1.0
    errors = np.array([(spectrum.left_out_residuals(y, projected, p * scale) ** 2).sum(axis=0) for p in penalties])
    varied = (y**2).sum(axis=0) > 0
    best = int(np.argmin((errors[:, varied] / (y**2).sum(axis=0)[varied]).mean(axis=1))) if varied.any() else -1
    penalty = float(penalties[best] * scale)
    gain = spectrum.gain(penalty)
    residuals = spectrum.left_out_residuals(y, projected, penalty)
    held_out = folded_residuals(spectrum, y, projected, penalty)
    return Regression(gain @ y, np.sqrt(gain**2 @ residuals**2), penalty, *quality(y, held_out))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The centred inclusion matrix as left · √values · rightᵀ, of full rank.

    Args:
        left: (m, k).
        values: (k,) eigenvalues of Z Zᵀ and Zᵀ Z.
        right: (n, k).
    """

    left: Array
    values: Array
    right: Array

    @classmethod
    def of(cls, included: Array) -> Spectrum:
        """By an eigendecomposition of the smaller of Z Zᵀ and Zᵀ Z."""
        z = included.astype(np.float64)
        z -= z.mean(axis=0)
        m, n = z.shape
        values, vectors = linalg.eigh(z @ z.T if m <= n else z.T @ z)
        kept = values > RANK * max(values[-1], 1.0)
        values, vectors = values[kept], vectors[:, kept]
        if m <= n:
            return cls(vectors, values, z.T @ vectors / np.sqrt(values))
        return cls(z @ vectors / np.sqrt(values), values, vectors)

    def gain(self, penalty: float) -> Array:
        """(n, m) G of θ = G y."""
        return np.asarray((self.right * (np.sqrt(self.values) / (self.values + penalty))) @ self.left.T)

    def left_out_residuals(self, y: Array, projected: Array, penalty: float) -> Array:
        """(m, c) of each row, by the fit without it."""
        shrink = self.values / (self.values + penalty)
        leverage = 1 / len(y) + (self.left**2) @ shrink
        return np.asarray((y - self.left @ (shrink[:, None] * projected)) / np.maximum(1 - leverage, 1e-9)[:, None])


def folds(m: int) -> list[Array]:
    """Rows of each fold: every FOLDS-th, which for rows in random order is a random fold."""
    return [np.arange(k, m, FOLDS) for k in range(FOLDS)]


def folded_residuals(spectrum: Spectrum, y: Array, projected: Array, penalty: float) -> Array:
    """(m, c) residuals of each fold's rows by the fit without the fold: (I − H_FF)⁻¹ (y − ŷ)_F."""
    shrink = spectrum.values / (spectrum.values + penalty)
    residual = y - spectrum.left @ (shrink[:, None] * projected)
    out = np.empty_like(y)
    for rows in folds(len(y)):
        u = spectrum.left[rows]
        hat = (u * shrink) @ u.T + 1 / len(y)
        out[rows] = linalg.solve(np.eye(len(rows)) * (1 + 1e-12) - hat, residual[rows], assume_a="pos")
    return out


def quality(y: Array, residuals: Array) -> tuple[Array, Array]:
    """(c,) R² and (c,) mean rank correlation within folds, of predictions y − residuals of rows that were held out.

    Within a fold all predictions have one intercept. Over folds its own error would make them fall where y rises.
    """
    m = len(y)
    around, ranks = np.empty_like(y), []
    for rows in folds(m):
        rest = (y.sum(axis=0) - y[rows].sum(axis=0)) / (m - len(rows))
        around[rows] = y[rows] - rest
        ranks.append(_spearman(y[rows], (y - residuals)[rows]))
    with np.errstate(invalid="ignore", divide="ignore"):
        total = (around**2).sum(axis=0)
        r2 = np.where(total > 0, 1 - (residuals**2).sum(axis=0) / total, np.nan)
    return r2, np.mean(ranks, axis=0)


def _spearman(a: Array, b: Array) -> Array:
    a, b = rankdata(a, axis=0), rankdata(b, axis=0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0)))
