"""Intervals by resampling both what a correlation is taken over and the queries it is averaged over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
Statistic = Callable[[Array], tuple[Array, Array]]
"""From weights (s,) of the subsets or rows to numerators and denominators (k, q) of k statistics."""


def ratios(numerator: Array, denominator: Array, weight: Array) -> Array:
    """(k,) Σ_q weight numerator / Σ_q weight denominator; NaN where the denominators add up to nothing."""
    total = denominator @ weight
    return np.where(total > 0, (numerator @ weight) / np.where(total > 0, total, 1.0), np.nan)


def resampled(statistic: Statistic, size: int, queries: int, *, count: int, seed: int) -> Array:
    """(count, k) statistics of resamples: subsets and queries both drawn anew, with replacement.

    Draw r depends on (seed, r, size, queries) alone, so that two methods judged on one ledger are resampled alike, and
    differences between them have intervals of their own. Resampling both axes counts part of the error twice: in simulations
    with 30 and 100 subsets and 50 queries, intervals at 95 % covered in 97 to 99 %. A handful of queries says little about all
    that could be asked: with 5, they covered the mean over those in 90 %.

    Source: Owen, The Pigeonhole Bootstrap, Annals of Applied Statistics 2007.
    """
    drawn = []
    for r in range(count):
        rng = np.random.default_rng([seed, r])
        subset = np.bincount(rng.integers(size, size=size), minlength=size).astype(float)
        query = np.bincount(rng.integers(queries, size=queries), minlength=queries).astype(float)
        drawn.append(ratios(*statistic(subset), query))
    return np.array(drawn) if drawn else np.zeros((0, len(statistic(np.ones(size))[0])))


def centred(draws: Array, estimate: Array, largest: float = np.inf) -> Array:
    """(count, k) draws moved to lie around the estimate, and cut at ± `largest`.

    A resample holds ties, which take a little off every rank correlation: with many queries, more than the width of the
    interval.
    """
    known = np.isfinite(draws)
    middle = np.where(known, draws, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.clip(draws - middle + estimate, -largest, largest)


def of_means(numbers: Array, *, count: int, seed: int) -> Array:
    """(count,) means of one number per query, the queries drawn anew; NaN is left out."""
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return np.full(count, np.nan)
    rng = np.random.default_rng(seed)
    return np.array([known[rng.integers(len(known), size=len(known))].mean() for _ in range(count)])


def interval(draws: Array, level: float) -> tuple[float, float]:
    """Between which the middle share `level` of the draws lies; NaN without draws.

    >>> interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    known = draws[np.isfinite(draws)]
    if not len(known):
        return float("nan"), float("nan")
    lower, upper = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


def check_settings(bootstrap: int, level: float) -> None:
    """Raises InputError for a level or a number of resamples that mean nothing."""
    if bootstrap < 0 or not 0 < level < 1:
        raise InputError(
            f"bootstrap={bootstrap}, level={level}",
            "a number of resamples ≥ 0 and a level between 0 and 1",
            "use the defaults 1000 and 0.95; bootstrap=0 gives no interval",
        )


def span(value: float, lower: float, upper: float, digits: int = 3) -> str:
    """A number and its interval in words.

    >>> span(0.4312, 0.39, 0.47)
    '0.431 [0.390, 0.470]'
    >>> span(float("nan"), float("nan"), float("nan"))
    'unknown'
    """
    if not np.isfinite(value):
        return "unknown"
    if not np.isfinite(lower + upper):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{lower:.{digits}f}, {upper:.{digits}f}]"
