"""A recipe: how to train a model on a subset, and what to measure of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from proponent.errors import InputError, did_you_mean
from proponent.examples import Examples
from proponent.retrain import newton, packed_linear
from proponent.retrain.prior import Prior
from proponent.store.fingerprint import fingerprint

Array = np.ndarray[Any, np.dtype[Any]]
Measurement = Callable[[Any, Examples], Array]
MEASUREMENTS = ("loss", "margin", "probability", "correct", "prediction")


class Recipe(Protocol):
    """How to train a model, and what to measure of it: all that the retraining family needs to know.

    A recipe may also have `fit_many(train, included, seeds)`, which trains many models at once, `measure_many(models,
    query)`, and `batch`, how many at once, or `batch_on(train)` where that depends on the examples; results must not
    depend on what else is in the batch. `pack(model)` and `unpack(arrays)` let models be kept on disk; `packs(train)` says
    whether they can, where that depends on the model.
    """

    def fit(self, examples: Examples, seed: int | None = None) -> Any:
        """A model trained on these examples."""

    def measure(self, model: Any, query: Examples) -> Array:
        """(q,) the measurement of each query; larger is better."""

    def fingerprint(self) -> str:
        """What determines the models, hashed."""


@dataclass(frozen=True)
class Failure:
    """A fit that failed: measured as NaN, never as zero.

    Args:
        reason: what its error said.
    """

    reason: str


@dataclass(frozen=True)
class SklearnRecipe:
    """A scikit-learn estimator or pipeline, refitted from its parameters each time.

    >>> from sklearn.linear_model import Ridge
    >>> model = SklearnRecipe(Ridge(alpha=1.0)).fit(Examples.of(([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])))
    >>> bool(0.5 < model.coef_[0] < 1.0)
    True

    An empty subset, and a subset of one class that the estimator refuses, give the `Prior`: smoothed class frequencies.

    Args:
        estimator: any classifier or regressor, of scikit-learn or with its interface; it is cloned, never changed.
        measurement: what is measured of a query: "loss" (minus its loss), "margin" (log-odds of its label),
            "probability" (of its label), "correct" (1 where the predicted label is its label), "prediction" (the
            predicted value, or the predicted class's margin), or a function (model, query) -> (q,).
    """

    estimator: Any
    measurement: str | Measurement = "loss"

    def __post_init__(self) -> None:
        if not (callable(self.measurement) or self.measurement in MEASUREMENTS):
            raise InputError(
                f"measurement={self.measurement!r}",
                f"a function or one of {MEASUREMENTS}",
                did_you_mean(str(self.measurement), MEASUREMENTS),
            )

    def fit(self, examples: Examples, seed: int | None = None) -> Any:
        """A fresh estimator fitted to these examples.

        Raises:
            InputError: labels missing, or weights that the estimator does not take.
        """
        if examples.labels is None:
            raise InputError("training examples without labels", "labels", "pass (inputs, labels)")
        model = clone(self.estimator)
        if seed is not None:
            seeded(model, seed)
        if examples.weights is None:
            return model.fit(examples.inputs, examples.labels)
        name, final = "sample_weight", model
        if isinstance(model, Pipeline):
            name, final = f"{model.steps[-1][0]}__sample_weight", model.steps[-1][1]
        if not has_fit_parameter(final, "sample_weight"):
            raise InputError(
                f"sample weights for a {type(final).__name__}",
                "an estimator that takes sample_weight",
                "drop the weights",
            )
        return model.fit(examples.inputs, examples.labels, **{name: examples.weights})

    def batch_on(self, train: Examples) -> int:
        """Subsets that are refitted at once: many of a linear model, one of any other."""
        return newton.batch_size(self.estimator, train) if newton.supports(self.estimator, train) else 1

    def fit_many(self, train: Examples, included: Array, seeds: Array) -> list[Any]:
        """A model, or a Failure, for each subset: linear models all at once by Newton steps, others one by one."""
        if train.labels is None:
            raise InputError("training examples without labels", "labels", "pass (inputs, labels)")
        models: list[Any] = [None] * len(included)
        learns = self._learn(train.labels, included)
        for s in np.flatnonzero(~learns):
            models[s] = Prior.of(self.estimator, train, included[s])
        rest = np.flatnonzero(learns)
        if len(rest) and newton.supports(self.estimator, train):
            for s, model in zip(rest, newton.fit_many(self.estimator, train, included[rest]), strict=True):
                models[s] = model
        for s in rest:
            if models[s] is None:
                models[s] = _attempt(self, train, included[s], int(seeds[s]))
        return models

    def _learn(self, labels: Array, included: Array) -> Array:
        """(s,) which subsets are not empty and, for a classifier, not of one class."""
        if not is_classifier(self.estimator):
            return np.asarray(included.any(axis=1))
        classes, codes = np.unique(labels, return_inverse=True)
        member = np.eye(len(classes), dtype=np.float32)[codes]
        return np.asarray((((included > 0).astype(np.float32) @ member) > 0).sum(axis=1) > 1)

    def measure_many(self, models: Sequence[Any], query: Examples) -> Array:
        """(m, q) measurements; of linear models refitted together in one product."""
        measured = np.empty((len(models), len(query)))
        light = [s for s, model in enumerate(models) if isinstance(model, newton.LIGHT)]
        if light and not callable(self.measurement):
            measured[light] = newton.measure_many([models[s] for s in light], query, self.measurement)
            rest = sorted(set(range(len(models))) - set(light))
        else:
            rest = list(range(len(models)))
        for s in rest:
            measured[s] = self.measure(models[s], query)
        return measured

    def measure(self, model: Any, query: Examples) -> Array:
        """(q,) the measurement of each query by a fitted model, from its public predictions alone.

        Raises:
            InputError: labels missing, or a measurement that this model cannot give.
        """
        if callable(self.measurement):
            return np.asarray(self.measurement(model, query), dtype=np.float64)
        if query.labels is None and self.measurement != "prediction":
            raise InputError(
                "queries without labels", f"labels, which {self.measurement!r} needs", "measure 'prediction'"
            )
        if self.measurement == "correct":
            predicted = np.asarray(model.predict(query.inputs)).reshape(len(query))
            return np.asarray(predicted == query.labels, dtype=np.float64)
        if not is_classifier(model):
            predicted = np.asarray(model.predict(query.inputs), dtype=np.float64).reshape(len(query))
            return (
                predicted
                if self.measurement == "prediction"
                else -((predicted - np.asarray(query.labels, dtype=np.float64)) ** 2)
            )
        if not hasattr(model, "predict_proba"):
            raise InputError(
                f"a {type(model).__name__} without probabilities", "predict_proba", "wrap it in CalibratedClassifierCV"
            )
        p = np.asarray(model.predict_proba(query.inputs), dtype=np.float64)
        own = p.max(axis=1) if self.measurement == "prediction" else _probability_of(p, model.classes_, query.labels)
        return measured_probability(own, self.measurement)

    def packs(self, train: Examples) -> bool:
        """Whether the models can be kept as plain arrays: linear ones, alone or after a StandardScaler."""
        return packed_linear.packs(self.estimator, train.labels)

    def pack(self, model: Any) -> dict[str, Array]:
        """A linear model as plain arrays by name."""
        return packed_linear.pack(model)

    def unpack(self, arrays: Mapping[str, Array]) -> Any:
        """The model of `pack`'s arrays; it predicts as the estimator does."""
        return packed_linear.unpack(arrays)

    def fingerprint(self) -> str:
        """A hash of the estimator's class and parameters, and of the measurement."""
        parameters = {name: _shown(value) for name, value in self.estimator.get_params(deep=True).items()}
        kind = f"{type(self.estimator).__module__}.{type(self.estimator).__qualname__}"
        return fingerprint({"estimator": kind, "parameters": parameters, "measurement": _shown(self.measurement)})


@dataclass(frozen=True)
class FunctionRecipe:
    """A recipe from two functions, for models of any kind.

    >>> recipe = FunctionRecipe(lambda examples, seed: examples.inputs.mean(), lambda mean, query: -abs(query.inputs - mean))
    >>> recipe.measure(recipe.fit(Examples.of(np.array([1.0, 3.0]))), Examples.of(np.array([2.0, 5.0]))).tolist()
    [-0.0, -3.0]

    Args:
        train: (examples, seed) -> model; equal arguments must give equal models.
        measurement: (model, query) -> (q,) floats, larger is better.
        name: names the recipe in ledgers; change it when the functions' meaning changes. By default made from the
            functions' code.
    """

    train: Callable[[Examples, int | None], Any]
    measurement: Measurement
    name: str = ""

    def fit(self, examples: Examples, seed: int | None = None) -> Any:
        """What the function returns for these examples."""
        return self.train(examples, seed)

    def measure(self, model: Any, query: Examples) -> Array:
        """(q,) the measurement of each query."""
        return np.asarray(self.measurement(model, query), dtype=np.float64)

    def fingerprint(self) -> str:
        """A hash of the name, or of the functions' code."""
        return fingerprint({"function": self.name or [_shown(self.train), _shown(self.measurement)]})


def as_recipe(recipe: Any) -> Any:
    """A recipe from a recipe, or from a scikit-learn estimator.

    Raises:
        InputError: it is neither.
    """
    if hasattr(recipe, "fit") and hasattr(recipe, "predict"):
        return SklearnRecipe(recipe)
    if all(hasattr(recipe, name) for name in ("fit", "measure", "fingerprint")):
        return recipe
    raise InputError(
        f"a {type(recipe).__name__} as a recipe",
        "a SklearnRecipe, TorchRecipe or FunctionRecipe, or a scikit-learn estimator",
        "wrap a training function: FunctionRecipe(train, measurement)",
    )


def fit_many(recipe: Any, train: Examples, included: Array, seeds: Array) -> list[Any]:
    """A model, or a Failure, for each subset, by any recipe."""
    if hasattr(recipe, "fit_many"):
        return list(recipe.fit_many(train, included, seeds))
    return [_attempt(recipe, train, row, int(seed)) for row, seed in zip(included, seeds, strict=True)]


def _attempt(recipe: Any, train: Examples, row: Array, seed: int) -> Any:
    """A model of one subset, or a Failure."""
    try:
        return recipe.fit(subset_of(train, row), seed)
    except Exception as error:  # whatever the user's training raises is a fact about this subset, recorded as such
        return Failure(f"{type(error).__name__}: {error}")


def subset_of(train: Examples, row: Array) -> Examples:
    """The examples that a subset holds; numbered afresh where it holds one several times, because ids are unique."""
    at = np.repeat(np.arange(len(row)), row)
    return train.take(at) if row.max(initial=0) <= 1 else train.take(at, ids=np.arange(len(at)))


def measure_many(recipe: Any, models: Sequence[Any], query: Examples) -> Array:
    """(m, q) measurements of models; NaN for a Failure."""
    measured = np.full((len(models), len(query)), np.nan)
    at = [s for s, model in enumerate(models) if not isinstance(model, Failure)]
    if at and hasattr(recipe, "measure_many"):
        measured[at] = recipe.measure_many([models[s] for s in at], query)
        return measured
    for s in at:
        measured[s] = recipe.measure(models[s], query)
    return measured


def seeded(model: Any, seed: int) -> None:
    """Set all random states of an estimator, nested ones too, from one seed."""
    names = random_states(model)
    states = np.random.SeedSequence(seed).generate_state(len(names)) if len(names) > 1 else [seed]
    if names:
        model.set_params(**{name: int(state) % 2**31 for name, state in zip(names, states, strict=True)})


def random_states(model: Any) -> list[str]:
    """Names of an estimator's random states, nested ones too, in order."""
    return sorted(k for k in model.get_params(deep=True) if k == "random_state" or k.endswith("__random_state"))


def measured_probability(own: Array, measurement: str) -> Array:
    """What is measured of a label's probability."""
    if measurement == "probability":
        return own
    bounded = np.clip(own, 1e-300, 1.0)
    if measurement == "loss":
        return np.log(bounded)
    return np.asarray(np.log(bounded) - np.log(np.maximum(1.0 - bounded, 1e-300)))


def _probability_of(p: Array, classes: Array, labels: Any) -> Array:
    """p[i, label i]; zero where a subset lacked the class."""
    codes = np.clip(np.searchsorted(classes, labels), 0, len(classes) - 1)
    return np.where(classes[codes] == labels, p[np.arange(len(p)), codes], 0.0)


def _shown(value: Any) -> str:
    """A parameter in words that do not change from run to run: a function by its code, not its address."""
    code = getattr(value, "__code__", None)
    if code is None:
        return (
            repr(value)
            if not callable(value) or isinstance(value, type) or hasattr(value, "get_params")
            else f"{value.__class__}"
        )
    digest = hashlib.blake2b(code.co_code + repr(code.co_consts).encode(), digest_size=8).hexdigest()
    return f"{value.__module__}.{value.__qualname__} {digest}"
