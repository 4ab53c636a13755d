"""The loop of every sampling estimator: draw subsets, train on them, add up, ask whether that is enough."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from proponent.errors import InputError, ProponentError
from proponent.progress import track
from proponent.retrain.stopping import SoFar, Stop

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")
Utility = Callable[[Array, Array], Array]
"""(m, players) subsets and (m,) training seeds -> (m, c) measurements, NaN where the fit failed."""

AT_ONCE = 1024
"""Trainings of a round: enough to keep batches and workers busy, few enough to hold."""


class Scheme(Protocol[T]):
    """How an estimator draws, and what it makes of the measurements.

    Draw number t depends on (seed, t) alone, and draws are added up in order: neither the size of a round nor the number of
    workers changes a bit of what some draws come to.
    """

    @property
    def cost(self) -> int:
        """Trainings of one draw, at most."""

    @property
    def together(self) -> int:
        """Draws that are best made at once."""

    def start(self, utility: Utility) -> Callable[[T | None, range], T]:
        """Train what all draws have in common; a function that adds these draws to what there is, None at first."""


@dataclass(frozen=True)
class Drawn(Generic[T]):
    """What a run came to.

    Args:
        tally: the estimate.
        draws: made.
        trainings: asked for, whether the ledger had them or not.
        failed: of these, fits that failed.
    """

    tally: T
    draws: int
    trainings: int
    failed: int


@dataclass
class Counted:
    """A utility that counts what it is asked."""

    utility: Utility
    trainings: int = 0
    failed: int = 0

    def __call__(self, included: Array, seeds: Array) -> Array:
        measured = self.utility(included, seeds)
        self.trainings += len(measured)
        self.failed += int(np.isnan(measured[:, :1]).sum())
        return measured


def draw(scheme: Scheme[T], utility: Utility, stop: Stop, what: str, at_once: int = AT_ONCE) -> Drawn[T]:
    """Round after round until the stop rule is content.

    Args:
        scheme: how to draw.
        utility: what a subset is worth.
        stop: asked after each round.
        what: names the work on the progress bar.
        at_once: trainings of a round, about.

    Raises:
        InputError: the budget is smaller than one draw.
        ProponentError: every training failed.
    """
    size = max(scheme.together, at_once // scheme.cost)
    rounds = math.ceil(stop.most / (size * scheme.cost)) if math.isfinite(stop.most) else None
    progress = _rounds(scheme, Counted(utility), stop, size)
    last = deque(progress if rounds == 1 else track(progress, what, rounds), maxlen=1).pop()  # it holds the sums of all
    if last.failed == last.trainings:
        raise ProponentError(
            f"{last.failed:,} trainings, all of which failed",
            "models that can be trained",
            "try the recipe's fit on the data alone",
        )
    return last


def _rounds(scheme: Scheme[T], counted: Counted, stop: Stop, size: int) -> Iterator[Drawn[T]]:
    add = scheme.start(counted)
    tally: T | None = None
    done = 0
    while True:
        room = stop.most - counted.trainings
        if room < scheme.cost and tally is None:
            raise InputError(
                f"a budget of {stop.most:,} trainings",
                f"at least {counted.trainings + scheme.cost:,}, of which {scheme.cost:,} for one draw",
                "raise the budget, value groups of examples, or choose another sampler",
            )
        count = int(min(size, room // scheme.cost))
        tally = add(tally, range(done, done + count))
        done += count
        yield Drawn(tally, done, counted.trainings, counted.failed)
        if stop.done(SoFar(counted.trainings, scheme.cost, done, tally)):
            return
