"""Shapley values of nearest-neighbour games in closed form: from the farthest training example to the nearest."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Utility = Literal["soft", "fixed", "squared_error"]


def shapley_by_distance(
    near_to_far: Array, k: int, utility: Utility, *, target: Array | None = None, classes: int = 2
) -> Array:
    """Shapley values of training examples that stand in order of distance to their query, (queries, n).

    >>> shapley_by_distance(np.array([[True, False]]), k=1, utility="fixed").tolist()
    [[1.0, 0.0]]

    Args:
        near_to_far: (queries, n) whether each example has the query's label; its number for "squared_error".
        k: neighbours K ≥ 1.
        utility: which game; see `KNNShapley`.
        target: (queries,) the queries' numbers, for "squared_error".
        classes: U(∅) = 1/classes for "soft".
    """
    y = near_to_far.astype(np.float64)
    steps = np.empty_like(y)
    if utility == "squared_error":
        if target is None:
            raise TypeError("squared_error needs the queries' numbers")
        _squared_error(y, k, target[:, None], out=steps)
    elif utility == "fixed":
        _fixed(y, k, out=steps)
    else:
        _soft(y, k, classes, out=steps)
    backwards = steps[:, ::-1]
    np.cumsum(backwards, axis=1, out=backwards)
    return steps


# Each game writes s_i − s_{i+1} into column i and s_n into the last; i, l = 1 … n count from the nearest.


def _fixed(m: Array, k: int, out: Array) -> None:
    """Theorem 1 of Jia et al. (2019), with s_n for K > n as well."""
    n = m.shape[1]
    i = np.arange(1, n)
    np.subtract(m[:, :-1], m[:, 1:], out=out[:, :-1])
    out[:, :-1] *= np.minimum(k, i) / (k * i)
    out[:, -1] = m[:, -1] * (min(k, n) / (k * n))


def _soft(m: Array, k: int, classes: int, out: Array) -> None:
    """Theorem 1 of Wang & Jia (2023), for K ≥ n as well: there the harmonic sum in s_i − s_{i+1} stops at n − 1."""
    n = m.shape[1]
    i, others = np.arange(1, n), max(n - 1, 1)
    rate = np.full(n - 1, _harmonic(min(k, n - 1)) / others)
    if n > k:
        rate += np.minimum(i, k) / (i * k) - 1 / others
    np.subtract(m[:, :-1], m[:, 1:], out=out[:, :-1])
    out[:, :-1] *= rate
    mean_of_others = m[:, :-1].sum(axis=1) / others
    out[:, -1] = ((m[:, -1] - mean_of_others) * (_harmonic(min(k, n)) - 1) + m[:, -1] - 1 / classes) / n


def _harmonic(count: int) -> float:
    return float(np.sum(1 / np.arange(1, count + 1)))


def _squared_error(y: Array, k: int, t: Array, out: Array) -> None:
    """Regression. Shapley's value is the expected marginal contribution to S where every other example joins S with
    probability u, for u uniform in (0, 1).

    Let r be the sum of y_j / K over the min(K − 1, |S|) nearest of S. Where fewer than K members of S are nearer than
    i, which has probability min(K, i)/i, having i rather than i+1 changes U by
    −(y_i − y_{i+1})/K · ((y_i + y_{i+1})/K + 2r − 2t), and nothing elsewhere. The expectation of r over those S sums y_l/K
    times the chance that l counts: for l < i the same for all, for l > i+1 that of at most K − 2 members before l.
    """
    n = y.shape[1]
    i, m = np.arange(1, n), min(k, n)
    inside = np.minimum(k, i)
    nearer = np.cumsum(y, axis=1)[:, :-1] - y[:, :-1]
    nearer *= inside * (inside - 1) / (2 * i * np.maximum(i - 1, 1))
    l = np.arange(3, n + 1)
    room = np.minimum(k - 1, l - 2)
    farther = np.zeros_like(nearer)
    weighted = y[:, 2:] * (room * (room + 1) / (2 * (l - 1) * (l - 2)))
    farther[:, : n - 2] = np.cumsum(weighted[:, ::-1], axis=1)[:, ::-1]
    rest = (nearer + farther) * (2 / k)
    either = ((y[:, :-1] + y[:, 1:]) / k - 2 * t) * (inside / i)
    out[:, :-1] = (y[:, 1:] - y[:, :-1]) / k * (either + rest)
    others = y[:, :-1].sum(axis=1) / max(n - 1, 1)
    last = y[:, -1]
    out[:, -1] = -last / (k * n) * ((m * (m - 1) * others + m * last) / k - 2 * t[:, 0] * m)
