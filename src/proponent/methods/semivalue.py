"""A semivalue by retraining, ready for queries: what `Shapley`, `BetaShapley` and exact `Banzhaf` fit to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.attribution import Attribution, Values
from proponent.methods.retraining import Retraining, each_query, mean_query
from proponent.methods.rounds import Drawn, draw
from proponent.methods.samplers import Sampling, Semivalue
from proponent.retrain.moments import Halves
from proponent.retrain.stopping import Budget, Stop, rank_stability

Array = np.ndarray[Any, np.dtype[Any]]

CONSEQUENCE = (
    "what an example adds to or from such a subset is not known and does not count, so that values need not add up to "
    "U(all) − U(∅)"
)


@dataclass(frozen=True, eq=False)
class FittedSemivalue:
    """A semivalue of a recipe's training examples; every call of `score` or `values` trains, or reads the ledger.

    Args:
        name: of the method.
        settings: of its spec, for the record.
        stop: when to stop drawing.
    """

    name: str
    semivalue: Semivalue
    sampling: Sampling
    stop: Stop
    retraining: Retraining
    settings: Mapping[str, Any]

    def score(self, query: Any) -> Attribution:
        """Values in each query's own game, U_q(S) = the query's measurement by the model trained on S, (query, train).

        `stderr` is the standard error of the mean over draws: 0 where all coalitions were enumerated. Values share their
        draws, so that errors of two examples, or of two queries, are dependent.

        Args:
            query: anything that `Examples.of` takes.

        Raises:
            InputError: the budget does not reach one draw.
            ProponentError: every training failed.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, each_query)
        drawn, value, variables = self._drawn(queries)
        return Attribution.of(
            value.T,
            query=queries.query,
            train=self.retraining.players.axis,
            method=self.name,
            unit=self.unit,
            variables={"stderr": variables["stderr"].T, "count": ("train", variables["count"][:, 0])},
            attributes=self._facts(drawn, start),
        )

    def values(self, query: Any) -> Values:
        """Values in the game U(S) = the mean measurement of the queries; the (query, train) matrix is never held.

        `stderr` is found from the draws of U itself; `count` are the draws that a value is the mean of.

        Args:
            query: anything that `Examples.of` takes.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, mean_query)
        drawn, value, variables = self._drawn(queries)
        return Values.of(
            value[:, 0],
            train=self.retraining.players.axis,
            method=f"{self.name}, mean over queries",
            unit=self.unit,
            variables={name: column[:, 0] for name, column in variables.items()},
            attributes=self._facts(drawn, start) | {"queries": len(queries.query)},
        )

    @property
    def unit(self) -> str:
        """What a value is."""
        return f"{self.name} value: a weighted mean over subsets S of measurement(S with the example) - measurement(S)"

    def _drawn(self, queries: Any) -> tuple[Drawn[Halves], Array, dict[str, Array]]:
        scheme = self.sampling.scheme(self.semivalue, self.retraining.players.count)
        exact = self.sampling.exact(self.retraining.players.count)
        stop: Stop = Budget(scheme.cost * self.sampling.seeds) if exact else self.stop
        drawn = draw(scheme, queries, stop, self.name, queries.at_once)
        queries.report(drawn, CONSEQUENCE)
        whole = drawn.tally.whole
        stderr = np.zeros_like(whole.mean) if exact else whole.stderr
        known = whole.count > 0
        variables = {"stderr": np.where(known, stderr, np.nan), "count": whole.count}
        return drawn, np.where(known, whole.mean, np.nan), variables

    def _facts(self, drawn: Drawn[Halves], start: float) -> dict[str, Any]:
        stability = rank_stability(drawn.tally)
        return {
            "settings": dict(self.settings) | {"measurement": self.retraining.measurement},
            "draws": drawn.draws,
            "trainings": drawn.trainings,
            "failed": drawn.failed,
            "rank_stability": stability,
            "seconds": round(time.perf_counter() - start, 3),
        }


def settings_of(fields: Mapping[str, Any], players: int) -> dict[str, Any]:
    """A spec's fields as its result records them: groups by their number, stop rules as they are written."""
    groups = {} if fields.get("groups") is None else {"groups": players}
    return (
        {name: value for name, value in fields.items() if name not in ("stop", "groups")}
        | groups
        | ({"stop": repr(fields["stop"])} if "stop" in fields else {})
    )


def constant(p: float) -> Callable[[float], float]:
    """The same rate for every u."""
    return lambda u: p
