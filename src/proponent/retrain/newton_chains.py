"""Optima over many subsets, each from the best start there is: the subset before it, all training rows, or zero.

Subsets that each differ by one row from the one before, such as the prefixes of a permutation, are a chain: a subset's
optimum and inverse curvature, changed by that one row, start the next. Chains go on side by side, a step at a time.
Other subsets start at the optimum of all rows where they hold enough of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from proponent.retrain.newton_descent import Reached, inverse_curvatures, minimise, renewal_cost
from proponent.retrain.newton_problem import Family
from proponent.retrain.newton_stack import Stack

Array = np.ndarray[Any, np.dtype[Any]]

NEAR = 0.25
"""The share of the training weight from which a subset starts at the optimum of all rows."""

OWN = 30.0
"""The cost of an inverse curvature, in steps, up to which each subset may have its own from the beginning."""

SIDE_BY_SIDE = 512
"""The most subsets that are solved at once."""

ABREAST, SHORTEST = 128, 8
"""Chains that should go side by side, and the shortest into which longer ones are cut for that."""

NUMBERS = 2**23
"""Numbers that their curvatures, or their logits, may take."""


def optima(family: Family, counts: Array) -> tuple[Array, Array]:
    """The parameters (s, c, p) of each subset, and whether they are its optimum (s,).

    Args:
        family: the problems.
        counts: (s, n) how often each subset holds each training row.
    """
    theta, optimal = family.zeros(len(counts)), np.zeros(len(counts), dtype=bool)
    starts = _cut(chain_starts(counts), len(counts), _worth(family, counts[:1]))
    lengths = np.diff(np.append(starts, len(counts)))
    alone, chained = starts[lengths == 1], np.flatnonzero(lengths > 1)
    longest = chained[np.argsort(-lengths[chained], kind="stable")]
    for at in _parts(family, longest):
        for rows, reached in _along(family, counts, starts[at], lengths[at]):
            theta[rows], optimal[rows] = reached.theta, reached.optimal
    share = np.round(counts[alone] @ family.linear.weight / family.linear.weight.sum(), 1)
    for common in np.unique(share):
        for rows in _parts(family, alone[share == common]):
            reached = _apart(family, family.stack(counts[rows]), float(common))
            theta[rows], optimal[rows] = reached.theta, reached.optimal
    return theta, optimal


def chain_starts(counts: Array) -> Array:
    """Where chains begin: the rows that differ from the one before in more than one place.

    >>> chain_starts(np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 1, 0], [0, 1, 1]])).tolist()
    [0, 3]
    """
    differ = (counts[1:] != counts[:-1]).sum(axis=1)
    return np.flatnonzero(np.append(True, differ != 1))


def _worth(family: Family, counts: Array) -> int:
    """How long a chain must be to be worth its first optimum, which takes some new curvatures where others take some steps."""
    return SHORTEST + int(renewal_cost(family.stack(counts)))


def _cut(starts: Array, count: int, shortest: int) -> Array:
    """Chains cut into shorter ones where few are left to go side by side."""
    length = max(shortest, count // ABREAST)
    ends = np.append(starts[1:], count)
    return np.concatenate([np.arange(a, b, length) for a, b in zip(starts, ends, strict=True)])


def _parts(family: Family, items: Array) -> Iterator[Array]:
    """As many at once as memory allows."""
    rows, outputs = len(family.linear.labels), family.loss.outputs
    order = family.linear.design.x.shape[1] * (outputs if family.loss.coupled else 1)
    step = max(1, min(SIDE_BY_SIDE, NUMBERS // order**2, NUMBERS // (rows * outputs)))
    return (items[at : at + step] for at in range(0, len(items), step))


def _along(family: Family, counts: Array, starts: Array, lengths: Array) -> Iterator[tuple[Array, Reached]]:
    """The optima of the first subsets of all chains, the second ones, and so on; the longest chain comes first."""
    stack = family.stack(counts[starts])
    reached = _first(family, stack, counts[starts])
    yield starts, reached
    for step in range(1, int(lengths[0])):
        going = int((lengths > step).sum())
        before, rows = stack.weight[:going], starts[:going] + step
        stack = family.stack(counts[rows])
        changed = (counts[rows] != counts[rows - 1]).argmax(axis=1)
        by = stack.weight[np.arange(going), changed] - before[np.arange(going), changed]
        theta = np.where(reached.optimal[:going, None, None], reached.theta[:going], 0.0)
        if stack.absent is not None:
            theta[stack.absent] = 0.0
        inverse = stack.changed(reached.inverse[:going], theta, changed, by)
        if (lost := ~reached.optimal[:going]).any():
            inverse[lost] = inverse_curvatures(stack.take(lost), theta[lost])
        reached = minimise(stack, theta, inverse)
        yield rows, reached


def _first(family: Family, stack: Stack, counts: Array) -> Reached:
    """The optima of the first subsets of chains, each with an inverse curvature of its own."""
    theta = family.zeros(len(stack))
    near = counts @ family.linear.weight >= NEAR * family.linear.weight.sum()
    if near.any() and family.whole is not None:
        theta[near] = family.whole.theta
    if stack.absent is not None:
        theta[stack.absent] = 0.0
    return minimise(stack, theta)


def _apart(family: Family, stack: Stack, share: float) -> Reached:
    """The optima of subsets with about the same share of the training weight."""
    whole = family.whole if share >= NEAR else None
    inverse = whole.inverse(share) if whole else None
    if whole is None or inverse is None:
        return minimise(stack, family.zeros(len(stack)))
    # In units of 1/√λ_sp all subsets are penalised alike, which is where their curvatures are alike.
    unit = np.where(stack.penalty > 0, np.sqrt(whole.penalty / np.where(stack.penalty > 0, stack.penalty, 1.0)), 1.0)
    theta = whole.theta * unit[:, None]
    if stack.absent is not None:
        theta[stack.absent] = 0.0
    unit = np.tile(unit, stack.order // unit.shape[1])
    if renewal_cost(stack) <= OWN:
        return minimise(stack, theta, inverse * unit[:, :, None] * unit[:, None, :])
    reached = minimise(stack, theta, inverse, unit)
    if (far := ~reached.optimal).any():
        again = minimise(stack.take(far), theta[far])
        reached.theta[far], reached.short[far] = again.theta, again.short
    return reached
