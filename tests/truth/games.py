"""Cooperative games solved by enumeration: slow, plain, and the truth that closed forms are held to."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Game = Callable[[tuple[int, ...]], float]


def shapley(game: Game, n: int) -> Array:
    """Shapley values over all 2^n coalitions; a coalition is a sorted tuple of players."""
    values = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            weight = factorial(size) * factorial(n - 1 - size) / factorial(n)
            for chosen in combinations(others, size):
                values[i] += weight * (game(tuple(sorted((*chosen, i)))) - game(chosen))
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
