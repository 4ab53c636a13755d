"""Stability: do results of the same question, under other seeds, agree?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from proponent.attribution import Attribution, Values
from proponent.errors import InputError
from proponent.evaluate.resampling import check_settings, interval, of_means, span

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Stability:
    """How well results agree, over all pairs of them.

    Args:
        mean, lower, upper: the mean Spearman correlation over pairs and queries, and its interval over queries at `level`;
            values, which have no queries, have none.
        overlap: the mean share of the k largest that two results have in common.
        k: see overlap.
        pairs: (r, r) mean correlation of each pair of results.
        queries: (q,) ids; empty for values.
        per_query: (q,) the mean correlation over pairs; NaN where a result is constant.
        level: of the interval.
    """

    mean: float
    lower: float
    upper: float
    overlap: float
    k: int
    pairs: Array = field(repr=False)
    queries: Array = field(repr=False)
    per_query: Array = field(repr=False)
    level: float

    def summary(self) -> dict[str, float]:
        """Named numbers for a table of methods."""
        return {
            "stability": self.mean,
            "stability_lower": self.lower,
            "stability_upper": self.upper,
            "top_k_overlap": self.overlap,
        }

    def to_pandas(self) -> pd.DataFrame:
        """A row per query: query, correlation."""
        return pd.DataFrame({"query": self.queries, "correlation": self.per_query[: len(self.queries)]})

    def __repr__(self) -> str:
        mean = span(self.mean, self.lower, self.upper)
        return (
            f"Stability: Spearman {mean} over {len(self.pairs)} results, {self.overlap:.0%} of the top {self.k} shared"
        )


def stability(
    results: Sequence[Attribution] | Sequence[Values],
    *,
    k: int = 10,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Stability:
    """The mean Spearman correlation between results of the same question under different seeds.

    >>> up, down = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0])
    >>> stability([Values.of(v, train=range(4), method="example") for v in (up, down)], k=2)
    Stability: Spearman 0.800 over 2 results, 100% of the top 2 shared

    Args:
        results: at least two Attributions, or Values, of the same examples (and queries), in any order.
        k: how many of the largest to compare.
        bootstrap: resamples of queries for the interval; 0 for none.
        seed: of the resamples.
        level: of the interval.

    Raises:
        InputError: fewer than two results, or results of other examples or queries.
    """
    check_settings(bootstrap, level)
    if len(results) < 2:
        raise InputError(f"{len(results)} results", "at least two", "repeat the method under another seed")
    first = results[0]
    stacked = np.stack([_numbers(r, first) for r in results])
    unit = _unit_ranks(stacked)
    together = np.einsum("aqn,bqn->qab", unit, unit)
    together[np.isnan(unit).any(axis=2).any(axis=0)] = np.nan
    above = np.triu_indices(len(results), 1)
    per_query = together[:, above[0], above[1]].mean(axis=1)
    known = np.isfinite(per_query)
    if not known.any():
        raise InputError("results that are constant", "values that differ between examples", "check the results")
    k = min(k, stacked.shape[2])
    with_queries = isinstance(first, Attribution)
    draws = of_means(per_query, count=bootstrap, seed=seed) if with_queries else np.empty(0)
    lower, upper = interval(draws, level)
    return Stability(
        mean=float(per_query[known].mean()),
        lower=lower,
        upper=upper,
        overlap=_overlap(stacked, k),
        k=k,
        pairs=together[known].mean(axis=0),
        queries=first.dataset["query"].to_numpy() if with_queries else np.empty(0, dtype=object),
        per_query=per_query,
        level=level,
    )


def _numbers(result: Attribution | Values, first: Attribution | Values) -> Array:
    """(q, n) numbers, q = 1 for values, in the order of the first result."""
    if type(result) is not type(first):
        raise InputError(
            "attributions and values together", "results of one kind", "take .values() of the attributions"
        )
    for axis in ("query", "train") if isinstance(first, Attribution) else ("train",):
        mine, theirs = (pd.Index(r.dataset[axis].to_numpy()) for r in (result, first))
        if len(mine) != len(theirs) or (mine.get_indexer(theirs) < 0).any():
            raise InputError(f"results with other ids on the {axis} axis", "results of the same examples", "align them")
    if isinstance(result, Values):
        at = pd.Index(result.dataset["train"].to_numpy()).get_indexer(pd.Index(first.dataset["train"].to_numpy()))
        return np.asarray(result.value[at], dtype=np.float64)[None]
    ids = {axis: first.dataset[axis].to_numpy() for axis in ("query", "train")}
    return np.asarray(result.dataset["score"].sel(ids), dtype=np.float64)


def _unit_ranks(stacked: Array) -> Array:
    """(r, q, n) ranks about their mean, of length 1; NaN where a result is constant or not finite."""
    ranks = rankdata(stacked, axis=2) - (stacked.shape[2] + 1) / 2
    length = np.sqrt((ranks**2).sum(axis=2, keepdims=True))
    usable = (length > 0) & np.isfinite(stacked).all(axis=2, keepdims=True)
    return np.where(usable, ranks / np.where(usable, length, 1), np.nan)


def _overlap(stacked: Array, k: int) -> float:
    at = np.argsort(-stacked, axis=2, kind="stable")[:, :, :k]
    chosen = np.zeros(stacked.shape, dtype=bool)
    np.put_along_axis(chosen, at, True, axis=2)
    shared = [(chosen[a] & chosen[b]).sum(axis=1).mean() / k for a, b in combinations(range(len(stacked)), 2)]
    return float(np.mean(shared))
