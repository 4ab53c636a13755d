"""Samplers of semivalues: along random orders, by adding to and taking from random coalitions, or all coalitions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.errors import InputError, did_you_mean
from proponent.methods.rounds import Scheme, Utility
from proponent.retrain.moments import Halves
from proponent.retrain.reduce import marginals, semivalues
from proponent.retrain.subsets import all_subsets

Array = np.ndarray[Any, np.dtype[Any]]
Orders = Callable[[np.random.Generator, int, int], Array]
"""Random numbers, the number n of players and that of strata -> (k, n) orders that are drawn together."""

MOST_EXACT = 12
STEP = 8
"""Places that truncated walks go before they look whether to stop."""
PATIENCE = 5
"""Places in a row that truncated walks must be close to the end's utility."""
TOGETHER = 4
"""Truncated draws that go side by side, so that a step is work for many."""


def _single(rng: np.random.Generator, n: int, strata: int) -> Array:
    return rng.permutation(n)[None]


def _reversed_too(rng: np.random.Generator, n: int, strata: int) -> Array:
    order = rng.permutation(n)
    return np.stack([order, order[::-1]])


def _rotated(rng: np.random.Generator, n: int, strata: int) -> Array:
    """Rotations by n/strata: the places of each player are spread evenly over the order."""
    order, k = rng.permutation(n), min(strata, n)
    return np.stack([np.roll(order, -(r * n) // k) for r in range(k)])


def _several(rng: np.random.Generator, n: int, strata: int) -> Array:
    return np.stack([rng.permutation(n) for _ in range(strata)])


ORDERS: dict[str, Orders] = {
    "permutation": _single,
    "antithetic": _reversed_too,
    "stratified": _rotated,
    "truncated": _several,
}
SAMPLERS = (*ORDERS, "owen", "exact")


@dataclass(frozen=True)
class Semivalue:
    """A semivalue, in the two forms that samplers need.

    Args:
        sizes: players -> (n,) probabilities of the size of the coalition that a player joins.
        rate: the same as a mixture: at rate q every other player is in the coalition with probability q, independently, and
            q = rate(u) for u uniform in (0, 1).
    """

    sizes: Callable[[int], Array]
    rate: Callable[[float], float]


@dataclass(frozen=True)
class Sampling:
    """How a semivalue is sampled: what `Shapley` and its kin have in common.

    Args:
        sampler: one of SAMPLERS.
        seed: of the draws.
        seeds: training seeds that the draws take turns with.
        strata: of "stratified" and "owen".
        tolerance: of "truncated".
    """

    sampler: str
    seed: int
    seeds: int
    strata: int
    tolerance: float

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise InputError(
                f"sampler={self.sampler!r}", f"one of {SAMPLERS}", did_you_mean(str(self.sampler), SAMPLERS)
            )
        if self.seeds < 1 or self.strata < 1 or not self.tolerance >= 0:
            raise InputError(
                f"seeds={self.seeds}, strata={self.strata}, tolerance={self.tolerance}",
                "at least one seed and one stratum, and a tolerance ≥ 0",
                "pass such numbers",
            )

    def exact(self, n: int) -> bool:
        """Whether all coalitions are enumerated: also of a single player, about whom there is nothing to draw."""
        return self.sampler == "exact" or n == 1

    def scheme(self, semivalue: Semivalue, n: int) -> Scheme[Halves]:
        """The draws of n players.

        Raises:
            InputError: too many players for all their coalitions.
        """
        sizes = semivalue.sizes(n)
        if not self.exact(n):
            if self.sampler == "owen":
                return AddAndTake(n, semivalue.rate, self.strata, self.seed, self.seeds)
            tolerance = self.tolerance if self.sampler == "truncated" else None
            return Walks(sizes, ORDERS[self.sampler], self.strata, tolerance, self.seed, self.seeds)
        if n > MOST_EXACT:
            raise InputError(
                f"{n} players",
                f"at most {MOST_EXACT} for sampler='exact'",
                "value groups of them, or draw permutations",
            )
        return AllCoalitions(sizes, self.seeds)


@dataclass(frozen=True, eq=False)
class Walks:
    """Along random orders, from the empty set to all players; what each adds where it arrives is a draw.

    Args:
        sizes: (n,) of the semivalue.
        orders: how many orders a draw has, and which.
        tolerance: stop a draw's walks when |U − U(all)|, in their mean, is at most this share of |U(all) − U(∅)|; the
            players that are left share the rest alike. None: never.
    """

    sizes: Array
    orders: Orders
    strata: int
    tolerance: float | None
    seed: int
    seeds: int

    @functools.cached_property
    def width(self) -> int:
        """Orders of a draw."""
        return len(self._orders(0))

    @property
    def cost(self) -> int:
        """The ends are trained once, not in every walk."""
        return self.width * (len(self.sizes) - 1)

    @property
    def together(self) -> int:
        """Truncated walks go side by side."""
        return 1 if self.tolerance is None else TOGETHER

    def start(self, utility: Utility) -> Callable[[Halves | None, range], Halves]:
        """Train the ends: nobody and everybody, under every training seed."""
        n = len(self.sizes)
        subsets = np.repeat(np.array([[0] * n, [1] * n], dtype=np.uint8), self.seeds, axis=0)
        ends = utility(subsets, np.tile(np.arange(self.seeds), 2)).reshape(2, self.seeds, -1)
        return functools.partial(self._round, utility, ends)

    def _orders(self, draw: int) -> Array:
        return self.orders(np.random.default_rng([self.seed, draw]), len(self.sizes), self.strata)

    def _round(self, utility: Utility, ends: Array, tally: Halves | None, draws: range) -> Halves:
        n, columns = len(self.sizes), ends.shape[2]
        orders = np.stack([self._orders(t) for t in draws])
        seeds = np.array(draws) % self.seeds
        walked = self._walk(utility, orders, seeds, ends)
        tally = Halves.empty(n, columns) if tally is None else tally
        for t, own, u in zip(draws, orders, walked, strict=True):
            added = [marginals(order, along, self.sizes) for order, along in zip(own, u, strict=True)]
            tally = tally.with_draw(t, np.mean(added, axis=0))
        return tally

    def _walk(self, utility: Utility, orders: Array, seeds: Array, ends: Array) -> Array:
        """(draws, width, n + 1, c) the utilities along the orders."""
        k, width, n = orders.shape
        place = np.argsort(orders, axis=2)
        u = np.empty((k, width, n + 1, ends.shape[2]))
        u[:, :, 0], u[:, :, n] = ends[:, seeds, None]
        walking, close = np.arange(k), np.zeros(k, np.int64)
        step = n if self.tolerance is None else STEP
        for first in range(1, n, step):
            reached = np.arange(first, min(first + step, n))
            included = place[walking, :, None, :] < reached[:, None]
            measured = utility(included.reshape(-1, n), np.repeat(seeds[walking], width * len(reached)))
            u[walking, :, first : first + len(reached)] = measured.reshape(len(walking), width, len(reached), -1)
            if self.tolerance is not None:
                walking = self._still_walking(u, walking, close, reached)
            if not len(walking):
                break
        return u

    def _still_walking(self, u: Array, walking: Array, close: Array, reached: Array) -> Array:
        """The draws that go on; the utilities of the others run straight from where they stopped to the end.

        A draw stops at the same place whatever the step: what was trained beyond it is not looked at.
        """
        n = u.shape[2] - 1
        room = float(self.tolerance or 0.0) * np.abs(u[:, :, n] - u[:, :, 0]).mean(axis=(1, 2))
        for j in reached:
            near = np.abs(u[walking, :, j] - u[walking, :, n]).mean(axis=(1, 2)) <= room[walking]
            close[walking] = np.where(near, close[walking] + 1, 0)
            stopped = walking[close[walking] >= PATIENCE]
            share = ((np.arange(j, n + 1) - j) / (n - j))[:, None]
            here, end = u[stopped, :, j, None], u[stopped, :, n, None]
            u[stopped, :, j:] = here + share * (end - here)
            walking = walking[close[walking] < PATIENCE]
        return walking


@dataclass(frozen=True, eq=False)
class AddAndTake:
    """Owen's form: of a random coalition, what each player adds to it, or would take from it by leaving.

    One draw is a coalition in each of `strata` strata of u, each player in it with probability rate(u).
    """

    n: int
    rate: Callable[[float], float]
    strata: int
    seed: int
    seeds: int
    together: int = 1

    @property
    def cost(self) -> int:
        """The coalitions, and each with one player changed."""
        return self.strata * (self.n + 1)

    def start(self, utility: Utility) -> Callable[[Halves | None, range], Halves]:
        """Draws have nothing in common."""
        return functools.partial(self._round, utility)

    def _round(self, utility: Utility, tally: Halves | None, draws: range) -> Halves:
        held = np.concatenate([self._coalitions(t) for t in draws])
        changed = np.concatenate([np.zeros((1, self.n), bool), np.eye(self.n, dtype=bool)])
        included = (held[:, None, :] ^ changed[None]).reshape(-1, self.n)
        seeds = np.repeat(np.array(draws) % self.seeds, self.cost)
        measured = utility(included, seeds).reshape(len(draws), self.strata, self.n + 1, -1)
        leaves = held.reshape(len(draws), self.strata, self.n, 1)
        gained = np.where(leaves, -1.0, 1.0) * (measured[:, :, 1:] - measured[:, :, :1])
        tally = Halves.empty(self.n, measured.shape[3]) if tally is None else tally
        for t, draw in zip(draws, gained.mean(axis=1), strict=True):
            tally = tally.with_draw(t, draw)
        return tally

    def _coalitions(self, t: int) -> Array:
        rng = np.random.default_rng([self.seed, t])
        u = (np.arange(self.strata) + rng.random(self.strata)) / self.strata
        rates = np.array([self.rate(float(x)) for x in u])
        return np.asarray(rng.random((self.strata, self.n)) < rates[:, None])


@dataclass(frozen=True, eq=False)
class AllCoalitions:
    """Every subset of the players, under every training seed: one draw a seed, without sampling error."""

    sizes: Array
    seeds: int
    together: int = 1

    @property
    def cost(self) -> int:
        """All 2ⁿ of them."""
        return int(2 ** len(self.sizes))

    def start(self, utility: Utility) -> Callable[[Halves | None, range], Halves]:
        """Draws have nothing in common."""
        return functools.partial(self._round, utility)

    def _round(self, utility: Utility, tally: Halves | None, draws: range) -> Halves:
        included = all_subsets()(len(self.sizes)).included
        for t in draws:
            measured = utility(included, np.full(len(included), t))
            tally = Halves.empty(len(self.sizes), measured.shape[1]) if tally is None else tally
            tally = tally.with_draw(t, semivalues(measured, self.sizes))
        assert tally is not None
        return tally
