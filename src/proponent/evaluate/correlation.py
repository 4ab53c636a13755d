"""Correlations of many queries at once, in any resample of what they are taken over. Axes: q queries, s subsets or rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

Array = np.ndarray[Any, np.dtype[Any]]

ROUNDING = 1e-12
"""Relative differences up to this are those of rounding, and count as none."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """The order of each query's numbers, so that their ranks in a resample are two look-ups.

    rank[q, j] = Σ_k w_k [x_k < x_j] + (Σ_k w_k [x_k = x_j] + 1) / 2, the mean rank of ties, where number j is drawn w_j times.

    >>> Ranks.of(np.array([[3.0, 1.0, 1.0]])).among(np.array([1, 1, 1])).tolist()
    [[3.0, 1.5, 1.5]]
    >>> Ranks.of(np.array([[3.0, 1.0, 1.0]])).among(np.array([1, 3, 0])).tolist()
    [[4.0, 2.0, 2.0]]

    Args:
        order: (q, s) positions from the smallest number to the largest.
        below, upto: (q, s) where the sums of weights of smaller, and of smaller or equal, numbers lie in a flat (q, s + 1).
    """

    order: Array
    below: Array
    upto: Array

    @classmethod
    def of(cls, numbers: Array) -> Ranks:
        """From (q, s) numbers."""
        q, s = numbers.shape
        first = np.arange(q)[:, None] * (s + 1)
        below = rankdata(numbers, "min", axis=1).astype(np.int64) - 1
        upto = rankdata(numbers, "max", axis=1).astype(np.int64)
        return cls(np.argsort(numbers, axis=1, kind="stable"), below + first, upto + first)

    def among(self, weight: Array) -> Array:
        """(q, s) ranks where number j is drawn weight[j] times."""
        q, s = self.order.shape
        total = np.zeros((q, s + 1))
        np.cumsum(weight.take(self.order), axis=1, out=total[:, 1:])
        flat = total.ravel()
        return np.asarray((flat.take(self.below) + flat.take(self.upto) + 1) / 2)


@dataclass(frozen=True, eq=False)
class Moments:
    """Weighted second moments of predictions x and truth y, per query.

    Args:
        xx, yy, xy: (q,) sums of squares and products about the means; zero where there is nothing but rounding.
    """

    xx: Array
    yy: Array
    xy: Array

    @classmethod
    def of(cls, x: Array, y: Array, weight: Array) -> Moments:
        """From (q, s) numbers, number j counted weight[j] times."""
        dx, xx = _about_mean(x, weight)
        dy, yy = _about_mean(y, weight)
        return cls(xx, yy, np.asarray((dx * dy) @ weight))

    def correlation(self) -> Array:
        """(q,) 0 where the prediction is constant, NaN where the truth is."""
        both = np.sqrt(np.where(self.xx > 0, self.xx, 1) * np.where(self.yy > 0, self.yy, 1))
        return np.where(self.yy > 0, np.where(self.xx > 0, self.xy / both, 0.0), np.nan)


def levelled(numbers: Array, size: Array | None = None) -> Array:
    """(q, s) numbers about each query's mean, exactly 0 where they differ by rounding only.

    Args:
        numbers: (q, s).
        size: (q,) of what was added up to make them; that of the numbers by default.
    """
    scale = np.abs(numbers).max(axis=1) if size is None else size
    about = numbers - numbers.mean(axis=1, keepdims=True)
    return np.where(np.abs(about).max(axis=1, keepdims=True) > ROUNDING * scale[:, None], about, 0.0)


def _about_mean(x: Array, weight: Array) -> tuple[Array, Array]:
    about = x - ((x @ weight) / weight.sum())[:, None]
    squares = np.asarray((about * about) @ weight)
    return about, np.where(squares > ROUNDING**2 * ((x * x) @ weight), squares, 0.0)
