"""What an estimator retrains: a recipe on subsets of players, each a training example or a whole group of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from proponent.errors import InputError, ProponentWarning
from proponent.examples import Examples
from proponent.methods.rounds import AT_ONCE, Drawn
from proponent.retrain.job import together
from proponent.retrain.recipe import as_recipe
from proponent.retrain.run import retrain
from proponent.retrain.subsets import Subsets
from proponent.retrain.trained import Trained

Array = np.ndarray[Any, np.dtype[Any]]
BATCHES = 4
"""Batches of a round, where a recipe trains many models at once."""
HELD = 2**24
"""Numbers of a round that are held at once: 128 MB."""


def each_query(measured: Array) -> Array:
    """(m, q) as measured: an estimate for each query."""
    return measured


def mean_query(measured: Array) -> Array:
    """(m, 1) the mean over queries: the utility whose values are summed up."""
    return measured.mean(axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Players:
    """Who is valued: every training example alone, or groups of them, which enter a subset whole.

    Args:
        axis: the training examples, or the groups' names: the train axis of results.
        member: (n,) the player that each training example belongs to; None where each is its own.
        count: players.
    """

    axis: Any
    member: Array | None
    count: int

    @classmethod
    def of(cls, train: Examples, groups: Any = None) -> Players:
        """Players of a training set.

        Args:
            groups: None for single examples, "own" for the examples' own groups, or (n,) names of groups.
        """
        if groups is None:
            return cls(train, None, len(train))
        own = isinstance(groups, str) and groups == "own"
        named = train.groups if own else np.asarray(groups)
        if named is None or np.shape(named) != (len(train),):
            raise InputError(
                "training examples without groups" if named is None else f"groups of shape {np.shape(named)}",
                f"{len(train)} groups, one per training example",
                'pass Examples.of(..., groups=...) and groups="own", or the groups themselves',
            )
        names, member = np.unique(named, return_inverse=True)
        return cls(names, member, len(names))

    def rows(self, included: Array) -> Array:
        """(m, n) the training examples of subsets (m, players)."""
        return included if self.member is None else included[:, self.member]


@dataclass(frozen=True, eq=False)
class Retraining:
    """A recipe and its training examples, ready to be retrained on subsets of the players.

    Args:
        ledger: the trainings that are kept in a directory, or None.
        workers: how many train at once.
        keep_models: keep the models in the ledger, so that other queries cost predictions only.
    """

    recipe: Any
    train: Examples
    players: Players
    ledger: Trained | None
    workers: int | None
    keep_models: bool

    @classmethod
    def of(
        cls,
        recipe: Any,
        train: Any,
        groups: Any = None,
        ledger: str | Path | None = None,
        workers: int | None = None,
        keep_models: bool = False,
    ) -> Retraining:
        """From what `fit` is given.

        Raises:
            InputError: not a recipe, or groups that do not fit the examples.
            FingerprintMismatch: the ledger is of another recipe or other training examples.
        """
        recipe, train = as_recipe(recipe), Examples.of(train)
        if len(train) == 0:
            raise InputError("no training examples", "at least one", "check how the data were read or filtered")
        kept = None if ledger is None else Trained.open(ledger, recipe, train)
        return cls(recipe, train, Players.of(train, groups), kept, workers, keep_models)

    def of_queries(self, query: Any, summary: Callable[[Array], Array]) -> Measured:
        """The measurements of these queries as a function of subsets."""
        queries = Examples.of(query)
        if len(queries) == 0:
            raise InputError("no queries", "at least one", "pass what is to be measured")
        return Measured(self, queries, summary)

    @property
    def measurement(self) -> str:
        """The name of what is measured, for a result's settings."""
        measurement = getattr(self.recipe, "measurement", type(self.recipe).__name__)
        return measurement if isinstance(measurement, str) else getattr(measurement, "__qualname__", repr(measurement))


@dataclass(frozen=True, eq=False)
class Measured:
    """U: subsets of players and training seeds -> measurements, by retraining; a failed fit is NaN, never zero.

    Args:
        summary: (m, q) measurements -> (m, c).
        errors: what failed fits said.
    """

    retraining: Retraining
    query: Examples
    summary: Callable[[Array], Array]
    errors: list[str] = field(default_factory=list)

    def __call__(self, included: Array, seeds: Array) -> Array:
        r = self.retraining
        subsets = Subsets.of(r.players.rows(included), seeds)
        ledger = retrain(
            r.recipe, r.train, self.query, subsets, ledger=r.ledger, keep_models=r.keep_models, workers=r.workers
        )
        self.errors.extend(ledger.errors[ledger.failed][: 1 - len(self.errors)])
        return self.summary(ledger.measured)

    @property
    def at_once(self) -> int:
        """Trainings of a round: some batches, so that workers share them; fewer where they would be large to hold.

        It does not depend on the number of workers, because a stop rule is asked after each round.
        """
        r = self.retraining
        widest = max(len(self.query), len(r.train))
        return max(16, min(max(AT_ONCE, BATCHES * together(r.recipe, r.train)), HELD // widest))

    def report(self, drawn: Drawn[Any], consequence: str) -> None:
        """Warn of failed fits: how many, why, and what that means."""
        if drawn.failed:
            warnings.warn(
                f"{drawn.failed:,} of {drawn.trainings:,} trainings failed and are left out, the first because of "
                f"{self.errors[0]!r}; {consequence}",
                ProponentWarning,
                stacklevel=4,
            )
