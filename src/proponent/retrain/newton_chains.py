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
    shares = family.shares(counts[alone])
    for share in np.unique(shares):
        for rows in _parts(family, alone[shares == share]):
            reached = _apart(family, family.stack(counts[rows]), family.typical(share))
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


def _first(family: Family, stack: Stack, shares: Array) -> Reached:
    """The optima of the first subsets of chains, each with an inverse curvature of its own."""
    theta, inverse = family.zeros(len(stack)), np.empty((len(stack), stack.order, stack.order))
    for share in np.unique(shares):
        at, typical = shares == share, family.typical(share)
        if typical is None:
            inverse[at] = inverse_curvatures(stack.take(at), theta[at])
        else:
            theta[at], inverse[at] = _started(stack.take(at), typical)
    return minimise(stack, theta, inverse)


def _started(stack: Stack, typical: Typical) -> tuple[Array, Array]:
    """Parameters (s, c, p) and inverse curvatures (s, k, k) to start with."""
    unit = typical.unit(stack.penalty)
    theta = typical.theta * unit[:, None]
    if stack.absent is not None:
        theta[stack.absent] = 0.0
    unit = np.tile(unit, stack.order // unit.shape[1])
    return theta, typical.inverse * unit[:, :, None] * unit[:, None, :]


def _apart(stack: Stack, typical: Typical | None, zeros: Array) -> Reached:
    """The optima of subsets with about the same share of the training weight."""
    if typical is None:
        return minimise(stack, zeros)
    if renewal_cost(stack) <= OWN:
        return minimise(stack, *_started(stack, typical))
    unit = typical.unit(stack.penalty)
    theta = np.where(zeros if stack.absent is None else stack.absent[:, :, None], 0.0, typical.theta * unit[:, None])
    reached = minimise(stack, theta, typical.inverse, np.tile(unit, stack.order // unit.shape[1]))
    if (far := ~reached.optimal).any():
        again = minimise(stack.take(far), theta[far])
        reached.theta[far], reached.short[far] = again.theta, again.short
    return reached
