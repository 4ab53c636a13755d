"""How well a perfect predictor would do where the truth itself is noisy."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

ENOUGH = 6
"""Subsets from which on an estimate of 1 − λ, an F variable with one degree of freedom less below, has a finite variance."""

ATOMS = 64  # equally likely reliabilities that stand for their distribution over queries


def expected_spearman(correlation: Any, count: float = np.inf) -> Array:
    """The Spearman correlation to expect of `count` pairs of normal variables with this correlation.

    (6/π) (arcsin(ρ/2) + (arcsin ρ − 3 arcsin(ρ/2)) / (count + 1)), which tends to (6/π) arcsin(ρ/2).

    >>> expected_spearman([0.0, 0.5, 1.0]).round(3).tolist()
    [0.0, 0.483, 1.0]
    >>> float(expected_spearman(0.5, count=100).round(3))
    0.478

    Args:
        correlation: Pearson correlations, any shape.
        count: of pairs, at least 2.

    Source: Moran, Rank Correlation and Product-Moment Correlation, Biometrika 1948.
    """
    rho = np.clip(np.asarray(correlation, dtype=np.float64), -1, 1)
    half = np.arcsin(rho / 2)
    return np.asarray(6 / np.pi * (half + (np.arcsin(rho) - 3 * half) / (count + 1)))


def noise_ceiling(measured: Array, which: Array) -> Array:
    """The expected Spearman correlation of each query's true means with those that were measured, over the subsets.

    With σ_e² the variance within subsets, R the models of a subset and σ_S² the variance of the true means, the reliability
    of the measured means is λ = σ_S² / (σ_S² + σ_e²/R), a perfect predictor's correlation with them ρ = √λ, and its
    Spearman correlation `expected_spearman(ρ, subsets)`.

    >>> rng = np.random.default_rng(0)
    >>> which = np.repeat(np.arange(100), 5)
    >>> measured = rng.normal(size=(100, 400))[which] + np.sqrt(3) * rng.normal(size=(500, 400))
    >>> bool(abs(noise_ceiling(measured, which).mean() - 0.770) < 0.01)
    True

    Losses of networks have long tails, and a few of them would make all variances. The Spearman correlation knows ranks only,
    so σ_e² and σ_S² are those of z, the normal scores of a query's measurements (but for one whose measurements tie, such as
    hits and misses), m = h(z) with h increasing. Means over R > 1 models are means of m, whose tails count again: their
    ceiling is multiplied by what h costs in draws from this model.

    Every query's λ is estimated with error, and the mean root of an estimate is not the root of its mean. So the queries'
    λ are taken as draws from a beta distribution with the mean and the variance that the estimates have without their
    error, and a query gets the posterior mean of its Spearman correlation. In simulations of normal measurements
    (100 subsets, R from 2 to 20, σ_e² up to 10 σ_S²) the mean over queries is within 0.01 of a perfect predictor's, and
    within 0.04 where half of the queries are nothing but noise; the same for logarithmic normal ones (σ = 2, R = 1 to 5).

    Args:
        measured: (m, q) finite measurements.
        which: (m,) the subset that each model was trained on, 0 to s − 1.

    Returns:
        (q,); NaN where no subset was trained more than once, so that nothing tells noise from effect, and for queries with
        noise where there are fewer than `ENOUGH` subsets: an estimate of λ has no finite variance then.

    Raises:
        InputError: fewer than three subsets.
    """
    means, count = group_means(measured, which)
    between, within = len(count) - 1, len(which) - len(count)
    if between < 2:
        raise InputError(
            f"{len(count)} different subsets", "at least 3", "retrain on more, such as halves(100, repeats=5)"
        )
    if within == 0:
        return np.full(measured.shape[1], np.nan)
    smooth = _without_ties(measured)
    scored = np.where(smooth, _normal_scores(measured), measured)
    means, _ = group_means(scored, which)
    noise = ((scored - means[which]) ** 2).sum(axis=0) / within
    total = means.var(axis=0, ddof=1) / np.mean(1 / count)
    ceilings = np.where(total > 0, 1.0, 0.0)
    noisy = (noise > 0) & (total > 0)
    if noisy.any():
        known = len(count) >= ENOUGH
        ceilings[noisy], reliable = _expected(noise[noisy] / total[noisy], between, within) if known else (np.nan, None)
        if reliable is not None and count.max() > 1:
            tailed = np.flatnonzero(noisy & smooth)
            ceilings[tailed] *= _shares(measured[:, tailed], reliable[smooth[noisy]], count)
    return ceilings


def _without_ties(measured: Array) -> Array:
    """(q,) whether nearly all of a query's measurements differ."""
    ordered = np.sort(measured, axis=0)
    return np.asarray((np.diff(ordered, axis=0) == 0).mean(axis=0) < 0.1)


