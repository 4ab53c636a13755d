"""Slow, independent truth for linear models: plain Newton on dense formulas, one refit at a time, in float64."""

import numpy as np


def softplus(u):
    return np.logaddexp(0.0, u)


def refit_binary(X, y, weight, penalty, *, hinge_temperature=None, start=None):
    """argmin Σ w t log(1 + exp((a − y x·θ)/t)) + ½ Σ λ θ², a = 0, t = 1 (logistic) or a = 1 (smooth hinge)."""
    a, t = (0.0, 1.0) if hinge_temperature is None else (1.0, hinge_temperature)
    theta = np.zeros(X.shape[1]) if start is None else start.copy()

    def objective(v):
        return (weight * t * softplus((a - y * (X @ v)) / t)).sum() + 0.5 * (penalty * v * v).sum()

    for _ in range(500):
        z = (a - y * (X @ theta)) / t
        p = 0.5 * (1 + np.tanh(z / 2))
        g = X.T @ (-weight * y * p) + penalty * theta
        H = (X * (weight * p * (1 - p) / t)[:, None]).T @ X + np.diag(penalty)
        step = np.linalg.solve(H, g)
        scale, now = 1.0, objective(theta)
        decrement = g @ step
        while decrement > 1e-9 and objective(theta - scale * step) > now - 1e-4 * scale * decrement and scale > 1e-12:
            scale /= 2
        theta = theta - scale * step
        if decrement < 1e-26:
            break
    return theta


def refit_softmax(X, codes, classes, weight, penalty):
    """argmin Σ w (logsumexp(Θx) − θ_y·x) + ½ Σ λ Θ², the mean over classes of unregularised features fixed to 0."""
    n, d = X.shape
    onehot = np.eye(classes)[codes]
    theta = np.zeros((classes, d))
    free = np.zeros((classes, d, classes, d))
    for p in np.flatnonzero(penalty == 0):
        free[:, p, :, p] = 1.0
    free = free.reshape(classes * d, classes * d)

    def objective(v):
        f = X @ v.T
        top = f.max(1)
        return (weight * (top + np.log(np.exp(f - top[:, None]).sum(1)) - f[np.arange(n), codes])).sum() + 0.5 * (
            penalty * v * v
        ).sum()

    for _ in range(500):
        f = X @ theta.T
        e = np.exp(f - f.max(1, keepdims=True))
        p = e / e.sum(1, keepdims=True)
        g = ((p - onehot) * weight[:, None]).T @ X + penalty * theta
        H = np.zeros((classes * d, classes * d)) + free
        for i in range(n):
            W = weight[i] * (np.diag(p[i]) - np.outer(p[i], p[i]))
            H += np.kron(W, np.outer(X[i], X[i]))
        H += np.diag(np.tile(penalty, classes))
        step = np.linalg.solve(H, g.ravel())
        decrement, scale, now = g.ravel() @ step, 1.0, objective(theta)
        while (
            decrement > 1e-9 and objective(theta - scale * step.reshape(theta.shape)) > now - 1e-4 * scale * decrement
        ):
            scale /= 2
        theta = theta - scale * step.reshape(theta.shape)
        if decrement < 1e-26:
            break
    return theta


def refit_squared_hinge(X, y, weight, penalty):
    """argmin Σ w max(0, 1 − y x·θ)² + ½ Σ λ θ², by active sets."""
    theta = np.zeros(X.shape[1])

    def objective(v):
        return (weight * np.maximum(0, 1 - y * (X @ v)) ** 2).sum() + 0.5 * (penalty * v * v).sum()

    for _ in range(500):
        slack = 1 - y * (X @ theta)
        on = slack > 0
        g = X.T @ (-2 * weight * y * slack * on) + penalty * theta
        H = 2 * (X * (weight * on)[:, None]).T @ X + np.diag(penalty)
        step = np.linalg.lstsq(H, g, rcond=None)[0]
        scale, now = 1.0, objective(theta)
        while objective(theta - scale * step) > now - 1e-4 * scale * (g @ step) and scale > 1e-10 and g @ step > 1e-12:
            scale /= 2
        theta = theta - scale * step
        if g @ step < 1e-26:
            break
    return theta


def refit_ridge(X, y, weight, penalty):
    """argmin ½ Σ w (x·θ − y)² + ½ Σ λ θ²."""
    return np.linalg.solve((X * weight[:, None]).T @ X + np.diag(penalty), X.T @ (weight * y))
