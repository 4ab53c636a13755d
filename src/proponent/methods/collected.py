"""All subsets of a plan with what was measured of each: for estimators that look at them together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.errors import ProponentError
from proponent.methods.contrasts import mean_of_repeats
from proponent.methods.rounds import Drawn, Utility
from proponent.retrain.subsets import Subsets

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Collected:
    """Subsets whose fits did not fail.

    Args:
        included: blocks (m, players).
        measured: blocks (m, c).
    """

    included: tuple[Array, ...] = ()
    measured: tuple[Array, ...] = ()

    def with_rows(self, included: Array, measured: Array) -> Collected:
        """More of them."""
        fitted = ~np.isnan(measured).any(axis=1)
        return Collected((*self.included, included[fitted]), (*self.measured, measured[fitted]))

    def whole(self) -> tuple[Array, Array]:
        """(m, players) and (m, c)."""
        return np.concatenate(self.included), np.concatenate(self.measured)


@dataclass(frozen=True, eq=False)
class Collect:
    """Subsets in the plan's order.

    Args:
        subsets: of the players.
        repeats: rows beside each other that are one subset under several seeds, and count as one by their mean.
    """

    subsets: Subsets
    repeats: int = 1
    together: int = 1

    @property
    def cost(self) -> int:
        """One subset under every seed."""
        return self.repeats

    def start(self, utility: Utility) -> Callable[[Collected | None, range], Collected]:
        """Draws have nothing in common."""
        return functools.partial(self._round, utility)

    def _round(self, utility: Utility, tally: Collected | None, draws: range) -> Collected:
        drawn = self.subsets.take(slice(draws.start * self.repeats, draws.stop * self.repeats))
        measured = mean_of_repeats(utility(drawn.included, drawn.seeds), self.repeats)
        return (tally or Collected()).with_rows(drawn.included[:: self.repeats], measured)


def required(drawn: Drawn[Collected], least: int) -> tuple[Array, Array]:
    """The subsets, of which there must be so many.

    Raises:
        ProponentError: too many fits failed.
    """
    included, measured = drawn.tally.whole()
    if len(included) < least:
        raise ProponentError(
            f"{len(included)} subsets whose fit succeeded, of {drawn.trainings}",
            f"at least {least}",
            "draw more subsets",
        )
    return included, measured