def _normal_scores(measured: Array) -> Array:
    """Each query's measurements as the normal quantiles of their ranks."""
    return np.asarray(stats.norm.ppf((stats.rankdata(measured, axis=0) - 0.5) / len(measured)))


def _shares(measured: Array, reliable: Array, count: Array) -> Array:
    """(q,) the Spearman correlation of true effects with means of h(z), over that with means of z.

    Args:
        measured: (m, q) whose quantiles are h.
        reliable: (q,) λ of the means of z.
        count: (s,) models of each subset.
    """
    rng, draws = np.random.default_rng(0), max(FEWEST, DRAWN // (len(count) * int(count.max())))
    effect = rng.normal(size=(draws, len(count), 1))
    noise = rng.normal(size=(draws, len(count), int(count.max())))
    weight = (np.arange(noise.shape[2]) < count[:, None]) / count[:, None]
    odds = reliable / (1 - reliable) * np.mean(1 / count)  # of the effect to one model's noise
    grid = stats.norm.ppf((np.arange(len(measured)) + 0.5) / len(measured))
    wanted = effect[:, :, 0].argsort(1).argsort(1)
    shares = np.ones(measured.shape[1])
    for q in range(len(shares)):
        z = (np.sqrt(odds[q]) * effect + noise) / np.sqrt(1 + odds[q])
        found = [(x * weight).sum(2).argsort(1).argsort(1) for x in (np.interp(z, grid, np.sort(measured[:, q])), z)]
        tailed, plain = (float(np.corrcoef(wanted.ravel(), f.ravel())[0, 1]) for f in found)
        shares[q] = tailed / plain if plain > SMALLEST else 1.0
    return shares


DRAWN, FEWEST, SMALLEST = 32_000, 8, 0.02
"""Models that are drawn to see what tails cost, and the least sets of subsets; the correlation below which they cost nothing
that counts."""


def _expected(unreliable: Array, between: int, within: int) -> tuple[Array, Array]:
    """(q,) posterior means of the Spearman correlation and of λ, from estimates of 1 − λ ~ (1 − λ) F(within, between)."""
    atoms = _reliabilities(unreliable, between, within)
    odds = stats.f.logpdf(unreliable[:, None] / (1 - atoms), within, between) - np.log(1 - atoms)
    weight = np.exp(odds - odds.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return np.asarray(weight @ expected_spearman(np.sqrt(atoms), between + 1)), np.asarray(weight @ atoms)


def _reliabilities(unreliable: Array, between: int, within: int) -> Array:
    """(ATOMS,) equally likely λ: a beta distribution's quantiles, or all alike where the estimates vary as one λ's would."""
    unbiased = unreliable * (between - 2) / between
    share = float(np.clip(unbiased.mean(), 1e-9, 1))
    relative = 2 * (between + within - 2) / (within * (between - 4))
    variance = (unbiased.var() - relative * share**2) / (1 + relative)
    if variance <= 1e-6 * share * (1 - share):
        return np.full(ATOMS, 1 - share)
    size = max(share * (1 - share) / variance - 1, 0.05)  # below 0: the estimates vary as if each λ were 0 or 1
    quantiles = stats.beta.ppf((np.arange(ATOMS) + 0.5) / ATOMS, (1 - share) * size, share * size)
    return np.asarray(np.clip(quantiles, 0, 1 - 1e-9))


def group_means(measured: Array, which: Array) -> tuple[Array, Array]:
    """(s, q) means over the models of a subset, and (s,) how many there are."""
    count = np.bincount(which)
    order = np.argsort(which, kind="stable")
    starts = np.cumsum(count) - count
    return np.add.reduceat(measured[order], starts, axis=0) / count[:, None], count
