"""The linear datamodeling score: do sums of scores order subsets as retraining on them does?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from proponent.attribution import Attribution
from proponent.errors import InputError
from proponent.evaluate.ceiling import ENOUGH, noise_ceiling
from proponent.evaluate.correlation import Moments, Ranks, levelled
from proponent.evaluate.resampling import centred, check_settings, interval, ratios, resampled, span
from proponent.evaluate.truth import Truth, aligned, predicts_change, require_varying
from proponent.retrain.ledger import Ledger

Array = np.ndarray[Any, np.dtype[Any]]

FEWEST = 3  # subsets of which a rank correlation says anything


@dataclass(frozen=True, eq=False)
class LDS:
    """A linear datamodeling score, how sure it is, and how high it could be.

    Args:
        mean, lower, upper: the mean over queries, and its interval at `level`.
        ceiling: the score to expect of a perfect predictor, mean over the same queries; NaN where unknown.
        slope, slope_lower, slope_upper: by how much the truth changes where the prediction changes by 1; NaN for a method
            that only ranks.
        queries: (q,) ids.
        values, ceilings, slopes: (q,) the same numbers per query; NaN for a query whose truth does not vary.
        subsets: different subsets that were compared.
        models: trained for them; failed ones are not counted.
        failed: models that failed.
        level: of the intervals.
        notes: what should be known, in words.
        draws: (bootstrap,) resampled means; those of another method on the same ledger and seed are paired with them.
    """

    mean: float
    lower: float
    upper: float
    ceiling: float
    slope: float
    slope_lower: float
    slope_upper: float
    queries: Array = field(repr=False)
    values: Array = field(repr=False)
    ceilings: Array = field(repr=False)
    slopes: Array = field(repr=False)
    subsets: int
    models: int
    failed: int
    level: float
    notes: tuple[str, ...]
    draws: Array = field(repr=False)

    @property
    def of_ceiling(self) -> float:
        """The score as a share of its ceiling."""
        return self.mean / self.ceiling if self.ceiling > 0 else float("nan")

    def summary(self) -> dict[str, float]:
        """Named numbers for a table of methods."""
        return {
            "lds": self.mean,
            "lds_lower": self.lower,
            "lds_upper": self.upper,
            "lds_of_ceiling": self.of_ceiling,
            "slope": self.slope,
        }

    def to_pandas(self) -> pd.DataFrame:
        """A row per query: query, lds, ceiling, slope."""
        columns = {"query": self.queries, "lds": self.values, "ceiling": self.ceilings, "slope": self.slopes}
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        ceiling = f"ceiling {self.ceiling:.3f}" if np.isfinite(self.ceiling) else "ceiling unknown"
        slope = f", slope {span(self.slope, self.slope_lower, self.slope_upper, 2)}" if np.isfinite(self.slope) else ""
        counted = f"{len(self.queries):,} queries × {self.subsets:,} subsets, {self.models:,} models"
        head = f"LDS {span(self.mean, self.lower, self.upper)}, {ceiling}{slope} ({counted})"
        return "\n".join([head, *(f"  {note}" for note in self.notes)])


def lds(
    scores: Attribution,
    ledger: Ledger,
    *,
    noise_free: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> LDS:
    """The linear datamodeling score of an attribution, with its noise ceiling, interval and calibration slope.

    LDS_q = Spearman over subsets S of ( Σ_{i in S} score[q, i],  mean over seeds of measured[S, q] ),
    slope = Σ_q cov_q(prediction, truth) / Σ_q var_q(prediction)

    >>> from proponent.retrain.subsets import halves
    >>> effects = np.random.default_rng(0).normal(size=(2, 20))
    >>> included = halves(50)(20).included
    >>> ledger = Ledger.of(included, included @ (0.5 * effects.T), train=range(20), query=["a", "b"])
    >>> scores = Attribution.of(effects, query=["a", "b"], train=range(20), method="planted")
    >>> lds(scores, ledger, noise_free=True)
    LDS 1.000 [1.000, 1.000], ceiling 1.000, slope 0.50 [0.50, 0.50] (2 queries × 50 subsets, 50 models)

    Both protocols of the literature are ledgers: random halves under several seeds each, `halves(100, repeats=5)`, whose
    ceiling comes from the variance between a subset's seeds; and small removals from one deterministic run,
    `fractions(0.99, 100)` with one seed, whose ceiling is 1 (`noise_free=True`). The slope should be 1 where scores predict
    what removing a few examples does; of halves, where one example weighs more, it is usually larger.

    Args:
        scores: their training examples are those of the ledger, in any order; their queries are among the ledger's. A score
            that is not finite counts as 0, a query whose prediction is the same for all subsets as a score of 0.
        ledger: retrained models. Models of one subset are averaged; failed ones are left out and counted.
        noise_free: training is deterministic, so that one model per subset is the truth and the ceiling is 1.
        bootstrap: resamples of subsets and queries for the intervals; 0 for none.
        seed: of the resamples; methods judged with one seed on one ledger are resampled alike.
        level: of the intervals.

    Raises:
        InputError: other training examples or queries, fewer than 3 subsets, or a truth that does not vary among them.

    Source: Park et al., TRAK, ICML 2023; Bae et al., Training Data Attribution via Approximate Unrolling, NeurIPS 2024.
    """
    check_settings(bootstrap, level)
    truth = Truth.of(ledger)
    if len(truth.included) < FEWEST:
        raise InputError(
            f"{len(truth.included)} different subsets among {len(truth.which)} models",
            f"at least {FEWEST} subsets",
            "retrain on more, such as halves(100)",
        )
    score, at = aligned(scores, truth.train, truth.query)
    measured = np.ascontiguousarray(truth.means[:, at].T)
    finite = np.isfinite(measured).all(axis=1)
    x = levelled(truth.sums(score), np.abs(score).sum(axis=1) * max(1, int(truth.included.max())))
    y = levelled(np.where(finite[:, None], measured, 0.0))
    require_varying((y != 0).any(axis=1), "subsets")

    statistic = _Statistic(x, y, Ranks.of(x), Ranks.of(y))
    ones = np.ones(len(truth.included))
    values, slopes = statistic.per_query(ones)
    counted = np.isfinite(values)
    mean, slope = ratios(*statistic(ones), np.ones(len(x)))
    drawn = resampled(statistic, len(ones), len(x), count=bootstrap, seed=seed)
    draws = centred(drawn[:, 0], mean, largest=1)
    ceilings = np.where(counted, 1.0 if noise_free else noise_ceiling(truth.measured[:, at], truth.which), np.nan)
    sized = predicts_change(scores)
    slope_lower, slope_upper = interval(drawn[:, 1], level) if sized else (np.nan, np.nan)
    lower, upper = interval(draws, level)
    return LDS(
        mean=float(mean),
        lower=lower,
        upper=upper,
        ceiling=float(ceilings[counted].mean()),
        slope=float(slope) if sized else np.nan,
        slope_lower=slope_lower,
        slope_upper=slope_upper,
        queries=truth.query[at],
        values=values,
        ceilings=ceilings,
        slopes=slopes if sized else np.full(len(x), np.nan),
        subsets=len(ones),
        models=len(truth.which),
        failed=truth.failed,
        level=level,
        notes=tuple(_notes(scores, truth, counted, ceilings, (x == 0).all(axis=1), upper, noise_free)),
        draws=draws,
    )


@dataclass(frozen=True, eq=False)
class _Statistic:
    """Of predictions x and truth y (q, s), with subsets drawn again: rank correlations, and the slope of y on x."""

    x: Array
    y: Array
    x_ranks: Ranks
    y_ranks: Ranks

    def __call__(self, weight: Array) -> tuple[Array, Array]:
        correlation = self._ranked(weight)
        counted = np.isfinite(correlation)
        sizes = Moments.of(self.x, self.y, weight)
        return np.stack([np.where(counted, correlation, 0), sizes.xy * counted]), np.stack(
            [counted, sizes.xx * counted]
        )

    def per_query(self, weight: Array) -> tuple[Array, Array]:
        sizes = Moments.of(self.x, self.y, weight)
        return self._ranked(weight), np.where(sizes.xx > 0, sizes.xy / np.where(sizes.xx > 0, sizes.xx, 1), np.nan)

    def _ranked(self, weight: Array) -> Array:
        return Moments.of(self.x_ranks.among(weight), self.y_ranks.among(weight), weight).correlation()


def _notes(
    scores: Attribution,
    truth: Truth,
    counted: Array,
    ceilings: Array,
    constant: Array,
    upper: float,
    noise_free: bool,
) -> list[str]:
    said = []
    if not noise_free and truth.repeats.max() == 1:
        said.append(
            "No ceiling: each subset was trained once, so noise cannot be told from effect; train with repeats ≥ 2, or "
            "pass noise_free=True where training is deterministic."
        )
    elif not noise_free and np.isnan(ceilings[counted]).any():
        said.append(
            f"No ceiling: {len(truth.included)} subsets are too few to tell noise from effect; retrain on at least {ENOUGH}."
        )
    if not predicts_change(scores):
        said.append(f"No slope: a score is a {scores.unit}, which only ranks.")
    if truth.failed:
        said.append(f"{truth.failed:,} models failed and are left out.")
    if not counted.all():
        said.append(f"{(~counted).sum():,} queries are left out: what was measured is constant or not finite.")
    if (constant & counted).any():
        said.append(f"{(constant & counted).sum():,} queries have the same prediction for all subsets, and count as 0.")
    if upper < 0:
        said.append("Below zero: has the sign been turned? A score > 0 means that the example raises the measurement.")
    return said
