"""Brittleness: how few training examples, taken away, turn a prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from proponent.attribution import Attribution
from proponent.errors import InputError
from proponent.evaluate.curves import mean_of_known
from proponent.evaluate.truth import aligned
from proponent.examples import Examples
from proponent.retrain.recipe import as_recipe
from proponent.retrain.run import retrain
from proponent.retrain.subsets import Subsets

Array = np.ndarray[Any, np.dtype[Any]]

HALF = {"margin": 0.0, "probability": 0.5, "loss": float(np.log(0.5)), "correct": 0.5}
"""The measurement below which a query's label has less than half of the probability, or is not what most seeds predict."""


@dataclass(frozen=True, eq=False)
class Brittleness:
    """How many of its top proponents have to go before each prediction turns.

    Args:
        table: a row per query: query, before (measured with all examples), k (the number of proponents whose removal turns
            it; NaN where none does), tested (up to how many were removed), after (measured without the k), random_k (the
            smallest of the tried sizes at which half of the random removals turn it; NaN where none does). Queries that are
            wrong to begin with have NaN in all but `before`.
        curve: k, flipped (share of the right predictions that turn without at most k of their proponents), random (share
            that turn without k random examples).
        models: refits.
        failed: refits that failed; they turn nothing.
    """

    table: pd.DataFrame = field(repr=False)
    curve: pd.DataFrame = field(repr=False)
    models: int
    failed: int

    @property
    def right(self) -> int:
        """Predictions that were right to begin with."""
        return int(self.table["tested"].notna().sum())

    @property
    def flipped(self) -> int:
        """Predictions that turned."""
        return int(self.table["k"].notna().sum())

    @property
    def median(self) -> float:
        """The median number of proponents over the right predictions; infinite where fewer than half turned."""
        k = self.table.loc[self.table["tested"].notna(), "k"]
        return float(k.fillna(np.inf).median()) if len(k) else float("nan")

    def summary(self) -> dict[str, float]:
        """Named numbers for a table of methods."""
        return {"flipped": self.flipped / self.right if self.right else float("nan"), "median_to_flip": self.median}

    def to_pandas(self) -> pd.DataFrame:
        """A row per query."""
        return self.table

    def __repr__(self) -> str:
        last = self.curve.iloc[-1]
        failed = f"; {self.failed:,} refits failed" if self.failed else ""
        return (
            f"Brittleness: {self.flipped:,} of {self.right:,} right predictions turn, half of them without "
            f"{self.median:g} proponents or fewer; without {int(last['k']):,} random examples, {last['random']:.1%} turn "
            f"({self.models:,} refits{failed})"
        )


def brittleness(
    scores: Attribution,
    recipe: Any,
    train: Any,
    query: Any,
    *,
    threshold: float | None = None,
    largest: int | None = None,
    tolerance: float = 0.1,
    random: int = 20,
    repeats: int = 1,
    seed: int = 0,
    ledger: str | Path | None = None,
    workers: int | None = None,
) -> Brittleness:
    """The smallest number of top proponents without which a refit turns each prediction, beside random removals.

    The number of removed proponents doubles until the prediction turns, and is then halved in between. What is returned is
    tested: a refit without the k strongest proponents does turn it, one without the largest smaller number that was tried
    does not. Only examples with positive scores are removed.

    >>> from proponent.retrain.recipe import SklearnRecipe
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> train = (np.array([[0.0], [0.1], [0.2], [1.0], [1.1], [1.2]]), np.array([1, 1, 1, 0, 0, 0]))
    >>> nearest = SklearnRecipe(KNeighborsClassifier(1), measurement="correct")
    >>> scores = Attribution.of(np.array([[3.0, 2.0, 1.0, 0, 0, 0]]), query=[0], train=range(6), method="distance")
    >>> brittleness(scores, nearest, train, ([[-0.1]], [1]), tolerance=0).table["k"].tolist()
    [3.0]

    Args:
        scores: of these training examples for these queries.
        recipe: a recipe that measures "correct", "margin", "probability" or "loss", or anything with a threshold. A
            scikit-learn estimator measures its loss.
        train: the examples that are removed.
        query: the queries whose predictions may turn.
        threshold: a prediction has turned where the mean of the measurement over the seeds is below it. By default where the
            label has less than half of the probability; for "correct", where most seeds predict another label.
        largest: proponents to remove at most; half of the training examples by default.
        tolerance: the search stops where k is known to this relative precision; 0 for the exact number.
        random: random removals of every size; 0 for none.
        repeats: seeds per refit; more than 1 where training is random.
        seed: of the random removals.
        ledger, workers: see `retrain`.

    Raises:
        InputError: other training examples or queries, or a measurement whose threshold is not known.

    Source: Ilyas et al., Datamodels, ICML 2022 (data support); Bae et al., Training Data Attribution via Approximate
    Unrolling, NeurIPS 2024.
    """
    train, query, recipe = Examples.of(train), Examples.of(query), as_recipe(recipe)
    score, at = aligned(scores, train.ids, query.ids)
    refits = _Refits(recipe, train, query.take(at), _threshold(recipe, threshold), repeats, ledger, workers)
    largest = len(train) // 2 if largest is None else min(largest, len(train) - 1)
    before = refits.measure([np.empty(0, dtype=np.int64)])[0]
    right = before >= refits.threshold
    search = _Search.of(score, right, largest)
    while len(going := search.going(tolerance)):
        sizes = search.next_size(going)
        removed = [search.order[i, :k] for i, k in zip(going, sizes, strict=True)]
        search.learn(going, sizes, refits.measure(removed)[np.arange(len(going)), going], refits.threshold)
    drawn = _random_flips(refits, right, int(np.maximum(search.low, search.high).max(initial=1)), random, seed)
    return _result(refits, query.take(at), before, right, search, drawn)


