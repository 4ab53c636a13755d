"""A game whose utility is known: a recipe that trains nothing, for checking estimators and for values of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.errors import InputError
from proponent.examples import Examples
from proponent.store.fingerprint import fingerprint

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Game:
    """A cooperative game: the measurements are a known function of the subset.

    >>> weights = np.array([[1.0, 2.0, 3.0]])
    >>> game = Game(lambda included: included @ weights.T)
    >>> game.measure_many(game.fit_many(None, np.array([[1, 0, 1]], dtype=np.uint8), np.zeros(1)), None).tolist()
    [[4.0]]

    Args:
        utility: (m, n) counts of each example in each subset -> (m, q) or (m,) measurements.
        name: names the game in ledgers.
        batch: subsets asked about at once.
    """

    utility: Callable[[Array], Array]
    name: str = "game"
    batch: int = 4096

    def fit_many(self, train: Any, included: Array, seeds: Array) -> list[Array]:
        """The subsets themselves."""
        return list(included)

    def measure_many(self, models: Any, query: Any) -> Array:
        """(m, q) the utilities."""
        included = np.asarray(models)
        measured = np.asarray(self.utility(included), dtype=np.float64)
        if measured.shape[:1] != included.shape[:1]:
            raise InputError(
                f"utilities of shape {measured.shape}", f"({len(included)}, queries)", "return one row a subset"
            )
        return measured.reshape(len(included), -1)

    def fit(self, examples: Examples, seed: int | None = None) -> Any:
        """Not how a game is played: its subsets are of one known set."""
        raise InputError("examples alone", "the subset's place among all examples", "use fit_many, or retrain()")

    def measure(self, model: Any, query: Any) -> Array:
        """(q,) the utility of one subset."""
        return self.measure_many([model], query)[0]

    def fingerprint(self) -> str:
        """A hash of the name."""
        return fingerprint({"game": self.name})
