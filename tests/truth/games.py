"""Cooperative games solved by enumeration: slow, plain, and the truth that closed forms and samplers are held to.

A game is a function of a coalition, a sorted tuple of players. Values are found twice, by ways that share nothing: over all
coalitions that a player can join, and over all orders in which the players can arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, permutations
from math import comb, factorial
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Game = Callable[[tuple[int, ...]], float]
Weight = Callable[[int, int], float]
"""(players, size of the coalition that is joined) -> the weight of each such coalition."""


def shapley(game: Game, n: int) -> Array:
    """Shapley values over all 2^n coalitions."""
    return semivalue(game, n, lambda n, size: factorial(size) * factorial(n - 1 - size) / factorial(n))


def banzhaf(game: Game, n: int, p: float = 0.5) -> Array:
    """Weighted Banzhaf values: every other player joins with probability p."""
    return semivalue(game, n, lambda n, size: p**size * (1 - p) ** (n - 1 - size))


def beta_shapley(game: Game, n: int, alpha: int, beta: int) -> Array:
    """Beta(α, β) Shapley values by the paper's formula, whose j is the size plus one."""

    def weight(n: int, size: int) -> float:
        j = size + 1
        w = n * comb(n - 1, j - 1) * _beta(j + beta - 1, n - j + alpha) / _beta(alpha, beta)
        return float(w / n / comb(n - 1, size))

    return semivalue(game, n, weight)


def semivalue(game: Game, n: int, weight: Weight) -> Array:
    """Σ over coalitions S without i of weight(n, |S|) · (game(S ∪ i) − game(S))."""
    values = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for chosen in combinations(others, size):
                values[i] += weight(n, size) * (game(tuple(sorted((*chosen, i)))) - game(chosen))
    return values


def by_all_orders(worth: Array, n: int, of_place: Array | None = None) -> Array:
    """Mean marginal contribution over all n! orders of arrival, each weighted by the place (0 first) it is made at.

    Args:
        worth: (2^n,) the game's values, coalition s holding player i where bit i of s is set.
        of_place: (n,) weights with mean 1; ones, which is Shapley's value, by default.
    """
    place = np.ones(n) if of_place is None else of_place
    totals, orders = np.zeros(n), 0
    for first in range(n):
        rest = [j for j in range(n) if j != first]
        order = np.array([(first, *tail) for tail in permutations(rest)], dtype=np.int64).reshape(-1, n)
        after = np.cumsum(1 << order, axis=1)
        marginal = (worth[after] - worth[after - (1 << order)]) * place
        totals += [marginal[order == i].sum() for i in range(n)]  # pairwise sums: a running one would lose a digit
        orders += len(order)
    return totals / orders


def place_weights_of_beta(n: int, alpha: int, beta: int) -> Array:
    """(n,) w(j), j = 1 … n, of Kwon & Zou (2022), in exact fractions; their mean is 1."""
    w = [n * comb(n - 1, j - 1) * _beta(j + beta - 1, n - j + alpha) / _beta(alpha, beta) for j in range(1, n + 1)]
    return np.array([float(x) for x in w])


def place_weights_of_banzhaf(n: int, p: float = 0.5) -> Array:
    """(n,) n · P(a Binomial(n − 1, p) coalition has j − 1 members)."""
    return np.array([n * comb(n - 1, s) * p**s * (1 - p) ** (n - 1 - s) for s in range(n)])


def _beta(a: int, b: int) -> Fraction:
    """Euler's beta function of whole numbers."""
    return Fraction(factorial(a - 1) * factorial(b - 1), factorial(a + b - 1))


def random_worth(n: int, seed: int, games: int = 1) -> Array:
    """(2^n, games) independent normal values, without any structure."""
    return np.random.default_rng(seed).normal(size=(2**n, games))


def of_worth(worth: Array) -> Game:
    """The game whose values lie in an array (2^n,)."""
    return lambda coalition: float(worth[sum(1 << i for i in coalition)])


def lookup(worth: Array) -> Callable[[Array], Array]:
    """The game as a function of (m, n) zeros and ones, for many coalitions at once."""

    def play(included: Array) -> Array:
        return worth[np.asarray(included, dtype=np.int64) @ (1 << np.arange(included.shape[1]))]

    return play


def least_core_holds(worth: Array, n: int, payoff: Array, subsidy: float) -> float:
    """By how much the worst coalition is short of its value, after the subsidy; ≤ 0 in the core. The whole may not be."""
    shares = [sum(payoff[i] for i in range(n) if s >> i & 1) for s in range(2**n)]
    return max(float(worth[s] - worth[0] - shares[s] - subsidy) for s in range(1, 2**n - 1))


def fixed_size_contrast(worth: Array, n: int, size: int) -> Array:
    """Mean value of the coalitions of this size with a player, minus the mean of those without, (n,)."""
    held = [s for s in range(2**n) if s.bit_count() == size]
    return np.array(
        [
            np.mean([worth[s] for s in held if s >> i & 1]) - np.mean([worth[s] for s in held if not s >> i & 1])
            for i in range(n)
        ]
    )


def class_wise(
    accuracy: Callable[[tuple[int, ...]], Array],
    labels: Array,
    query_labels: Array,
    environments: Callable[[int], list[tuple[float, tuple[int, ...]]]],
) -> Array:
    """Class-wise Shapley values before normalising: of each class, Shapley's value among its players, in the mean over
    environments of players of other classes.

    Args:
        accuracy: coalition -> (q,) 1 where a query is predicted correctly.
        environments: class -> (probability, players of the other classes).
    """
    values = np.zeros(len(labels))
    for c in np.unique(labels):
        own = np.flatnonzero(labels == c)
        inside = query_labels == c
        for probability, environment in environments(c):

            def worth(
                coalition: tuple[int, ...], own: Array = own, inside: Array = inside, environment: Any = environment
            ) -> float:
                right = accuracy(tuple(sorted((*environment, *(int(own[i]) for i in coalition)))))
                return float(right[inside].sum() / len(right) * np.exp(right[~inside].sum() / len(right)))

            values[own] += probability * shapley(worth, len(own))
    return values


def knn_game(distances: Array, labels: Array, target: Any, k: int, utility: str, classes: int = 2) -> Game:
    """The utility of a K-nearest-neighbour model of one query, ties in training order."""

    def play(coalition: tuple[int, ...]) -> float:
        near = sorted(coalition, key=lambda j: (distances[j], j))[:k]
        if utility == "squared_error":
            return -float((sum(labels[j] for j in near) / k - target) ** 2)
        matches = sum(labels[j] == target for j in near)
        if utility == "fixed":
            return float(matches / k)
        return float(matches / len(near)) if near else 1 / classes

    return play


def knn_worth(order: Array, matches: Array, k: int) -> Callable[[Array], Array]:
    """The game of utility "fixed" for many coalitions of many players at once: (m, n) zeros and ones -> (m,).

    Args:
        order: (n,) players from near to far.
        matches: (n,) whether a player has the query's label.
    """

    def play(included: Array) -> Array:
        near_to_far = np.asarray(included, dtype=np.int32)[:, order]
        counted = near_to_far * (np.cumsum(near_to_far, axis=1) <= k)
        return counted @ matches[order] / k

    return play
