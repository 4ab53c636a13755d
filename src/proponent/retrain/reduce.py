"""Reductions of retrained models to numbers for each training example: semivalues and differences of means.

Arrays only. m subsets, n examples (or groups of them: players), c columns of measurements (queries, or their mean).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from proponent.retrain.moments import Moments, summed

Array = np.ndarray[Any, np.dtype[Any]]
MANY = 1e9
"""Degrees of freedom at which Student's t is the normal distribution."""

# A semivalue is the mean of an example's marginal contributions U(S ∪ i) − U(S): first over the coalitions S of one size,
# then over the sizes s = 0 … n−1, with probabilities that are all that tells one semivalue from another.


def shapley_sizes(n: int) -> Array:
    """(n,) Shapley's value: every size alike.

    >>> shapley_sizes(4).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return np.full(n, 1 / n)


def beta_sizes(n: int, alpha: float, beta: float) -> Array:
    """(n,) Beta(α, β) Shapley: P(s) = C(n−1, s) B(s + β, n−1−s + α) / B(α, β), of mean (n−1) β/(α+β): a large α favours
    small coalitions.

    >>> float(beta_sizes(50, alpha=16, beta=1) @ np.arange(50)).__round__(2)
    2.88
    """
    s = np.arange(n - 1)
    return _from_ratios((n - 1 - s) / (s + 1) * (s + beta) / (n - 2 - s + alpha))


def binomial_sizes(n: int, p: float = 0.5) -> Array:
    """(n,) Banzhaf's value (p = ½) and its weighted kin: every other example joins with probability p.

    >>> binomial_sizes(3).tolist()
    [0.25, 0.5, 0.25]
    """
    s = np.arange(n - 1)
    return _from_ratios((n - 1 - s) / (s + 1) * p / (1 - p))


def _from_ratios(ratios: Array) -> Array:
    """Probabilities from those of neighbours, P(s+1) / P(s), in logarithms: n may be large."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def semivalues(measured: Array, sizes: Array) -> Array:
    """(n, c) exact values from all 2ⁿ subsets.

    φ_i = Σ_{S ∌ i} P(|S|) / C(n−1, |S|) · (U(S ∪ i) − U(S))

    Pairs of which a measurement is NaN are left out of the mean, whose weights are then scaled up.

    >>> semivalues(np.array([[0.0], [1.0], [2.0], [4.0]]), shapley_sizes(2)).ravel().tolist()
    [1.5, 2.5]

    Args:
        measured: (2ⁿ, c); subset s holds example i where bit i of s is set.
        sizes: (n,) from one of the functions above.
    """
    n = len(sizes)
    of_one = sizes / np.array([comb(n - 1, s) for s in range(n)], dtype=np.float64)
    codes = np.arange(2**n)
    size = np.bitwise_count(codes).astype(np.int64)
    values = np.empty((n, measured.shape[1]))
    for i in range(n):
        apart = codes[codes >> i & 1 == 0]
        gained = measured[apart | 1 << i] - measured[apart]
        weight = of_one[size[apart]]
        known = ~np.isnan(gained).any(axis=1)
        total = weight @ np.where(known[:, None], gained, 0.0)
        values[i] = total if known.all() else total / weight[known].sum() if known.any() else np.nan
    return values


def marginals(order: Array, measured: Array, sizes: Array) -> Array:
    """(n, c) an unbiased draw of a semivalue: what each example adds where it arrives, times n P(its place).

    NaN for the examples that arrive just before or after a subset whose fit failed: what they add there is not known.
    For Shapley's value all weights are 1, and the draw adds up to U(all) − U(∅).

    >>> marginals(np.array([1, 0]), np.array([[0.0], [2.0], [4.0]]), shapley_sizes(2)).ravel().tolist()
    [2.0, 2.0]

    Args:
        order: (n,) the order of arrival.
        measured: (n + 1, c) of the empty set, the first, the first two, …, all.
    """
    n = len(order)
    added = np.empty((n, measured.shape[1]))
    added[order] = np.diff(measured, axis=0) * (n * sizes)[:, None]
    return added


