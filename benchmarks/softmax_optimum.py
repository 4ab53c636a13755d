"""Optima of softmax regression of all rows and of all rows but one, by Newton's method in float64.

minimise  n⁻¹ Σ_i s_i loss_i(W, b) + decay ‖W‖²/2   with s_i = 1, or 0 where row i is left out; the bias is free

All steps solve with one Hessian, that of all rows near their optimum: a row changes little of it, so that an error falls by
about the row's leverage each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.linear_model import LogisticRegression

Array = np.ndarray[Any, np.dtype[Any]]


def each_left_out(x: Array, y: Array, decay: float, rows: Array, tolerance: float = 1e-12) -> Array:
    """(1 + k, c, d + 1) optima of all rows, then of all but each of these k; the bias comes last.

    Args:
        x, y: (n, d) inputs and (n,) classes 0, 1, ….
        decay: of the mean loss.
        rows: (k,) positions.
        tolerance: of the largest entry of a gradient.

    Raises:
        RuntimeError: steps that do not come closer.
    """
    rough = LogisticRegression(C=1 / (decay * len(x)), tol=1e-5, max_iter=2000).fit(x, y)
    x, w = np.c_[x, np.ones(len(x))], np.c_[rough.coef_, rough.intercept_][None]
    factor = cho_factor(hessian(x, probabilities(w, x)[0], decay), overwrite_a=True)
    share = np.ones((1 + len(rows), len(x)))
    share[np.arange(1, 1 + len(rows)), rows] = 0
    w, farthest = np.repeat(w, len(share), 0), np.inf
    while (gap := np.abs(gradient := gradients(w, x, y, share, decay)).max()) > tolerance:
        if gap >= farthest:
            raise RuntimeError(f"gradients of {gap:.1e} after {farthest:.1e}")
        w, farthest = w - solved(factor, gradient), gap
    return w


def influence(w: Array, train: tuple[Array, Array], query: tuple[Array, Array], damping: float) -> Array:
    """(q, n) −g_qᵀ (H + damping)⁻¹ g_i / n of minus the queries' losses; biases, which no decay holds, are damped as well.

    Args:
        w: (c, d + 1) weights with the bias last.
        train, query: inputs and classes.
        damping: with the decay of the mean loss in it.
    """
    (x, y), (qx, qy) = ((np.c_[x, np.ones(len(x))], y) for x, y in (train, query))
    residuals, own = _residuals(w, x, y), _residuals(w, qx, qy)
    matrix = hessian(x, probabilities(w[None], x)[0], 0.0)
    matrix[np.diag_indices(len(matrix))] += damping
    gradient = own.T[:, :, None] * qx[:, None]
    found = solved(cho_factor(matrix, overwrite_a=True), gradient)
    return np.asarray(sum((found[:, c] @ x.T) * residuals[c] for c in range(len(w))) / len(x))


def losses(w: Array, x: Array, y: Array) -> Array:
    """(k, n) of k models."""
    z = _scores(w, np.c_[x, np.ones(len(x))])
    top = z.max(1, keepdims=True)
    return np.log(np.exp(z - top).sum(1)) + top[:, 0] - z[:, y, np.arange(len(y))]


def probabilities(w: Array, x: Array) -> Array:
    """(k, c, n) of inputs with their one."""
    z = _scores(w, x)
    z = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(z / z.sum(1, keepdims=True))


def gradients(w: Array, x: Array, y: Array, share: Array, decay: float) -> Array:
    """(k, c, d + 1)"""
    p = probabilities(w, x)
    p[:, y, np.arange(len(y))] -= 1
    p *= share[:, None]
    found = (p.reshape(-1, len(x)) @ x).reshape(w.shape) / len(x)
    found[..., :-1] += decay * w[..., :-1]
    return np.asarray(found)


def hessian(x: Array, p: Array, decay: float) -> Array:
    """(c (d + 1), c (d + 1)); what no loss sees, all biases alike, is held by a one."""
    (c, n), d = p.shape, x.shape[1]
    found = np.empty((c, d, c, d))
    for a in range(c):
        for b in range(a + 1):
            found[a, :, b] = x.T @ (x * (p[a] * ((a == b) - p[b]))[:, None]) / n
            found[b, :, a] = found[a, :, b]
    every = np.arange(d - 1)
    for a in range(c):
        found[a, every, a, every] += decay
    found[:, -1, :, -1] += 1
    return found.reshape(c * d, c * d)


def solved(factor: Any, gradient: Array) -> Array:
    """H⁻¹ of each gradient."""
    return np.asarray(cho_solve(factor, gradient.reshape(len(gradient), -1).T).T.reshape(gradient.shape))


def _residuals(w: Array, x: Array, y: Array) -> Array:
    """(c, n) probabilities less labels."""
    p = probabilities(w[None], x)[0]
    p[y, np.arange(len(y))] -= 1
    return p


def _scores(w: Array, x: Array) -> Array:
    """(k, c, n)"""
    return np.asarray((w.reshape(-1, w.shape[2]) @ x.T).reshape(*w.shape[:2], len(x)))
