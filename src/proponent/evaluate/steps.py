"""Tail-patch: does one more training step on a query's proponents raise its measurement?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from proponent.attribution import Attribution
from proponent.errors import InputError
from proponent.evaluate.resampling import check_settings, interval, of_means, span
from proponent.evaluate.truth import known
from proponent.progress import track

Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[Array], Array]
"""From positions of training examples to (q,) changes of all queries' measurements by one training step on them."""


@dataclass(frozen=True, eq=False)
class TailPatch:
    """What one training step on a query's proponents, one at a time, does to its measurement.

    Args:
        change: the mean over queries and their k strongest proponents.
        random: the mean over queries and random examples.
        gain, gain_lower, gain_upper: change − random, and its interval over queries at `level`.
        queries: (q,) ids.
        changes, randoms: (q,) the means per query.
        k: proponents of each query.
        steps: training steps taken: an example that several queries share is stepped on once.
        level: of the interval.
    """

    change: float
    random: float
    gain: float
    gain_lower: float
    gain_upper: float
    queries: Array = field(repr=False)
    changes: Array = field(repr=False)
    randoms: Array = field(repr=False)
    k: int
    steps: int
    level: float

    def summary(self) -> dict[str, float]:
        """Named numbers for a table of methods."""
        return {"tail_patch": self.gain, "tail_patch_lower": self.gain_lower, "tail_patch_upper": self.gain_upper}

    def to_pandas(self) -> pd.DataFrame:
        """A row per query: query, change, random."""
        return pd.DataFrame({"query": self.queries, "change": self.changes, "random": self.randoms})

    def __repr__(self) -> str:
        digits = int(max(3, 2 - np.floor(np.log10(abs(self.gain))))) if self.gain else 3
        gain = span(self.gain, self.gain_lower, self.gain_upper, digits)
        return (
            f"Tail-patch: a step on one of {self.k} proponents changes the measurement by {self.change:.{digits}f}, on a "
            f"random example by {self.random:.{digits}f}: gain {gain} ({len(self.queries):,} queries, {self.steps:,} steps)"
        )


def tail_patch(
    scores: Attribution,
    step: Step,
    *,
    k: int = 10,
    random: int = 50,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> TailPatch:
    """The change of each query's measurement by one training step on each of its k strongest proponents.

    tail patch = mean over q and its top k of ( m_q(one step on i) − m_q )  −  the same over random examples

    >>> effects = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    >>> scores = Attribution.of(effects, query=["a", "b"], train=range(3), method="planted")
    >>> tail_patch(scores, lambda rows: 0.1 * effects[:, rows].sum(axis=1), k=1).changes.round(3).tolist()
    [0.2, 0.3]

    Args:
        scores: whose proponents are tried.
        step: trains one step from the same state on the given positions, and returns the change of all queries'
            measurements, in the scores' order; `training_step(task, train, query)` makes one.
        k: proponents of each query.
        random: random examples that all queries are compared with; all of them where there are fewer.
        bootstrap: resamples of queries for the interval; 0 for none.
        seed: of the random examples and the resamples.
        level: of the interval.

    Raises:
        InputError: k < 1, or a step that does not return one change per query.

    Source: Chang et al., Scalable Influence and Fact Tracing for Large Language Model Pretraining, ICLR 2025.
    """
    check_settings(bootstrap, level)
    score = known(np.asarray(scores.dataset["score"], dtype=np.float64))
    q, n = score.shape
    if k < 1 or random < 1:
        raise InputError(f"k={k}, random={random}", "at least one example each", "use the defaults 10 and 50")
    k = min(k, n)
    top = np.argsort(-score, axis=1, kind="stable")[:, :k]
    compared = np.random.default_rng(seed).choice(n, size=min(random, n), replace=False)
    rows = np.union1d(top, compared)
    change = np.array([_checked(step(np.array([i])), q) for i in track(rows, "training steps", len(rows))])
    changes = change[np.searchsorted(rows, top), np.arange(q)[:, None]].mean(axis=1)
    randoms = change[np.searchsorted(rows, compared)].mean(axis=0)
    lower, upper = interval(of_means(changes - randoms, count=bootstrap, seed=seed), level)
    return TailPatch(
        change=float(changes.mean()),
        random=float(randoms.mean()),
        gain=float((changes - randoms).mean()),
        gain_lower=lower,
        gain_upper=upper,
        queries=scores.dataset["query"].to_numpy(),
        changes=changes,
        randoms=randoms,
        k=k,
        steps=len(rows),
        level=level,
    )


def _checked(change: Any, queries: int) -> Array:
    changed = np.asarray(change, dtype=np.float64)
    if changed.shape != (queries,):
        raise InputError(
            f"changes of shape {changed.shape} from the step", f"({queries},), one per query", "measure all queries"
        )
    return changed