@dataclass(frozen=True, eq=False)
class Contrast:
    """The mean measurement of the models trained with an example, minus the mean of those trained without it.

    φ_i = mean{U(S_s): i ∈ S_s} − mean{U(S_s): i ∉ S_s}

    Under subsets of a fixed share α it is the downsampling influence, under independent inclusion with probability p the
    (weighted) Banzhaf value.

    >>> drawn = Contrast.empty(2, 1).with_rows(np.array([[1, 0], [0, 1], [1, 1]]), np.array([[1.0], [2.0], [4.0]]))
    >>> drawn.value.ravel().tolist()
    [0.5, 2.0]

    Args:
        inside, outside: moments of the measurements with and without each example.
        pairs: sums over antithetic pairs, where rows come in such pairs.
        binary: (1, c) or (n, c) whether all measurements were 0 or 1.
    """

    inside: Moments
    outside: Moments
    binary: Array
    pairs: PairSums | None = None

    @classmethod
    def empty(cls, n: int, columns: int, *, paired: bool = False) -> Contrast:
        """Nothing seen yet; `paired` where rows 2k and 2k + 1 are drawn together."""
        nothing = Moments.empty(n, columns)
        return cls(nothing, nothing, np.ones((1, columns), bool), PairSums.empty(n, columns) if paired else None)

    def with_rows(self, included: Array, measured: Array) -> Contrast:
        """More subsets; those whose measurements are NaN, because the fit failed, are left out.

        Args:
            included: (m, n) counts.
            measured: (m, c); or (m, n, c) where every example has measurements of its own.
        """
        of_each = measured[:, None] if measured.ndim == 2 else measured
        fitted = ~np.isnan(of_each).any(axis=(1, 2))
        if not fitted.any():
            return self
        z, y = included[fitted] > 0, of_each[fitted]
        return Contrast(
            self.inside.merged(Moments.of_rows(z, y)),
            self.outside.merged(Moments.of_rows(~z, y)),
            self.binary & ((y == 0) | (y == 1)).all(axis=0),
            self.pairs and self.pairs.with_rows(included > 0, of_each),
        )

    @property
    def value(self) -> Array:
        """(n, c); NaN for an example that was in all subsets or in none."""
        known = (self.inside.count > 0) & (self.outside.count > 0)
        return np.where(known, self.inside.mean - self.outside.mean, np.nan)

    @property
    def stderr(self) -> Array:
        """(n, c) Welch's, √(s₁²/m₁ + s₀²/m₀); with the covariance of pairs; of zeros and ones, Agresti & Caffo's.

        The last add a success and a failure to either side, so that it is not zero where all draws agree.
        """
        welch = self._of_mean(self.inside) + self._of_mean(self.outside)
        if self.pairs is not None:
            welch = np.maximum(welch + 2 * self.pairs.covariance(self.inside, self.outside), 0.0)
        return np.sqrt(welch)

    def interval(self, confidence: float) -> tuple[Array, Array]:
        """Lower and upper ends (n, c) that hold the expected difference with this probability.

        Student's t with Welch & Satterthwaite's degrees of freedom (one less than the pairs, of pairs); of zeros and ones,
        Agresti & Caffo's, about the difference of (successes + 1) / (draws + 2).
        """
        stderr = self.stderr
        centre = np.where(self.binary, self._shrunk(self.inside) - self._shrunk(self.outside), self.value)
        tail = (1 + confidence) / 2
        reach = np.where(self.binary, ndtri(tail), stdtrit(self._freedom(), tail)) * stderr
        return centre - reach, centre + reach

    def _of_mean(self, side: Moments) -> Array:
        plain = side.variance / np.maximum(side.count, 1)
        p = self._shrunk(side)
        return np.where(self.binary & (self.pairs is None), p * (1 - p) / (side.count + 2), plain)

    @staticmethod
    def _shrunk(side: Moments) -> Array:
        return (side.mean * side.count + 1) / (side.count + 2)

    def _freedom(self) -> Array:
        if self.pairs is not None:
            return np.broadcast_to(np.maximum(self.pairs.count - 1.0, 1.0), self.inside.mean.shape)
        one, other = self._of_mean(self.inside), self._of_mean(self.outside)
        spread = one**2 / np.maximum(self.inside.count - 1, 1) + other**2 / np.maximum(self.outside.count - 1, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(spread > 0, np.maximum((one + other) ** 2 / spread, 1.0), MANY)


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums over pairs of subsets that were drawn together, for the covariance of their measurements.

    With e_s = z_s (y_s − ȳ₁)/m₁ − (1−z_s)(y_s − ȳ₀)/m₀ the part of row s in the error of a difference of means, its variance
    is Σ_s e_s² (Welch's) + 2 Σ_pairs e_s e_s'. The products are expanded about `origin`, a number near the means, into sums
    by whether both, none or one of the two holds the example.

    Args:
        count: pairs.
        origin: (1, c) or (n, c).
        both, none: for each example (number of pairs (n, 1), Σ y y' (n, c), Σ (y + y') (n, c)).
        one: (number, Σ y y', Σ y of the row with, Σ y of the row without).
    """

    count: int
    origin: Array | None
    both: tuple[Array, ...]
    none: tuple[Array, ...]
    one: tuple[Array, ...]

    @classmethod
    def empty(cls, n: int, columns: int) -> PairSums:
        """No pairs."""
        number, wide = np.zeros((n, 1)), np.zeros((n, columns))
        return cls(0, None, (number, wide, wide), (number, wide, wide), (number, wide, wide, wide))

    def with_rows(self, member: Array, measured: Array) -> PairSums:
        """More pairs, rows 2k and 2k + 1; one with a failed fit counts as no pair."""
        fitted = np.asarray(~np.isnan(measured).any(axis=(1, 2)))
        at = 2 * np.flatnonzero(np.logical_and(fitted[0::2], fitted[1::2]))
        if not len(at):
            return self
        origin = measured[np.r_[at, at + 1]].mean(axis=0) if self.origin is None else self.origin
        z, w = member[at].astype(np.float64), member[at + 1].astype(np.float64)
        y, x = measured[at] - origin, measured[at + 1] - origin
        both, none, only_z, only_w = z * w, (1 - z) * (1 - w), z * (1 - w), (1 - z) * w
        either = only_z + only_w

        def number(held: Array) -> Array:
            return held.sum(axis=0)[:, None]

        new = (
            (number(both), summed(both, y * x), summed(both, y + x)),
            (number(none), summed(none, y * x), summed(none, y + x)),
            (
                number(either),
                summed(either, y * x),
                summed(only_z, y) + summed(only_w, x),
                summed(only_z, x) + summed(only_w, y),
            ),
        )
        sums = [
            tuple(a + b for a, b in zip(old, more, strict=True))
            for old, more in zip((self.both, self.none, self.one), new, strict=True)
        ]
        return PairSums(self.count + len(at), origin, *sums)

    def covariance(self, inside: Moments, outside: Moments) -> Array:
        """(n, c) Σ over pairs of e_s e_s'."""
        if self.origin is None:
            return np.zeros_like(inside.mean)
        a, b = inside.mean - self.origin, outside.mean - self.origin
        m1, m0 = np.maximum(inside.count, 1), np.maximum(outside.count, 1)
        count, product, total = self.both
        of_both = product - a * total + count * a**2
        count, product, total = self.none
        of_none = product - b * total + count * b**2
        count, product, with_it, without = self.one
        of_one = product - b * with_it - a * without + count * a * b
        return np.asarray(of_both / m1**2 + of_none / m0**2 - of_one / (m1 * m0))
