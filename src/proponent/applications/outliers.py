"""Which numbers stand too far from their predictions: robust scale, leverage, and the probability of an outlier."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import linalg, sparse, stats
from scipy.optimize import nnls

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH_LIMIT = 2_000  # features up to which leverages are computed
TAIL = 5.0  # degrees of freedom of the residuals of right labels: heavier than normal, as real residuals are
NORMAL = 1.4826  # standard deviation / median absolute deviation of a normal distribution


def robust_scale(residual: Array) -> float:
    """The standard deviation that the middle half of the residuals speaks for; never 0.

    >>> round(robust_scale(np.array([-1.0, 0.0, 1.0, 0.5, 1000.0])), 3)
    0.741
    """
    mad = float(np.median(np.abs(residual - np.median(residual)))) * NORMAL
    return mad or float(np.std(residual)) or 1.0


def leverage(X: Any) -> Array:
    """h_i = x_iᵀ (XᵀX + μ)⁻¹ x_i, shape (n,): by how much row i's prediction is less certain, out of sample σ² (1 + h_i).

    Zeros where there are more than 2,000 features. μ, a thousandth of the mean eigenvalue, keeps the inverse defined.
    """
    n, d = X.shape
    if d > WIDTH_LIMIT:
        return np.zeros(n)
    gram = X.T @ X
    gram = gram.toarray() if sparse.issparse(gram) else gram
    gram = gram + np.eye(d) * max(np.trace(gram) / d * 1e-3, 1e-12)
    solved = linalg.solve(gram, X.T.toarray() if sparse.issparse(X) else X.T, assume_a="pos").T
    hats = X.multiply(solved).sum(axis=1) if sparse.issparse(X) else (X * solved).sum(axis=1)
    return np.clip(np.asarray(hats, float).ravel(), 0.0, 1.0)


def pool(predictions: Array, y: Array) -> Array:
    """The members' predictions, (members, n), averaged with non-negative weights that sum to 1.

    The weights are least squares for the middle 80 % of the residuals of the members' median, so that outliers have no say.
    """
    if len(predictions) == 1:
        return np.asarray(predictions[0])
    distance = np.abs(y - np.median(predictions, axis=0))
    rows = distance <= np.quantile(distance, 0.8)
    weights, _ = nnls(predictions[:, rows].T, y[rows])
    total = weights.sum()
    weights = weights / total if total > 0 else np.full(len(predictions), 1 / len(predictions))
    return np.asarray(weights @ predictions)


def outlier_probability(z: Array, rounds: int = 50) -> Array:
    """The probability that each standardised residual is of a wrong label, shape (n,).

    A mixture (1 − ρ) t₅(z) + ρ / (2 max |z|): right labels scatter with heavy tails, wrong ones lie anywhere. ρ by
    expectation and maximisation.

    >>> z = np.append(stats.norm.ppf(np.linspace(0.001, 0.999, 999)), 40.0)
    >>> np.flatnonzero(outlier_probability(z) > 0.5).tolist()
    [999]
    """
    right = stats.t.pdf(z, TAIL)
    anywhere = 1 / max(2 * float(np.max(np.abs(z))), 1e-12)
    rate = 0.02
    wrong = np.zeros(len(z))
    for _ in range(rounds):
        wrong = rate * anywhere / (rate * anywhere + (1 - rate) * right)
        rate = float(np.clip(wrong.mean(), 1e-6, 0.4))
    return wrong
