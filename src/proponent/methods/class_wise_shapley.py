"""Class-wise Shapley: what an example adds for its own class, held against what it does to the others."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from proponent.attribution import Values
from proponent.errors import InputError, ProponentWarning
from proponent.methods.retraining import Measured, Retraining, each_query
from proponent.methods.rounds import Utility, draw
from proponent.methods.semivalue import CONSEQUENCE, settings_of
from proponent.retrain.moments import Halves
from proponent.retrain.reduce import marginals, shapley_sizes
from proponent.retrain.stopping import Budget, RankStability, Stop
from proponent.retrain.subsets import prefixes

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ClassWiseShapley:
    """The Shapley value of each training example among those of its class, beside random examples of the other classes.

    φ_i = E_R[Shapley value of i in the game S ⊆ class c → a_c(S ∪ R) exp(a_¬c(S ∪ R))], with a_c the share of all queries
    that are of class c and predicted correctly, a_¬c the same of other classes; R holds of each other class a random
    number (from one to all) of random examples. `normalize` then scales each class: Σ_{i ∈ c} φ_i = a_c(all).

    >>> import numpy as np
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from proponent.retrain.recipe import SklearnRecipe
    >>> x, y = np.array([[0.0], [0.1], [0.9], [1.0], [1.1]]), np.array([0, 0, 0, 1, 1])
    >>> recipe = SklearnRecipe(KNeighborsClassifier(1), measurement="correct")
    >>> query = np.array([[0.05], [0.2], [0.92], [1.2]]), np.array([0, 0, 1, 1])
    >>> values = ClassWiseShapley(stop=Budget(700)).fit(recipe, (x, y)).values(query)
    >>> values.lowest(1)["id"].tolist()
    [2]

    Args:
        stop: a rule from `proponent.retrain.stopping`; a draw is an order of every class: n trainings and one a class.
        seed: of the draws.
        seeds: training seeds that draws take turns with.
        normalize: as published. A class whose values add up to nothing positive is left as it is, with a warning.

    Source: Schoch, Xu & Ji, CS-Shapley: Class-wise Shapley Values for Data Valuation in Classification, NeurIPS 2022.
    """

    stop: Stop = RankStability(0.95) | Budget(20_000)
    seed: int = 0
    seeds: int = 1
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"seeds={self.seeds}", "at least one training seed", "pass seeds ≥ 1")

    def fit(
        self,
        recipe: Any,
        train: Any,
        *,
        ledger: str | Path | None = None,
        workers: int | None = None,
        keep_models: bool = False,
    ) -> FittedClassWiseShapley:
        """Hold recipe and examples ready, as `Shapley.fit` does.

        Args:
            recipe: one that measures "correct", or "probability" for a softer accuracy.
            train: Examples, or (inputs, labels).
            ledger, workers, keep_models: as for `Shapley.fit`.

        Raises:
            InputError: labels are missing.
        """
        retraining = Retraining.of(recipe, train, None, ledger, workers, keep_models)
        if retraining.train.labels is None:
            raise InputError("training examples without labels", "a label for each", "pass (inputs, labels)")
        return FittedClassWiseShapley(self, retraining, retraining.train.labels)


@dataclass(frozen=True, eq=False)
class FittedClassWiseShapley:
    """Class-wise Shapley values of a recipe, ready for queries; made by `ClassWiseShapley.fit`."""

    spec: ClassWiseShapley
    retraining: Retraining
    labels: Array

    def values(self, query: Any) -> Values:
        """The values, with `stderr` and `count`, the draws of each. They are of all queries together: a single one has one
        class, so that there is no matrix of scores.

        Args:
            query: anything that `Examples.of` takes, with labels.

        Raises:
            InputError: labels are missing, or the recipe measures something other than accuracy.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, each_query)
        if queries.query.labels is None:
            raise InputError("queries without labels", "a label for each", "pass (inputs, labels)")
        scheme = ClassOrders(self.labels, queries.query.labels, self.spec.seed, self.spec.seeds)
        drawn = draw(scheme, queries, self.spec.stop, "ClassWiseShapley", queries.at_once)
        queries.report(drawn, CONSEQUENCE)
        whole = drawn.tally.whole
        value = np.where(whole.count > 0, whole.mean, np.nan)[:, 0]
        scale = self._scale(value, queries) if self.spec.normalize else np.ones(len(value))
        return Values.of(
            value * scale,
            train=self.retraining.train,
            method="ClassWiseShapley",
            unit="class-wise Shapley value of a_c exp(a_¬c), the accuracies within the class and outside",
            variables={"stderr": whole.stderr[:, 0] * scale, "count": whole.count[:, 0]},
            attributes={
                "settings": settings_of(vars(self.spec), len(value)) | {"measurement": self.retraining.measurement},
                "draws": drawn.draws,
                "trainings": drawn.trainings + int(self.spec.normalize),
                "failed": drawn.failed,
                "seconds": round(time.perf_counter() - start, 3),
            },
        )

    def _scale(self, value: Array, queries: Measured) -> Array:
        """(n,) the factor of each example's class."""
        correct = queries(np.ones((1, len(value)), np.uint8), np.zeros(1, np.int64))[0]
        scale = np.ones(len(value))
        for c in np.unique(self.labels):
            own = self.labels == c
            total, reached = np.nansum(value[own]), correct[queries.query.labels == c].sum() / len(correct)
            if total > 0 and reached > 0:
                scale[own] = reached / total
            else:
                warnings.warn(
                    f"the values of class {c!r} add up to {total:.3g} and its accuracy is {reached:.3g}: not normalised",
                    ProponentWarning,
                    stacklevel=3,
                )
        return scale


