"""One pass over the scores: the strongest of each query, a sample for the histogram, and what was set aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from proponent.attribution import Attribution

Array = np.ndarray[Any, np.dtype[Any]]

MEMORY = 2**27
"""Bytes of scores read at once."""

SAMPLED = 100_000
"""Scores that the histogram is drawn from."""

SIDES = (("proponent", 1.0), ("opponent", -1.0))


@dataclass(frozen=True)
class Survey:
    """What one pass over the scores finds.

    Args:
        top: query, side ("proponent", "opponent"), rank, id, score, and label where the training examples have one.
        sample: finite scores: all, or as many as SAMPLED drawn at random.
        set_aside: axis ("train", "query") → ids without any score, because a loss or gradient was not finite.
    """

    top: pd.DataFrame
    sample: Array
    set_aside: dict[str, list[Any]]


def survey(scores: Attribution, k: int) -> Survey:
    """Read the scores once.

    >>> scores = Attribution.of(np.array([[0.2, -0.1, np.nan]]), query=[7], train=["a", "b", "c"], method="example")
    >>> found = survey(scores, 2)
    >>> found.top["id"].tolist(), found.set_aside
    (['a', 'b'], {'train': ['c']})

    Args:
        scores: in memory or on disk.
        k: proponents and opponents per query; ties in the order of the training set.
    """
    (q, n), rng = scores.shape, np.random.default_rng(0)
    train, query = (scores.dataset[axis].to_numpy() for axis in ("train", "query"))
    labels = scores.dataset["train_label"].to_numpy() if "train_label" in scores.dataset.coords else None
    tables, sample = [], []
    seen_train, seen_query = np.zeros(n, bool), np.zeros(q, bool)
    for start, block in _blocks(scores):
        known = ~np.isnan(block)
        seen_train |= known.any(axis=0)
        seen_query[start : start + len(block)] = known.any(axis=1)
        drawn = _drawn(block.ravel(), SAMPLED / (q * n), rng)
        sample.append(drawn[np.isfinite(drawn)])
        tables += [_strongest(row, query[start + i], train, labels, k) for i, row in enumerate(block)]
    aside = {"train": train[~seen_train].tolist() if seen_query.any() else [], "query": query[~seen_query].tolist()}
    return Survey(
        pd.concat(tables, ignore_index=True),
        np.concatenate(sample),
        {axis: ids for axis, ids in aside.items() if ids},
    )


def _drawn(values: Array, share: float, rng: np.random.Generator) -> Array:
    """This share of the values, drawn at random; all of them where there are few."""
    return values if share >= 1 else values[rng.integers(0, len(values), round(share * len(values)))]


def _blocks(scores: Attribution) -> Iterator[tuple[int, Array]]:
    """Rows of scores, as many at once as memory takes."""
    q, n = scores.shape
    step = max(1, MEMORY // (8 * n))
    for start in range(0, q, step):
        yield start, np.asarray(scores.dataset["score"][start : start + step])


def _strongest(row: Array, query: Any, train: Array, labels: Array | None, k: int) -> pd.DataFrame:
    parts = []
    for side, sign in SIDES:
        at = largest(sign * row, k)
        at = at[sign * row[at] > 0]
        columns = {"query": query, "side": side, "rank": np.arange(1, len(at) + 1), "id": train[at], "score": row[at]}
        parts.append(pd.DataFrame(columns if labels is None else columns | {"label": labels[at]}))
    return pd.concat(parts, ignore_index=True)


def largest(values: Array, k: int) -> Array:
    """Positions of the k largest, largest first, ties in order; NaN never.

    >>> largest(np.array([1.0, 3.0, np.nan, 3.0, 2.0]), 3).tolist()
    [1, 3, 4]
    """
    known = np.flatnonzero(~np.isnan(values))
    if 0 < k < len(known):
        least = np.partition(values[known], len(known) - k)[len(known) - k]
        known = known[values[known] >= least]
    return known[np.argsort(-values[known], kind="stable")[:k]]


def frequent(top: pd.DataFrame, first: int = 8) -> pd.DataFrame:
    """The training examples that stand behind most queries: id, label, and how many queries each side."""
    counts = pd.crosstab(top["id"], top["side"]).reindex(columns=[s for s, _ in SIDES], fill_value=0)
    counts["queries"] = counts.sum(axis=1)
    counts = counts.sort_values("queries", ascending=False, kind="stable").reset_index().head(first)
    if "label" in top:
        counts.insert(1, "label", counts["id"].map(top.drop_duplicates("id").set_index("id")["label"]))
    counts.columns.name = None
    return counts
