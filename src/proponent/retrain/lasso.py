"""Measurements of subsets regressed on which examples were in them, most coefficients being zero: the lasso."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import lasso_path

from proponent.errors import InputError
from proponent.retrain.maps import one_thread, tmap
from proponent.retrain.regress import FOLDS, Regression, folds, quality

Array = np.ndarray[Any, np.dtype[Any]]

SHARES = np.logspace(0, -3, 25)
"""Penalties as shares of the smallest that sets all of a column's coefficients to zero."""
PRECISION = 1e-5
ITERATIONS = 10_000


def lasso(included: Array, measured: Array, resamples: int = 20, seed: int = 0, shares: Array = SHARES) -> Regression:
    """Least squares with a penalty α Σ |θ|, for each column the same share of its own largest useful α.

    θ = argmin ‖y − Zθ‖² / 2m + α ‖θ‖₁,  α = share · max |Zᵀy| / m, columns of Z and y centred; the share has the best mean
    over columns of the R² held out in five folds. Standard errors are those of bootstraps of the subsets, at that share;
    the lasso's zeros make them too small for coefficients near the threshold.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.integers(0, 2, (80, 4))
    >>> found = lasso(z, (z @ [1.0, 0.0, -2.0, 0.0] + 3.0)[:, None])
    >>> bool(np.allclose(found.coefficient.ravel(), [1, 0, -2, 0], atol=0.01)), bool(found.coefficient[1, 0] == 0)
    (True, True)

    Args:
        included: (m, n) counts.
        measured: (m, c), finite.
        resamples: bootstraps; below 2 there are no standard errors.
        seed: of the bootstraps.
        shares: to choose among, descending.
    """
    m = len(included)
    if m < 2 * FOLDS:
        raise InputError(f"{m} subsets", f"at least {2 * FOLDS}", "draw more")
    z, y = included.astype(np.float64), measured - measured.mean(axis=0)
    parts = [(rows, Design.of(z, np.setdiff1d(np.arange(m), rows))) for rows in folds(m)]
    error = _by_column(lambda column: (_held_out(z, y[:, column], parts, shares) ** 2).sum(axis=0), y)
    total = (y**2).sum(axis=0)
    varied = total > 0
    best = int(np.argmin((error[varied] / total[varied, None]).mean(axis=0))) if varied.any() else 0
    chosen = shares[: best + 1]
    residuals = _by_column(lambda column: _held_out(z, y[:, column], parts, chosen)[:, -1], y).T
    coefficient = _fitted(Design.of(z, np.arange(m)), y, chosen)
    stderr = np.full_like(coefficient, np.nan)
    if resamples > 1:
        rng = np.random.default_rng(seed)
        drawn = [rng.integers(m, size=m) for _ in range(resamples)]
        stderr = np.std([_fitted(Design.of(z, rows), y, chosen) for rows in drawn], axis=0, ddof=1)
    return Regression(coefficient, stderr, float(shares[best]), *quality(y, residuals))


@dataclass(frozen=True, eq=False)
class Design:
    """Some rows of the inclusion matrix, centred, and their Gram matrix, for many right-hand sides."""

    rows: Array
    centred: Array
    mean: Array
    gram: Array

    @classmethod
    def of(cls, z: Array, rows: Array) -> Design:
        """The design of these rows."""
        mean = z[rows].mean(axis=0)
        centred = z[rows] - mean
        return cls(rows, centred, mean, centred.T @ centred)

    def path(self, y: Array, shares: Array) -> Array:
        """(n, shares) coefficients for one column, down from the largest penalty."""
        target = y[self.rows] - y[self.rows].mean()
        product = self.centred.T @ target
        most = np.abs(product).max() / len(target)
        if most == 0:
            return np.zeros((len(product), len(shares)))
        _, coefficients, _ = lasso_path(
            self.centred,
            target,
            alphas=shares * most,
            precompute=self.gram,
            Xy=product,
            check_input=False,
            tol=PRECISION,
            max_iter=ITERATIONS,
        )
        return np.asarray(coefficients)


def _held_out(z: Array, y: Array, parts: list[tuple[Array, Design]], shares: Array) -> Array:
    """(m, shares) residuals of each fold's rows by the fit without them."""
    out = np.empty((len(y), len(shares)))
    for rows, rest in parts:
        predicted = (z[rows] - rest.mean) @ rest.path(y, shares) + y[rest.rows].mean()
        out[rows] = y[rows, None] - predicted
    return out


def _fitted(design: Design, y: Array, shares: Array) -> Array:
    """(n, c) coefficients at the last of the shares."""
    return _by_column(lambda column: design.path(y[:, column], shares)[:, -1], y).T


def _by_column(work: Callable[[int], Array], y: Array) -> Array:
    """What `work` gives for each column, stacked."""
    with one_thread():
        return np.array(list(tmap(work, range(y.shape[1]))))
