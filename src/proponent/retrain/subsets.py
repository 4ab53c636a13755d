"""Which training examples each model is trained on: plans that draw subsets once the number of examples is known."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
Plan = Callable[[int], "Subsets"]
"""From the number of training examples to the subsets."""

MOST_ENUMERATED = 16


@dataclass(frozen=True, eq=False)
class Subsets:
    """Subsets of the training examples, each with the seed that its model is trained with.

    >>> drawn = halves(2, seed=0)(4)
    >>> drawn.included.sum(axis=1).tolist(), drawn.seeds.tolist()
    ([2, 2], [0, 1])

    Args:
        included: (m, n) uint8, how many times subset s holds example i: 0 or 1, more in a bootstrap.
        seeds: (m,) int64, what else determines the model: initialisation and order.
    """

    included: Array
    seeds: Array

    @classmethod
    def of(cls, included: Any, seeds: Any = None) -> Subsets:
        """Subsets from anything like a (m, n) array of counts; seed 0 by default.

        Raises:
            InputError: not two-dimensional, counts that are not whole numbers from 0 to 255, or not one seed per subset.
        """
        counts = np.asarray(included)
        if counts.ndim != 2 or not np.isin(counts.dtype.kind, list("bui")) or counts.min(initial=0) < 0:
            raise InputError(
                f"subsets of shape {counts.shape}, {counts.dtype}", "(m, n) counts or booleans", "pass one row a subset"
            )
        if counts.max(initial=0) > 255:
            raise InputError(f"an example {counts.max()} times in a subset", "at most 255 times", "weight it instead")
        seeds = np.zeros(len(counts), np.int64) if seeds is None else np.asarray(seeds, dtype=np.int64)
        if seeds.shape != (len(counts),):
            raise InputError(f"{seeds.size} seeds for {len(counts)} subsets", "one seed per subset", "pass all of them")
        return cls(np.ascontiguousarray(counts, dtype=np.uint8), seeds)

    def __len__(self) -> int:
        return len(self.included)

    def take(self, at: Any) -> Subsets:
        """Some of the subsets, in this order."""
        return Subsets(self.included[at], self.seeds[at])

    def keys(self) -> list[bytes]:
        """16 bytes that name (subset, seed), the same on any machine."""
        seeds = np.ascontiguousarray(self.seeds, dtype="<i8").view(np.uint8).reshape(-1, 8)
        named = memoryview(np.hstack([self.included, seeds]).tobytes())
        width = self.included.shape[1] + 8
        return [hashlib.blake2b(named[at : at + width], digest_size=16).digest() for at in range(0, len(named), width)]


def resolve(plan: Subsets | Plan | Any, n: int) -> Subsets:
    """The subsets that a plan, or an array of counts, means for n examples."""
    subsets = plan(n) if callable(plan) else plan if isinstance(plan, Subsets) else Subsets.of(plan)
    if subsets.included.shape[1] != n:
        raise InputError(
            f"subsets of {subsets.included.shape[1]} examples", f"{n}, the training examples", "draw them for this n"
        )
    return subsets


def halves(count: int, *, seed: int = 0, repeats: int = 1) -> Plan:
    """`count` random halves, each `repeats` times under different seeds: what the linear datamodeling score asks for."""
    return fractions(0.5, count, seed=seed, repeats=repeats)


def fractions(fraction: float, count: int, *, seed: int = 0, repeats: int = 1, antithetic: bool = False) -> Plan:
    """`count` random subsets of ⌊fraction · n + ½⌋ examples.

    >>> fractions(0.7, 3)(10).included.sum(axis=1).tolist()
    [7, 7, 7]

    Args:
        fraction: strictly between 0 and 1.
        count: subsets; subset number s depends on (seed, s) alone, so a longer plan begins with a shorter one.
        seed: of the draws; the models' seeds are 0, 1, 2, …
        repeats: seeds per subset; a subset's repeats are beside each other.
        antithetic: subsets 2k and 2k + 1 are drawn together: what the first leaves out is in the second (up to fraction ½
            they are disjoint).
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction={fraction}", "strictly between 0 and 1", "pass a fraction such as 0.7")

    def draw(n: int) -> Subsets:
        size = int(np.floor(fraction * n + 0.5))
        included = np.zeros((count, n), np.uint8)
        for s in range(count):
            order = np.random.default_rng([seed, s // 2 if antithetic else s]).permutation(n)
            if antithetic and s % 2:
                order = order[::-1]
            included[s, order[:size]] = 1
        return _repeated(included, repeats)

    return draw


def bernoulli(p: float, count: int, *, seed: int = 0, repeats: int = 1) -> Plan:
    """`count` subsets that hold each example with probability p, independently."""
    if not 0 < p < 1:
        raise InputError(f"p={p}", "strictly between 0 and 1", "pass a probability such as 0.5")

    def draw(n: int) -> Subsets:
        rows = [np.random.default_rng([seed, s]).random(n) < p for s in range(count)]
        return _repeated(np.array(rows, dtype=np.uint8).reshape(count, n), repeats)

    return draw


def bootstraps(count: int, *, seed: int = 0) -> Plan:
    """`count` bootstraps: n draws with replacement."""

    def draw(n: int) -> Subsets:
        rows = [np.bincount(np.random.default_rng([seed, s]).integers(n, size=n), minlength=n) for s in range(count)]
        return Subsets.of(np.array(rows).reshape(count, n), np.arange(count))

    return draw


def permutations(count: int, *, seed: int = 0, antithetic: bool = False) -> Plan:
    """All prefixes of `count` random orders, from the empty set to the full one: n + 1 subsets an order, under seed 0.

    Args:
        antithetic: every second order is the reverse of the one before.
    """

    def draw(n: int) -> Subsets:
        orders = []
        for s in range(count):
            order = np.random.default_rng([seed, s // 2 if antithetic else s]).permutation(n)
            orders.append(order[::-1] if antithetic and s % 2 else order)
        return Subsets.of(np.concatenate([prefixes(order) for order in orders] or [np.zeros((0, n), np.uint8)]))

    return draw


def prefixes(order: Array) -> Array:
    """(n + 1, n) the subsets that an order passes through."""
    n = len(order)
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    return np.asarray(place[None, :] < np.arange(n + 1)[:, None], dtype=np.uint8)


def full(*, repeats: int = 1) -> Plan:
    """All examples, under `repeats` seeds."""
    return lambda n: _repeated(np.ones((1, n), np.uint8), repeats)


def each_left_out(*, repeats: int = 1) -> Plan:
    """All examples, then all but the first, all but the second, …; the same seeds for each."""

    def draw(n: int) -> Subsets:
        return _repeated(np.vstack([np.ones(n, np.uint8), 1 - np.eye(n, dtype=np.uint8)]), repeats, common=True)

    return draw


def groups_left_out(groups: Sequence[Any] | Array, *, repeats: int = 1) -> Plan:
    """All examples, then all but each group, in the order of the groups' names; the same seeds for each."""
    member = np.asarray(groups)
    return without([np.flatnonzero(member == g) for g in np.unique(member)], repeats=repeats)


def without(removals: Iterable[Sequence[int] | Array], *, repeats: int = 1) -> Plan:
    """All examples, then all but each of these sets of positions; the same seeds for each."""
    removed = [np.asarray(r, dtype=np.int64) for r in removals]

    def draw(n: int) -> Subsets:
        included = np.ones((1 + len(removed), n), np.uint8)
        for s, rows in enumerate(removed):
            included[1 + s, rows] = 0
        return _repeated(included, repeats, common=True)

    return draw


def all_subsets() -> Plan:
    """All 2ⁿ subsets, for at most 16 examples; subset s holds example i where bit i of s is set."""

    def draw(n: int) -> Subsets:
        if n > MOST_ENUMERATED:
            raise InputError(f"{n} examples", f"at most {MOST_ENUMERATED} for all their subsets", "draw some of them")
        return Subsets.of(np.array(list(itertools.product((0, 1), repeat=n)), dtype=np.uint8).reshape(2**n, n)[:, ::-1])

    return draw


def _repeated(included: Array, repeats: int, *, common: bool = False) -> Subsets:
    """Each subset under `repeats` seeds: its own, or those that all subsets have in common."""
    if repeats < 1:
        raise InputError(f"repeats={repeats}", "at least one seed per subset", "pass repeats ≥ 1")
    count = len(included)
    seeds = np.tile(np.arange(repeats), count) if common else np.arange(count * repeats)
    return Subsets.of(np.repeat(included, repeats, axis=0), seeds)