@dataclass(eq=False)
class _Search:
    """For each query, the largest number of removed proponents known to leave it, and the smallest known to turn it."""

    order: Array
    limit: Array
    low: Array
    high: Array
    after: Array

    @classmethod
    def of(cls, score: Array, right: Array, largest: int) -> _Search:
        limit = np.where(right, np.minimum((score > 0).sum(axis=1), largest), 0)
        q = len(score)
        start = np.zeros(q, np.int64)
        return cls(np.argsort(-score, axis=1, kind="stable"), limit, start, np.full(q, -1), np.full(q, np.nan))

    def going(self, tolerance: float) -> Array:
        """Queries for which there is more to find out."""
        open_ = (self.high < 0) & (self.low < self.limit)
        wide = (self.high > 0) & (self.high - self.low > np.maximum(1, tolerance * self.high))
        return np.flatnonzero(open_ | wide)

    def next_size(self, at: Array) -> Array:
        doubled = np.minimum(np.maximum(1, 2 * self.low[at]), self.limit[at])
        return np.where(self.high[at] < 0, doubled, (self.low[at] + self.high[at]) // 2)

    def learn(self, at: Array, size: Array, measured: Array, threshold: float) -> None:
        turned = measured < threshold
        self.high[at[turned]] = size[turned]
        self.after[at[turned]] = measured[turned]
        self.low[at[~turned]] = size[~turned]


@dataclass(eq=False)
class _Refits:
    """Refits without some examples, and how many there were."""

    recipe: Any
    train: Examples
    query: Examples
    threshold: float
    repeats: int
    ledger: str | Path | None
    workers: int | None
    models: int = 0
    failed: int = 0

    def measure(self, removed: list[Array]) -> Array:
        """(removals, q) means over the seeds; NaN, which is below nothing, where all failed."""
        included = np.ones((len(removed), len(self.train)), np.uint8)
        for row, gone in zip(included, removed, strict=True):
            row[gone] = 0
        plan = Subsets.of(np.repeat(included, self.repeats, axis=0), np.tile(np.arange(self.repeats), len(included)))
        made = retrain(self.recipe, self.train, self.query, plan, ledger=self.ledger, workers=self.workers)
        self.models += len(made)
        self.failed += int(made.failed.sum())
        return mean_of_known(made.measured.reshape(len(removed), self.repeats, len(self.query)), axis=1)


def _threshold(recipe: Any, threshold: float | None) -> float:
    if threshold is not None:
        return threshold
    measurement = getattr(recipe, "measurement", None)
    if not isinstance(measurement, str) or measurement not in HALF:
        raise InputError(
            f"a recipe that measures {measurement!r}",
            f"one of {', '.join(HALF)}, or a threshold",
            "say below which measurement a prediction has turned: threshold=…",
        )
    return HALF[measurement]


def _random_flips(refits: _Refits, right: Array, largest: int, random: int, seed: int) -> tuple[Array, Array]:
    """(sizes,) doubling up to the largest that was tried, and (sizes, q) the share of random removals that turn a query."""
    sizes = np.unique(np.minimum(2 ** np.arange(int(np.ceil(np.log2(largest))) + 1), largest))
    if random == 0 or not right.any():
        return sizes, np.full((len(sizes), len(right)), np.nan)
    rng = np.random.default_rng(seed)
    n = len(refits.train)
    removed = [rng.choice(n, size=int(k), replace=False) for k in sizes for _ in range(random)]
    measured = refits.measure(removed).reshape(len(sizes), random, len(right))
    return sizes, (measured < refits.threshold).mean(axis=1)


def _result(
    refits: _Refits, query: Examples, before: Array, right: Array, search: _Search, drawn: tuple[Array, Array]
) -> Brittleness:
    sizes, share = drawn
    k = np.where(search.high > 0, search.high, np.nan)
    often = share >= 0.5
    random_k = np.where(right & often.any(axis=0), sizes[often.argmax(axis=0)], np.nan)
    table = pd.DataFrame(
        {
            "query": query.ids,
            "before": before,
            "k": k,
            "tested": np.where(right, np.maximum(search.low, search.high), np.nan),
            "after": search.after,
            "random_k": random_k,
        }
    )
    with np.errstate(invalid="ignore"):
        flipped = (k[right][None] <= sizes[:, None]).mean(axis=1) if right.any() else np.full(len(sizes), np.nan)
        at_random = share[:, right].mean(axis=1) if right.any() else np.full(len(sizes), np.nan)
    curve = pd.DataFrame({"k": sizes, "flipped": flipped, "random": at_random})
    return Brittleness(table, curve, refits.models, refits.failed)
