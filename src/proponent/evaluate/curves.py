"""Removal and addition curves: what refits measure as rows go, or come, in the order of their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from proponent.attribution import Attribution, Values
from proponent.errors import InputError
from proponent.evaluate.resampling import interval, resampled, span
from proponent.examples import Examples
from proponent.retrain.run import retrain
from proponent.retrain.subsets import Subsets

Array = np.ndarray[Any, np.dtype[Any]]
Order = Literal["lowest", "highest"]

REMOVED = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
ADDED = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
BOOTSTRAP = 1000
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Curve:
    """What was measured as rows were removed, or added, by their values and at random.

    Args:
        kind: "removal" or "addition".
        order: which rows went first: "lowest" or "highest".
        table: fraction, rows (how many), measured (mean over queries and seeds), random, random_std (mean and standard
            deviation over the random orders).
        area: the mean height of the curve over the fractions, by the trapezoidal rule.
        random_area, random_std: mean and standard deviation over the random orders.
        gain, gain_lower, gain_upper: area − random_area, turned so that positive speaks for the values, with its 95 %
            interval over queries and random orders.
        beaten: the share of random orders that do worse.
        models: refits that the curves are made of.
        notes: what should be known, in words.
    """

    kind: Literal["removal", "addition"]
    order: Order
    table: pd.DataFrame = field(repr=False)
    area: float
    random_area: float
    random_std: float
    gain: float
    gain_lower: float
    gain_upper: float
    beaten: float
    models: int
    notes: tuple[str, ...]

    def summary(self) -> dict[str, float]:
        """Named numbers for a table of methods."""
        name = f"{self.kind}_gain"
        return {name: self.gain, f"{name}_lower": self.gain_lower, f"{name}_upper": self.gain_upper}

    def to_pandas(self) -> pd.DataFrame:
        """A row per fraction."""
        return self.table

    def __repr__(self) -> str:
        gain = span(self.gain, self.gain_lower, self.gain_upper, 4)
        head = (
            f"{self.kind.capitalize()} curve, {self.order} values first: area {self.area:.4f}, random "
            f"{self.random_area:.4f} ± {self.random_std:.4f}, gain {gain} ({self.models:,} refits)"
        )
        return "\n".join([head, *(f"  {note}" for note in self.notes)])


def removal_curve(
    values: Values | Attribution,
    recipe: Any,
    train: Any,
    query: Any,
    *,
    fractions: Sequence[float] = REMOVED,
    order: Order = "lowest",
    random: int = 10,
    repeats: int = 1,
    seed: int = 0,
    ledger: str | Path | None = None,
    workers: int | None = None,
) -> Curve:
    """What refits measure as ever more rows are removed, those of the lowest (or highest) values first.

    Good values keep the measurement up, or raise it, as the lowest go, and lower it as the highest go.

    >>> from sklearn.linear_model import Ridge
    >>> x = np.arange(40.0)[:, None] / 40
    >>> y = x[:, 0] + np.where(np.arange(40) % 8 == 0, 3.0, 0.0)
    >>> values = Values.of(-abs(y - x[:, 0]), train=range(40), method="distance from the truth")
    >>> curve = removal_curve(values, Ridge(1e-3), (x, y), (x, x[:, 0]), fractions=(0, 0.05, 0.125))
    >>> bool(curve.gain_lower > 0), curve.table["rows"].tolist()
    (True, [0, 2, 5])

    Args:
        values: one per training example, by id; of an Attribution, the mean score over its queries. Ties go in random order,
            examples without a value last.
        recipe: a recipe, or a scikit-learn estimator. What it measures is averaged over the queries: "correct" gives
            accuracy.
        train: the examples that are removed.
        query: what is measured by every refit; not among the queries that the values were made for, or they look too good.
        fractions: of the training examples to remove, increasing, below 1.
        order: which values go first.
        random: random orders for comparison, at least 2.
        repeats: seeds per refit, the same for all; more than 1 where training is random.
        seed: of the random orders.
        ledger, workers: see `retrain`.

    Raises:
        InputError: values of other examples, fractions out of order, or fewer than 2 random orders.

    Source: Ghorbani & Zou, Data Shapley, ICML 2019.
    """
    _check(fractions, order, random, lowest=0.0, below=1.0)
    run = _Run(recipe, Examples.of(train), Examples.of(query), tuple(fractions), random, repeats, seed, ledger, workers)
    return run.curve("removal", order, values)


def addition_curve(
    values: Values | Attribution,
    recipe: Any,
    train: Any,
    query: Any,
    *,
    fractions: Sequence[float] = ADDED,
    order: Order = "highest",
    random: int = 10,
    repeats: int = 1,
    seed: int = 0,
    ledger: str | Path | None = None,
    workers: int | None = None,
) -> Curve:
    """What refits measure when trained on ever more rows, those of the highest (or lowest) values first.

    >>> from sklearn.linear_model import Ridge
    >>> x = np.arange(40.0)[:, None] / 40
    >>> y = x[:, 0] + np.where(np.arange(40) % 8 == 0, 3.0, 0.0)
    >>> values = Values.of(-abs(y - x[:, 0]), train=range(40), method="distance from the truth")
    >>> addition_curve(values, Ridge(1e-3), (x, y), (x, x[:, 0])).beaten
    1.0

    Args: see `removal_curve`; the fractions are those trained on, above 0.
    """
    _check(fractions, order, random, lowest=np.finfo(float).tiny, below=np.nextafter(1, 2))
    run = _Run(recipe, Examples.of(train), Examples.of(query), tuple(fractions), random, repeats, seed, ledger, workers)
    return run.curve("addition", order, values)


def values_in(values: Values | Attribution, train: Examples) -> Array:
    """(n,) the values in the examples' order.

    Raises:
        InputError: values of other examples.
    """
    values = values.values() if isinstance(values, Attribution) else values
    at = pd.Index(values.dataset["train"].to_numpy()).get_indexer(pd.Index(train.ids))
    if (at < 0).any() or len(values.value) != len(train):
        raise InputError(
            f"values of {len(values.value):,} examples, {(at >= 0).sum():,} of them among the training examples",
            f"values of the {len(train):,} training examples",
            "value the examples that are retrained on, under the same ids",
        )
    return np.asarray(values.value[at], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _Run:
    """Refits along orders of the training examples."""

    recipe: Any
    train: Examples
    query: Examples
    fractions: tuple[float, ...]
    random: int
    repeats: int
    seed: int
    ledger: str | Path | None
    workers: int | None

    def curve(self, kind: Literal["removal", "addition"], order: Order, values: Values | Attribution) -> Curve:
        value = values_in(values, self.train)
        rng = np.random.default_rng(self.seed)
        orders = [by_value(value, order, rng), *(rng.permutation(len(value)) for _ in range(self.random))]
        counts = [round(f * len(value)) for f in self.fractions]
        measured, failed = self._measure(np.array(orders), counts, kind == "addition")
        notes = [f"{np.isnan(value).sum():,} examples have no value and go last."] if np.isnan(value).any() else []
        whole = np.asarray(np.isfinite(measured).all(axis=(0, 2)))
        if failed:
            left = [f for f, here in zip(self.fractions, whole, strict=True) if not here]
            notes.append(f"{failed:,} refits failed: the fractions {left} are left out of the areas.")
        if whole.sum() < 2:
            raise InputError(
                f"refits that failed at {len(whole) - whole.sum()} of {len(whole)} fractions",
                "two fractions at which none failed",
                "look at the ledger's errors, or remove fewer rows",
            )
        height = measured[:, whole].transpose(0, 2, 1)
        at = np.array(self.fractions)[whole]
        areas = np.trapezoid(height, at, axis=2) / (at[-1] - at[0])
        sign = 1 if (kind == "removal") == (order == "lowest") else -1
        gains = sign * (areas[:1] - areas[1:])
        drawn = resampled(lambda w: _mean_gain(gains, w), self.random, len(self.query), count=BOOTSTRAP, seed=self.seed)
        lower, upper = interval(drawn[:, 0], LEVEL)
        by_order = areas.mean(axis=1)
        return Curve(
            kind=kind,
            order=order,
            table=_table(self.fractions, counts, measured),
            area=float(by_order[0]),
            random_area=float(by_order[1:].mean()),
            random_std=float(by_order[1:].std(ddof=1)),
            gain=float(gains.mean()),
            gain_lower=lower,
            gain_upper=upper,
            beaten=float((gains.mean(axis=1) > 0).mean()),
            models=len(orders) * len(counts) * self.repeats,
            notes=tuple(notes),
        )

    def _measure(self, orders: Array, counts: list[int], adding: bool) -> tuple[Array, int]:
        """(orders, fractions, q) means over the seeds, NaN where all failed; and how many failed."""
        place = np.argsort(orders, axis=1)
        early = place[:, None, :] < np.array(counts)[:, None]
        included = (early if adding else ~early).reshape(-1, orders.shape[1])
        plan = Subsets.of(np.repeat(included, self.repeats, axis=0), np.tile(np.arange(self.repeats), len(included)))
        made = retrain(self.recipe, self.train, self.query, plan, ledger=self.ledger, workers=self.workers)
        measured = made.measured.reshape(len(orders), len(counts), self.repeats, len(self.query))
        return mean_of_known(measured, axis=2), int(made.failed.sum())


def by_value(value: Array, order: Order, rng: np.random.Generator) -> Array:
    """Positions, those that go first in front; ties in random order, NaN at the end."""
    shuffled = rng.permutation(len(value))
    key = value[shuffled] if order == "lowest" else -value[shuffled]
    return shuffled[np.argsort(key, kind="stable")]


def mean_of_known(measured: Array, axis: int) -> Array:
    """The mean of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(measured)
    count = known.sum(axis=axis)
    return np.where(count > 0, np.where(known, measured, 0).sum(axis=axis) / np.maximum(count, 1), np.nan)


def _mean_gain(gains: Array, weight: Array) -> tuple[Array, Array]:
    return (weight @ gains / weight.sum())[None], np.ones((1, gains.shape[1]))


def _table(fractions: Sequence[float], counts: list[int], measured: Array) -> pd.DataFrame:
    height = measured.mean(axis=2)
    return pd.DataFrame(
        {
            "fraction": fractions,
            "rows": counts,
            "measured": height[0],
            "random": height[1:].mean(axis=0),
            "random_std": height[1:].std(axis=0, ddof=1),
        }
    )


def _check(fractions: Sequence[float], order: str, random: int, lowest: float, below: float) -> None:
    steps = np.diff(np.asarray(fractions, dtype=np.float64))
    if len(fractions) < 2 or (steps <= 0).any() or fractions[0] < lowest or fractions[-1] >= below:
        raise InputError(
            f"fractions {tuple(fractions)}", "at least two, increasing, within 0 and 1", "use the defaults"
        )
    if order not in ("lowest", "highest"):
        raise InputError(f"order={order!r}", "'lowest' or 'highest'", "say which values go first")
    if random < 2:
        raise InputError(f"{random} random orders", "at least 2, for their spread", "use the default 10")
