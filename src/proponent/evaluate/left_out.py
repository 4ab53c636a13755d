"""Leave-one-out correlation: do scores order single training examples as retraining without each of them does?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from proponent.attribution import Attribution
from proponent.errors import InputError
from proponent.evaluate.correlation import Moments, Ranks, levelled
from proponent.evaluate.resampling import centred, check_settings, interval, ratios, resampled, span
from proponent.evaluate.truth import Truth, known, predicts_change, queries_in, require_varying
from proponent.retrain.ledger import Ledger

Array = np.ndarray[Any, np.dtype[Any]]

FEWEST = 3  # examples of which a correlation says anything


@dataclass(frozen=True, eq=False)
class LOOCorrelation:
    """Correlations of scores with leave-one-out truth over training examples, averaged over queries.

    Args:
        pearson, pearson_lower, pearson_upper: mean over queries, and its interval at `level`.
        spearman, spearman_lower, spearman_upper: the same of ranks.
        slope: by how much the truth changes where the score changes by 1, over all queries; NaN for a method that only ranks.
        queries: (q,) ids.
        pearsons, spearmans: (q,) the correlations per query; NaN for a query whose truth does not vary.
        examples: training examples that were left out, one at a time.
        level: of the intervals.
        notes: what should be known, in words.
        draws: (bootstrap,) resampled mean Spearman correlations.
    """

    pearson: float
    pearson_lower: float
    pearson_upper: float
    spearman: float
    spearman_lower: float
    spearman_upper: float
    slope: float
    queries: Array = field(repr=False)
    pearsons: Array = field(repr=False)
    spearmans: Array = field(repr=False)
    examples: int
    level: float
    notes: tuple[str, ...]
    draws: Array = field(repr=False)

    def summary(self) -> dict[str, float]:
        """Named numbers for a table of methods."""
        named: dict[str, float] = {}
        for name in ("pearson", "spearman"):
            named |= {f"loo_{name}{end}": getattr(self, name + end) for end in ("", "_lower", "_upper")}
        return named | {"loo_slope": self.slope}

    def to_pandas(self) -> pd.DataFrame:
        """A row per query: query, pearson, spearman."""
        return pd.DataFrame({"query": self.queries, "pearson": self.pearsons, "spearman": self.spearmans})

    def __repr__(self) -> str:
        pearson = span(self.pearson, self.pearson_lower, self.pearson_upper)
        spearman = span(self.spearman, self.spearman_lower, self.spearman_upper)
        counted = f"{len(self.queries):,} queries × {self.examples:,} examples left out"
        head = f"Leave-one-out: Pearson {pearson}, Spearman {spearman} ({counted})"
        return "\n".join([head, *(f"  {note}" for note in self.notes)])


def loo_correlation(
    scores: Attribution,
    truth: Attribution | Ledger,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> LOOCorrelation:
    """Pearson and Spearman correlation of scores with leave-one-out truth, per query over the examples left out.

    >>> truth = Attribution.of(np.array([[1.0, 2.0, 4.0, 3.0]]), query=["q"], train=list("abcd"), method="refits")
    >>> scores = Attribution.of(np.array([[0.1, 0.2, 0.4, 0.3]]), query=["q"], train=list("abcd"), method="example")
    >>> loo_correlation(scores, truth, bootstrap=0)
    Leave-one-out: Pearson 1.000, Spearman 1.000 (1 queries × 4 examples left out)

    Args:
        scores: of at least the examples that were left out.
        truth: exact leave-one-out scores, of all or some of the examples; or a ledger in which some examples are left out
            one at a time (`each_left_out()`), whose seeds are averaged and whose other subsets are not looked at.
        bootstrap: resamples of examples and queries for the intervals; 0 for none.
        seed: of the resamples.
        level: of the intervals.

    Raises:
        InputError: fewer than 3 examples left out, other training examples or queries, or a truth that does not vary.

    Source: Koh & Liang, Understanding Black-box Predictions via Influence Functions, ICML 2017.
    """
    check_settings(bootstrap, level)
    changes = _from_ledger(truth) if isinstance(truth, Ledger) else _from_scores(truth)
    x, at = _aligned(scores, changes)
    measured = np.ascontiguousarray(changes.change[at])
    finite = np.isfinite(measured).all(axis=1)
    x, y = levelled(x), levelled(np.where(finite[:, None], measured, 0.0))
    require_varying((y != 0).any(axis=1), "the examples left out")

    statistic = _Statistic(x, y, Ranks.of(x), Ranks.of(y))
    ones = np.ones(x.shape[1])
    pearsons, spearmans = statistic.per_query(ones)
    means = ratios(*statistic(ones), np.ones(len(x)))
    drawn = resampled(statistic, len(ones), len(x), count=bootstrap, seed=seed)
    draws = centred(drawn, means, largest=1)
    bounds = [interval(draws[:, k], level) for k in range(2)]
    counted = np.isfinite(spearmans)
    moments = Moments.of(x[counted], y[counted], ones)
    sized = predicts_change(scores) and moments.xx.sum() > 0
    notes = [*changes.notes]
    if not counted.all():
        notes.append(f"{(~counted).sum():,} queries are left out: their truth is constant or not finite.")
    return LOOCorrelation(
        pearson=float(means[0]),
        pearson_lower=bounds[0][0],
        pearson_upper=bounds[0][1],
        spearman=float(means[1]),
        spearman_lower=bounds[1][0],
        spearman_upper=bounds[1][1],
        slope=float(moments.xy.sum() / moments.xx.sum()) if sized else np.nan,
        queries=changes.query[at],
        pearsons=pearsons,
        spearmans=spearmans,
        examples=len(ones),
        level=level,
        notes=tuple(notes),
        draws=draws[:, 1],
    )


@dataclass(frozen=True, eq=False)
class _Changes:
    """True changes (q, k) by leaving out each of k examples, up to a constant per query, with ids."""

    train: Array
    query: Array
    change: Array
    notes: tuple[str, ...] = ()


def _from_scores(truth: Attribution) -> _Changes:
    change = np.asarray(truth.dataset["score"], dtype=np.float64)
    there = ~np.isnan(change).all(axis=0)
    return _Changes(truth.dataset["train"].to_numpy()[there], truth.dataset["query"].to_numpy(), change[:, there])


def _from_ledger(ledger: Ledger) -> _Changes:
    """m(all) − m(all but i); the first term is the same for all i, and may be missing."""
    truth = Truth.of(ledger)
    gone = 1 - truth.included.astype(np.int64)
    one = np.flatnonzero((gone.sum(axis=1) == 1) & (np.abs(gone).sum(axis=1) == 1))
    notes = (f"{truth.failed:,} models failed and are left out.",) if truth.failed else ()
    return _Changes(truth.train[gone[one].argmax(axis=1)], truth.query, -truth.means[one].T, notes)


def _aligned(scores: Attribution, changes: _Changes) -> tuple[Array, Array]:
    if len(changes.train) < FEWEST:
        raise InputError(
            f"a truth of {len(changes.train)} examples left out one at a time",
            f"at least {FEWEST}",
            "retrain with each_left_out(), or pass exact leave-one-out scores",
        )
    columns = pd.Index(scores.dataset["train"].to_numpy()).get_indexer(pd.Index(changes.train))
    if (columns < 0).any():
        raise InputError(
            f"no scores of {changes.train[columns < 0][:3].tolist()}, which were left out",
            "scores of all examples that were left out",
            "score the same training examples, under the same ids",
        )
    score = np.asarray(scores.dataset["score"], dtype=np.float64)[:, columns]
    return known(score), queries_in(scores, changes.query)


@dataclass(frozen=True, eq=False)
class _Statistic:
    """Of scores x and truth y (q, k), with examples drawn again: Pearson and Spearman correlations."""

    x: Array
    y: Array
    x_ranks: Ranks
    y_ranks: Ranks

    def __call__(self, weight: Array) -> tuple[Array, Array]:
        both = np.stack(self.per_query(weight))
        counted = np.isfinite(both)
        return np.where(counted, both, 0.0), counted.astype(float)

    def per_query(self, weight: Array) -> tuple[Array, Array]:
        ranks = Moments.of(self.x_ranks.among(weight), self.y_ranks.among(weight), weight)
        return Moments.of(self.x, self.y, weight).correlation(), ranks.correlation()