@dataclass(frozen=True, eq=False)
class ClassOrders:
    """One draw: of each class, a random order of its examples beside a random environment of the others."""

    labels: Array
    query_labels: Array
    seed: int
    seeds: int
    together: int = 1

    @functools.cached_property
    def classes(self) -> list[Array]:
        """The rows of each class."""
        return [np.flatnonzero(self.labels == c) for c in np.unique(self.labels)]

    @property
    def cost(self) -> int:
        """All prefixes of every class, the empty ones too."""
        return len(self.labels) + len(self.classes)

    def start(self, utility: Utility) -> Callable[[Halves | None, range], Halves]:
        """Draws have nothing in common."""
        return functools.partial(self._round, utility)

    def _round(self, utility: Utility, tally: Halves | None, draws: range) -> Halves:
        tally = Halves.empty(len(self.labels), 1) if tally is None else tally
        drawn = [self._orders(t) for t in draws]
        included = np.concatenate([rows for orders in drawn for _, rows in orders])
        correct = utility(included, np.repeat(np.array(draws) % self.seeds, self.cost))
        if np.nanmin(correct, initial=0.0) < 0 or np.nanmax(correct, initial=0.0) > 1:
            raise InputError(
                "measurements outside 0 … 1",
                "whether a prediction is correct, or its probability",
                'pass a recipe with measurement="correct"',
            )
        at = 0
        for t, orders in zip(draws, drawn, strict=True):
            added = np.empty((len(self.labels), 1))
            for own, (order, rows) in zip(self.classes, orders, strict=True):
                worth = self._worth(correct[at : at + len(rows)], self.labels[own[0]])
                added[own] = marginals(order, worth, shapley_sizes(len(own)))
                at += len(rows)
            tally = tally.with_draw(t, added)
        return tally

    def _orders(self, t: int) -> list[tuple[Array, Array]]:
        """Of each class an order of its own rows, and the subsets that it passes through (|class| + 1, n)."""
        orders = []
        for c, own in enumerate(self.classes):
            rng = np.random.default_rng([self.seed, t, c])
            environment = np.zeros(len(self.labels), np.uint8)
            for other in self.classes[:c] + self.classes[c + 1 :]:
                environment[rng.choice(other, rng.integers(1, len(other) + 1), replace=False)] = 1
            order = rng.permutation(len(own))
            rows = np.repeat(environment[None], len(own) + 1, axis=0)
            rows[:, own] = prefixes(order)
            orders.append((order, rows))
        return orders

    def _worth(self, correct: Array, label: Any) -> Array:
        """(m, 1) a_c exp(a_¬c)."""
        inside = self.query_labels == label
        q = len(inside)
        return np.asarray(
            correct[:, inside].sum(axis=1, keepdims=True)
            / q
            * np.exp(correct[:, ~inside].sum(axis=1, keepdims=True) / q)
        )
