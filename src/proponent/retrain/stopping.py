"""When a sampling estimator has drawn enough: after so many trainings, at a standard error, or once the ranking is stable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.stats import rankdata

from proponent.errors import InputError
from proponent.retrain.moments import Halves

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class SoFar:
    """What a stop rule sees after a round.

    Args:
        trainings: asked for so far, whether the ledger had them or not: a resumed run stops where the first would have.
        cost: trainings of one more draw, at most.
        draws: done so far.
        tally: what the draws have come to: Halves, of samplers that draw values.
    """

    trainings: int
    cost: int
    draws: int
    tally: Any


class Stop(Protocol):
    """A stop rule: `rule | other` stops at the first of two, `rule & other` when both agree."""

    @property
    def most(self) -> float:
        """Trainings that may be asked for in all."""

    def done(self, so_far: SoFar) -> bool:
        """Whether to stop."""

    def __or__(self, other: Stop) -> Stop:
        """Stops as soon as one of them does."""

    def __and__(self, other: Stop) -> Stop:
        """Stops when both do."""


class _Combines:
    """`|` and `&` of stop rules."""

    def __or__(self, other: Stop) -> Stop:
        return Either(self, other)  # type: ignore[arg-type]

    def __and__(self, other: Stop) -> Stop:
        return Both(self, other)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Budget(_Combines):
    """Stop before more than this number of trainings.

    >>> (Budget(1000) | StandardError(0.01)).most
    1000

    Args:
        trainings: at most; draws are whole, so a rest smaller than one draw is left over.
    """

    trainings: int

    def __post_init__(self) -> None:
        if self.trainings < 1:
            raise InputError(f"Budget({self.trainings})", "at least one training", "pass a positive number")

    @property
    def most(self) -> float:
        """The budget."""
        return self.trainings

    def done(self, so_far: SoFar) -> bool:
        """Whether another draw does not fit."""
        return so_far.trainings + so_far.cost > self.trainings


@dataclass(frozen=True)
class StandardError(_Combines):
    """Stop when the values' standard errors are at most this.

    Args:
        target: in units of the values.
        share: of the values (over examples and queries) that must have reached it.
        least: draws before which the rule does not look: few draws may agree by chance.
    """

    target: float
    share: float = 1.0
    least: int = 20

    def __post_init__(self) -> None:
        if not (self.target > 0 and 0 < self.share <= 1):
            raise InputError(f"{self}", "target > 0 and a share in (0, 1]", "pass such numbers")

    @property
    def most(self) -> float:
        """No limit."""
        return np.inf

    def done(self, so_far: SoFar) -> bool:
        """Whether enough values have reached it."""
        if so_far.draws < self.least:
            return False
        return bool((so_far.tally.stderr <= self.target).mean() >= self.share)


@dataclass(frozen=True)
class RankStability(_Combines):
    """Stop when a second run of the same length would rank the examples alike.

    The rank correlation r of the values from every other draw with those from the rest is that of runs half as long;
    2r / (1 + r) is expected of whole ones (Spearman & Brown). The mean over queries is compared with the target.

    Args:
        correlation: the target, below 1.
        least: draws before which the rule does not look.
    """

    correlation: float = 0.95
    least: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.correlation < 1:
            raise InputError(f"correlation={self.correlation}", "strictly between 0 and 1", "pass one such as 0.95")

    @property
    def most(self) -> float:
        """No limit."""
        return np.inf

    def done(self, so_far: SoFar) -> bool:
        """Whether the ranking has become stable; never where all values are equal."""
        if so_far.draws < self.least:
            return False
        reached = rank_stability(so_far.tally)
        return bool(not np.isnan(reached) and reached >= self.correlation)


def rank_stability(halves: Halves) -> float:
    """The rank correlation expected between the values and those of another such run, in the mean over columns.

    NaN where there is nothing to rank.
    """
    drawn = ((halves.even.count > 0) & (halves.odd.count > 0))[:, 0]
    if drawn.sum() < 2:
        return float("nan")
    a, b = (rankdata(half.mean[drawn], axis=0) for half in (halves.even, halves.odd))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    spread = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    ranked = spread > 0
    if not ranked.any():
        return float("nan")
    r = float(np.mean((a * b).sum(axis=0)[ranked] / spread[ranked]))
    return 2 * r / (1 + r) if r > 0 else r


@dataclass(frozen=True)
class Either(_Combines):
    """Stops as soon as one of two rules does."""

    one: Stop
    other: Stop

    @property
    def most(self) -> float:
        """The smaller limit."""
        return min(self.one.most, self.other.most)

    def done(self, so_far: SoFar) -> bool:
        """Whether one is done."""
        return self.one.done(so_far) or self.other.done(so_far)


@dataclass(frozen=True)
class Both(_Combines):
    """Stops when two rules do."""

    one: Stop
    other: Stop

    @property
    def most(self) -> float:
        """The larger limit."""
        return max(self.one.most, self.other.most)

    def done(self, so_far: SoFar) -> bool:
        """Whether both are done."""
        return self.one.done(so_far) and self.other.done(so_far)
