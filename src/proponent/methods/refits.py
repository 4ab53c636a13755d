"""Leave-one-out by refitting: of any recipe, without bounds, with a standard error over training seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.attribution import Attribution, Values
from proponent.errors import ProponentError
from proponent.methods.retraining import Measured, Retraining, each_query, mean_query
from proponent.methods.rounds import Counted, Drawn
from proponent.progress import track
from proponent.retrain.moments import Moments

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class FittedRefits:
    """Leave-one-out by n refits, or n for each seed; made by `LeaveOneOut(steps="refit").fit`.

    Args:
        repeats: training seeds 0, 1, …, each with all rows and without each.
        settings: of the spec, for the record.
    """

    retraining: Retraining
    repeats: int
    settings: Mapping[str, Any]

    def score(self, query: Any, *, rows: Sequence[Any] | None = None) -> Attribution:
        """Scores by refitting without each row; NaN, with a warning, where all refits failed, never zero.

        With `repeats` the mean over seeds, and its `stderr`.

        Args:
            query: anything that `Examples.of` takes.
            rows: ids of the training rows to score; all of them by default.

        Raises:
            ProponentError: the model of all rows could not be trained.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, each_query)
        at, moments = self._left_out(queries, rows)
        return Attribution.of(
            _mean(moments).T,
            query=queries.query,
            train=self.retraining.train.take(at),
            method="LeaveOneOut, refits",
            variables={"stderr": moments.stderr.T} if self.repeats > 1 else {},
            attributes=self._facts(start),
        )

    def values(self, query: Any, *, rows: Sequence[Any] | None = None) -> Values:
        """What leaving out each row does to the mean measurement of the queries; with `repeats` also its `stderr`."""
        start, queries = time.perf_counter(), self.retraining.of_queries(query, mean_query)
        at, moments = self._left_out(queries, rows)
        return Values.of(
            _mean(moments)[:, 0],
            train=self.retraining.train.take(at),
            method="LeaveOneOut, refits, mean over queries",
            variables={"stderr": moments.stderr[:, 0]} if self.repeats > 1 else {},
            attributes=self._facts(start),
        )

    def _left_out(self, queries: Measured, rows: Sequence[Any] | None) -> tuple[Array, Moments]:
        """Positions of the rows, and moments of m(all) − m(all but the row) over the seeds."""
        n, seeds = len(self.retraining.train), np.arange(self.repeats)
        at = np.arange(n) if rows is None else self.retraining.train.positions(list(rows))
        counted = Counted(queries)
        everything = counted(np.ones((self.repeats, n), np.uint8), seeds)
        if np.isnan(everything).any():
            raise ProponentError(
                f"a failed training on all examples: {queries.errors[0]}", "a model to compare with", "fit it alone"
            )
        blocks = track(self._blocks(counted, at, max(1, queries.at_once // self.repeats)), "leave-one-out")
        without = np.concatenate([*blocks]) if len(at) else np.empty((0, *everything.shape))
        moments = Moments.empty(len(at), everything.shape[1])
        for seed in seeds:
            moments = moments.merged(Moments.of_draw(everything[seed] - without[:, seed]))
        queries.report(
            Drawn(None, self.repeats, counted.trainings, counted.failed), "their rows' scores are over the others"
        )
        return at, moments

    def _blocks(self, utility: Callable[[Array, Array], Array], at: Array, size: int) -> Iterator[Array]:
        """(rows, repeats, c) measurements without each row."""
        n = len(self.retraining.train)
        for first in range(0, len(at), size):
            rows = at[first : first + size]
            included = np.ones((len(rows), n), np.uint8)
            included[np.arange(len(rows)), rows] = 0
            seeds = np.tile(np.arange(self.repeats), len(rows))
            measured = utility(np.repeat(included, self.repeats, axis=0), seeds)
            yield measured.reshape(len(rows), self.repeats, -1)

    def _facts(self, start: float) -> dict[str, Any]:
        return {
            "settings": dict(self.settings) | {"measurement": self.retraining.measurement},
            "seconds": round(time.perf_counter() - start, 3),
        }


def _mean(moments: Moments) -> Array:
    return np.where(moments.count > 0, moments.mean, np.nan)
