"""Differences of means over random subsets, ready for queries: what `Downsampling` and `Banzhaf` fit to."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.attribution import Attribution, Values
from proponent.errors import ProponentWarning
from proponent.methods.retraining import Measured, Retraining, each_query, mean_query
from proponent.methods.rounds import Drawn, Utility, draw
from proponent.retrain.reduce import Contrast
from proponent.retrain.stopping import Budget
from proponent.retrain.subsets import Subsets

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class InAndOut:
    """Subsets from a plan; what is measured with each player is set against what is measured without it.

    Args:
        subsets: of the players, all that will be drawn.
        repeats: rows beside each other that are one subset under several seeds, and count as one by their mean.
        paired: subsets 2k and 2k + 1 are drawn together.
        own: the columns of the measurements belong to the players: each is set against its own alone.
    """

    subsets: Subsets
    repeats: int
    paired: bool
    own: bool = False
    together: int = 1

    @property
    def cost(self) -> int:
        """One subset, or a pair, under every seed."""
        return self.repeats * (2 if self.paired else 1)

    def start(self, utility: Utility) -> Callable[[Contrast | None, range], Contrast]:
        """Draws have nothing in common."""
        return functools.partial(self._round, utility)

    def _round(self, utility: Utility, tally: Contrast | None, draws: range) -> Contrast:
        rows = slice(draws.start * self.cost, draws.stop * self.cost)
        drawn = self.subsets.take(rows)
        measured = mean_of_repeats(utility(drawn.included, drawn.seeds), self.repeats)
        if self.own:
            measured = measured[:, :, None]
        if tally is None:
            tally = Contrast.empty(drawn.included.shape[1], measured.shape[-1], paired=self.paired)
        return tally.with_rows(drawn.included[:: self.repeats], measured)


def mean_of_repeats(measured: Array, repeats: int) -> Array:
    """(m, c) the mean over the fits that did not fail of each subset; NaN where all did."""
    of_each = measured.reshape(-1, repeats, measured.shape[1])
    fitted = ~np.isnan(of_each).any(axis=2, keepdims=True)
    count = fitted.sum(axis=1)
    total = np.where(fitted, of_each, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True, eq=False)
class FittedContrast:
    """A difference of means over random subsets; every call trains, or reads the ledger.

    Args:
        name, unit: of the method and of its values.
        subsets: to train on, of players.
        confidence: of the intervals.
        settings: of the spec, for the record.
    """

    name: str
    unit: str
    subsets: Subsets
    repeats: int
    paired: bool
    confidence: float
    retraining: Retraining
    settings: Mapping[str, Any]

    def score(self, query: Any) -> Attribution:
        """Differences for each query, (query, train), with `stderr`, and `lower` and `upper` at the spec's confidence.

        The error is that of drawing these subsets (and seeds) rather than others. NaN for an example that was in all
        subsets or in none.

        Args:
            query: anything that `Examples.of` takes.

        Raises:
            ProponentError: every training failed.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, each_query)
        drawn, columns = self._drawn(queries, own=False)
        return Attribution.of(
            columns.pop("value").T,
            query=queries.query,
            train=self.retraining.players.axis,
            method=self.name,
            unit=self.unit,
            variables={name: column.T for name, column in columns.items()},
            attributes=self._facts(drawn, start),
        )

    def values(self, query: Any) -> Values:
        """Differences of the mean measurement of the queries, with its own `stderr`, `lower`, `upper`.

        Args:
            query: anything that `Examples.of` takes.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, mean_query)
        drawn, columns = self._drawn(queries, own=False)
        return self._values(columns, f"{self.name}, mean over queries", self._facts(drawn, start))

    def self_influence(self) -> Values:
        """What each example does to its own measurement: its memorization, where that is the chance of a right answer.

        Training examples are measured as queries, a round of models at a time: the (subset, train) table is not held.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(self.retraining.train, each_query)
        drawn, columns = self._drawn(queries, own=True)
        return self._values(columns, f"{self.name}, self-influence", self._facts(drawn, start))

    def _drawn(self, queries: Measured, own: bool) -> tuple[Drawn[Contrast], dict[str, Array]]:
        scheme = InAndOut(self.subsets, self.repeats, self.paired, own)
        drawn = draw(scheme, queries, Budget(len(self.subsets)), self.name, queries.at_once)
        queries.report(drawn, "the means are over the others")
        value = drawn.tally.value
        if (unknown := np.isnan(value[:, 0])).any():
            warnings.warn(
                f"{int(unknown.sum())} examples were in all subsets or in none: their value is NaN; raise the count",
                ProponentWarning,
                stacklevel=3,
            )
        lower, upper = drawn.tally.interval(self.confidence)
        return drawn, {"value": value, "stderr": drawn.tally.stderr, "lower": lower, "upper": upper}

    def _values(self, columns: Mapping[str, Array], method: str, facts: Mapping[str, Any]) -> Values:
        of_each = {name: column[:, 0] for name, column in columns.items()}
        return Values.of(
            of_each.pop("value"),
            train=self.retraining.players.axis,
            method=method,
            unit=self.unit,
            variables=of_each,
            attributes=facts,
        )

    def _facts(self, drawn: Drawn[Contrast], start: float) -> dict[str, Any]:
        return {
            "settings": dict(self.settings) | {"measurement": self.retraining.measurement},
            "trainings": drawn.trainings,
            "failed": drawn.failed,
            "seconds": round(time.perf_counter() - start, 3),
        }
