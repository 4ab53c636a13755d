"""What is judged and what it is judged by, on common axes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from proponent.attribution import CHANGE, Attribution
from proponent.errors import InputError, ProponentWarning
from proponent.evaluate.ceiling import group_means
from proponent.retrain.ledger import Ledger

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 2**27
"""Bytes of subsets held as floating-point numbers at once."""


@dataclass(frozen=True, eq=False)
class Truth:
    """A ledger's models by subset, without those that failed.

    Args:
        train, query: ids.
        included: (s, n) how many times each different subset holds each example.
        means: (s, q) measurements averaged over the seeds of a subset.
        repeats: (s,) how many seeds.
        measured, which: (m, q) single measurements, and the subset of each.
        failed: how many models failed.
    """

    train: Array
    query: Array
    included: Array
    means: Array
    repeats: Array
    measured: Array
    which: Array
    failed: int

    @classmethod
    def of(cls, ledger: Ledger) -> Truth:
        """Models grouped by subset.

        Raises:
            InputError: every model failed.
        """
        bad = ledger.failed | np.isnan(ledger.measured).all(axis=1)
        if bad.all():
            raise InputError(
                f"a ledger of {len(bad)} models, all failed", "models that trained", "look at ledger.errors"
            )
        kept = ledger.select(np.flatnonzero(~bad))
        included, which = kept.by_subset()
        measured = kept.measured
        means, repeats = group_means(measured, which)
        train, query = (ledger.dataset[axis].to_numpy() for axis in ("train", "query"))
        return cls(train, query, included, means, repeats, measured, which, int(bad.sum()))

    def sums(self, score: Array) -> Array:
        """(q, s) Σ_{i in S} score[q, i], an example that is in S twice counted twice."""
        total = np.empty((len(score), len(self.included)))
        for at in _blocks(self.included.shape):
            total[:, at] = score @ self.included[at].T.astype(np.float64)
        return total


def aligned(scores: Attribution, train: Array, query: Array) -> tuple[Array, Array]:
    """(q, n) scores with their training examples in the order of `train`, and where their queries stand in `query`.

    Raises:
        InputError: other training examples, or queries that were not measured.
    """
    given = pd.Index(scores.dataset["train"].to_numpy())
    columns = given.get_indexer(pd.Index(train))
    if len(given) != len(train) or (columns < 0).any():
        raise InputError(
            f"scores of {len(given):,} training examples ({_some(given)})",
            f"scores of the {len(train):,} that were retrained on ({_some(train)})",
            "score the examples of the ledger, under the same ids",
        )
    return known(np.asarray(scores.dataset["score"], dtype=np.float64)[:, columns]), queries_in(scores, query)


def queries_in(scores: Attribution, query: Array) -> Array:
    """Where the scores' queries stand among those measured."""
    asked = scores.dataset["query"].to_numpy()
    at = pd.Index(query).get_indexer(pd.Index(asked))
    if (at < 0).any():
        raise InputError(
            f"scores of queries that were not measured ({_some(asked[at < 0])})",
            f"queries of the truth ({_some(query)})",
            "measure the same queries, under the same ids",
        )
    return np.asarray(at)


def known(score: Array) -> Array:
    """Scores with 0 for what a method does not say, which is said once."""
    missing = ~np.isfinite(score)
    if missing.any():
        warnings.warn(f"{missing.sum():,} scores that are not finite count as 0", ProponentWarning, stacklevel=3)
    return np.where(missing, 0.0, score)


def predicts_change(scores: Attribution) -> bool:
    """Whether a score is a predicted change of the measurement, so that its size means something."""
    return scores.unit == CHANGE


def require_varying(varies: Array, what: str) -> None:
    """Raises InputError where there is no query whose truth varies."""
    if not varies.any():
        raise InputError(
            f"measurements that are the same for all {what}, or not finite, for every query",
            f"measurements that vary among {what}",
            "measure something finer, such as 'margin', or remove more",
        )


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    size = max(1, BLOCK // (8 * max(1, shape[1])))
    return (slice(at, at + size) for at in range(0, shape[0], size))


def _some(ids: Any) -> str:
    return ", ".join(repr(i) for i in list(ids[:3])) + (", …" if len(ids) > 3 else "")
