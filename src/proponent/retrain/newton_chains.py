"""Optima over many subsets, each from the best start there is: the subset before it, or what its like have in common.

Subsets that each differ by one row from the one before, such as the prefixes of a permutation, are a chain: a subset's
optimum and inverse curvature, changed by that one row, start the next. Chains go on side by side, a step at a time. Large
models, whose inverses cost more than many steps, share one, and need no chains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from proponent.retrain.newton_descent import Reached, inverse_curvatures, renewal_cost
from proponent.retrain.newton_problem import Family, Typical
from proponent.retrain.newton_stack import Stack

Array = np.ndarray[Any, np.dtype[Any]]

OWN = 30.0
"""The cost of an inverse curvature, in steps, up to which each subset has one of its own, and chains hand it on."""

ABREAST, SHORTEST = 128, 8
"""Chains that should go side by side, and the shortest into which longer ones are cut for that."""

SIDE_BY_SIDE = 512
"""The most subsets that are solved at once."""

NUMBERS = 2**23
"""Numbers that their curvatures, or their logits, may take."""


def optima(family: Family, counts: Array) -> tuple[Array, Array]:
    """The parameters (s, c, p) of each subset, and whether they are its optimum (s,).

    Args:
        family: the problems.
        counts: (s, n) how often each subset holds each training row.
    """
    theta, optimal = family.zeros(len(counts)), np.zeros(len(counts), dtype=bool)
    for rows, reached in _solved(family, counts):
        theta[rows], optimal[rows] = reached.theta, reached.optimal
    return theta, optimal


def chain_starts(counts: Array) -> Array:
    """Where chains begin: the rows that differ from the one before in more than one place.

    >>> chain_starts(np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 1, 0], [0, 1, 1]])).tolist()
    [0, 3]
    """
    differ = (counts[1:] != counts[:-1]).sum(axis=1)
    return np.flatnonzero(np.append(True, differ != 1))


def _solved(family: Family, counts: Array) -> Iterator[tuple[Array, Reached]]:
    """Subsets, and what they came to, until there are no more."""
    cost = renewal_cost(family.stack(counts[:1]))
    chained = cost <= OWN  # beyond, to carry an inverse along costs more than the steps that it saves
    starts = _cut(chain_starts(counts), len(counts), SHORTEST + int(cost)) if chained else np.arange(len(counts))
    lengths = np.diff(np.append(starts, len(counts)))
    long = np.flatnonzero(lengths > 1)
    for at in _parts(family, long[np.argsort(-lengths[long], kind="stable")]):
        yield from _along(family, counts, starts[at], lengths[at])
    alone = starts[lengths == 1]
    shares = family.shares(counts[alone])
    for share in np.unique(shares):
        for rows in _parts(family, alone[shares == share]):
            yield rows, _apart(family, family.stack(counts[rows]), family.typical(share))


def _cut(starts: Array, count: int, shortest: int) -> Array:
    """Chains cut into shorter ones, where few would go side by side; the dearer a first optimum, the longer they stay."""
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
    reached = _first(family, stack, family.shares(counts[starts]))
    yield starts, reached
    for step in range(1, int(lengths[0])):
        going = int((lengths > step).sum())
        rows = starts[:going] + step
        changed = (counts[rows] != counts[rows - 1]).argmax(axis=1)
        before, stack = stack.take(np.arange(going)), family.stack(counts[rows])
        theta, inverse, lost = reached.theta[:going], reached.inverse[:going], ~reached.optimal[:going]
        theta[lost], inverse[lost] = 0.0, 0.0
        if stack.absent is not None:
            theta[stack.absent] = 0.0
        by = (stack.weight - before.weight)[np.arange(going), changed]
        inverse = stack.changed(inverse, theta, changed, by)
        theta = stack.followed(inverse, theta, changed, by, stack.penalty - before.penalty)
        if lost.any():
            theta[lost] = 0.0
            inverse[lost] = inverse_curvatures(stack.take(lost), theta[lost])
        reached = family.solve(stack, theta, inverse)
        yield rows, reached


def _first(family: Family, stack: Stack, shares: Array) -> Reached:
    """The optima of the first subsets of chains, each with an inverse curvature of its own."""
    theta, inverse = family.zeros(len(stack)), np.empty((len(stack), stack.order, stack.order))
    for share in np.unique(shares):
        at, typical = shares == share, family.typical(share)
        if typical is None:
            inverse[at] = inverse_curvatures(stack.take(at), theta[at])
        else:
            theta[at], inverse[at] = _own(stack.take(at), typical)
    return family.solve(stack, theta, inverse)


def _apart(family: Family, stack: Stack, typical: Typical | None) -> Reached:
    """The optima of subsets with about the same share of the training weight."""
    if typical is None:
        return family.solve(stack, family.zeros(len(stack)))
    if renewal_cost(stack) <= OWN:
        return family.solve(stack, *_own(stack, typical))
    theta, unit = _start(stack, typical)
    reached = family.solve(stack, theta, typical.inverse, unit)
    if (far := ~reached.optimal).any():
        again = family.solve(stack.take(far), theta[far])
        reached.theta[far], reached.short[far] = again.theta, again.short
    return reached


def _start(stack: Stack, typical: Typical) -> tuple[Array, Array]:
    """Parameters (s, c, p) to start with, and what (s, k) to multiply the typical inverse curvature by, on both sides."""
    unit = typical.unit(stack.penalty)
    theta = typical.theta * unit[:, None]
    if stack.absent is not None:
        theta[stack.absent] = 0.0
    return theta, np.tile(unit, stack.order // unit.shape[1])


def _own(stack: Stack, typical: Typical) -> tuple[Array, Array]:
    """Parameters (s, c, p) and inverse curvatures (s, k, k) to start with."""
    theta, unit = _start(stack, typical)
    return theta, typical.inverse * unit[:, :, None] * unit[:, None, :]
