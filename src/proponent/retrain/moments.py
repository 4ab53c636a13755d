"""Running means and variances: what a sampling estimator holds instead of its draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
ALIKE = 1e-20
"""Share of the largest deviation, squared, below which draws differ by rounding."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of draws, merged pairwise (Welford 1962; Chan, Golub & LeVeque 1979).

    >>> seen = Moments.empty(2, 1)
    >>> for draw in ([[1.0], [5.0]], [[3.0], [np.nan]]):
    ...     seen = seen.merged(Moments.of_draw(np.array(draw)))
    >>> seen.mean.ravel().tolist(), seen.count.ravel().tolist()
    ([2.0, 5.0], [2, 1])

    Args:
        count: (n, 1) draws of each example.
        mean: (n, c) of each example and column; 0 where there was no draw.
        deviations: (n, c) Σ (draw − mean)².
        largest: (1, c) of all examples, how far a draw was from the mean of those before it.
    """

    count: Array
    mean: Array
    deviations: Array
    largest: Array

    @classmethod
    def empty(cls, n: int, columns: int) -> Moments:
        """Nothing seen yet."""
        return cls(np.zeros((n, 1), np.int64), np.zeros((n, columns)), np.zeros((n, columns)), np.zeros((1, columns)))

    @classmethod
    def of_draw(cls, draw: Array) -> Moments:
        """One draw of (n, c); an example that is NaN was not drawn."""
        drawn = np.asarray(~np.isnan(draw).any(axis=1, keepdims=True))
        return cls(
            drawn.astype(np.int64), np.where(drawn, draw, 0.0), np.zeros_like(draw), np.zeros((1, draw.shape[1]))
        )

    @classmethod
    def of_rows(cls, member: Array, measured: Array) -> Moments:
        """For each example, the measurements of the rows that it is a member of.

        Args:
            member: (m, n) zeros and ones.
            measured: (m, 1, c) for all examples, or (m, n, c) for each its own.
        """
        origin = measured.mean(axis=0)  # sums of squares about a number near the mean lose no digits
        y = measured - origin
        z = np.asarray(member, dtype=np.float64)
        count = z.sum(axis=0)[:, None]
        mean = summed(z, y) / np.maximum(count, 1)
        deviations = np.maximum(summed(z, y**2) - count * mean**2, 0.0)
        largest = np.abs(y).max(axis=(0, 1), keepdims=True)[0]
        return cls(count.astype(np.int64), np.where(count > 0, mean + origin, 0.0), deviations, largest)

    def merged(self, other: Moments) -> Moments:
        """The draws of both."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        gap = other.mean - self.mean
        deviations = self.deviations + other.deviations + gap**2 * (self.count * share)
        between = np.where((self.count > 0) & (other.count > 0), np.abs(gap), 0.0).max(
            axis=0, keepdims=True, initial=0.0
        )
        largest = np.maximum(np.maximum(self.largest, other.largest), between)
        return Moments(count, self.mean + gap * share, deviations, largest)

    @property
    def variance(self) -> Array:
        """(n, c) of one draw; NaN below two draws."""
        return np.where(self.count > 1, self.deviations / np.maximum(self.count - 1, 1), np.nan)

    @property
    def stderr(self) -> Array:
        """(n, c) of the mean; NaN below two draws.

        Draws of an example that all agree do not prove that the next would: it counts as if one of them had been off by
        the largest deviation that was seen of any example.
        """
        count = np.maximum(self.count, 1)
        seen_none = self.variance <= ALIKE * self.largest**2
        return np.sqrt(np.where(seen_none, self.largest**2 / count, self.variance) / count)


def summed(member: Array, measured: Array) -> Array:
    """(n, c) Σ over rows of member (m, n) times measured (m, 1, c) or (m, n, c)."""
    if measured.shape[1] == 1:
        return np.asarray(member.T @ measured[:, 0])
    return np.asarray(np.einsum("mn,mnc->nc", member, measured))


@dataclass(frozen=True, eq=False)
class Halves:
    """The moments of every other draw and of the rest: their agreement says how stable a ranking is."""

    even: Moments
    odd: Moments

    @classmethod
    def empty(cls, n: int, columns: int) -> Halves:
        """Nothing seen yet."""
        return cls(Moments.empty(n, columns), Moments.empty(n, columns))

    def with_draw(self, number: int, draw: Array) -> Halves:
        """One more draw (n, c)."""
        one = Moments.of_draw(draw)
        return Halves(self.even, self.odd.merged(one)) if number % 2 else Halves(self.even.merged(one), self.odd)

    @property
    def whole(self) -> Moments:
        """All draws."""
        return self.even.merged(self.odd)

    @property
    def stderr(self) -> Array:
        """(n, c) of the mean of all draws."""
        return self.whole.stderr
