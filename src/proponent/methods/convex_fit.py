"""What the convex methods share: a fitted linear model, and queries in its terms."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.convex.measurement import Measurement, measure
from proponent.convex.model import LinearModel, linear_model
from proponent.convex.problem import dense
from proponent.examples import Examples
from proponent.retrain.maps import one_thread
from proponent.retrain.recipe import SklearnRecipe

Array = np.ndarray[Any, np.dtype[Any]]

SMALL = 2_000_000


@dataclass(frozen=True)
class Queries:
    """Queries as the model sees them: features x (q, d), logits f (q, c) at the optimum, and what is measured."""

    x: Any
    f: Array
    measurement: Measurement


@dataclass(frozen=True)
class ConvexFit:
    """A recipe's linear model, fitted to training examples.

    Args:
        recipe: how it was trained, and what is measured.
        train: the training examples.
        model: the fitted model and its exact optimum.
        seconds: what fitting took.
    """

    recipe: SklearnRecipe
    train: Examples
    model: LinearModel
    seconds: float

    @classmethod
    def of(cls, recipe: Any, train: Any) -> ConvexFit:
        start = time.perf_counter()
        recipe = recipe if isinstance(recipe, SklearnRecipe) else SklearnRecipe(recipe)
        examples = Examples.of(train)
        # On small matrices, handing work between threads costs more than the work.
        with one_thread() if _numbers(examples.inputs) < SMALL else nullcontext():
            model = linear_model(recipe.fit(examples), examples)
        return cls(recipe, examples, model, time.perf_counter() - start)

    def queries(self, query: Examples) -> Queries:
        x = self.model.features(query.inputs)
        f = np.asarray(x @ self.model.optimum.theta.T)
        y = None if self.recipe.measurement == "prediction" else self.model.targets(query.labels)
        return Queries(x, f, measure(_named(self.recipe.measurement), self.model.problem.loss, y, f))

    def query_gradients(self, queries: Queries) -> Array:
        """(q, c·d) ∇_θ m_q."""
        slope = queries.measurement.slope(queries.f)
        return np.asarray((slope[:, :, None] * dense(queries.x)[:, None, :]).reshape(len(slope), -1))


def _numbers(inputs: Any) -> float:
    return float(np.prod(inputs.shape)) if hasattr(inputs, "shape") else float("inf")


def _named(measurement: Any) -> str:
    """The measurement's name; a function has no slope to work with."""
    return measurement if isinstance(measurement, str) else "a function"
