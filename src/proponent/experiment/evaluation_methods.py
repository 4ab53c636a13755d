"""The methods that an evaluation judges: what fits the model, the file's own, and the baselines that all should beat."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import is_classifier

from proponent.attribution import Attribution, Values
from proponent.errors import InputError, ProponentError, ProponentWarning, did_you_mean
from proponent.evaluate import baselines
from proponent.experiment.evaluation_inputs import Inputs
from proponent.experiment.load import blaming
from proponent.progress import say
from proponent.retrain.recipe import Failure, SklearnRecipe, fit_many
from proponent.store.fingerprint import fingerprint

Result = Attribution | Values
Method = Callable[[], Result]

OF_TASKS = ("graddot", "gradcos", "tracin", "identity", "diagonal", "kfac", "ekfac")
OF_RECIPES = ("leave_one_out", "influence", "knn_shapley")
LOOKING = ("loss", "confidence")
BASELINES = ("random", "loss", "confidence", "embedding_similarity", "bm25")


@dataclass(frozen=True)
class Scorer:
    """Scores the training examples of an experiment by any method it knows.

    Args:
        inputs: of the experiment.
        folder: where scores are kept, so that a run that goes on scores nothing again.
        marks: what the scores are made from.
        seed: of random scores, and of the model that the baselines look at.
    """

    inputs: Inputs
    folder: Path
    marks: dict[str, str]
    seed: int

    def known(self) -> list[str]:
        """The names that may be asked for."""
        return [*(OF_TASKS if self.inputs.experiment.is_task else OF_RECIPES), *self.inputs.own, *BASELINES]

    def usual(self) -> list[str]:
        """What is judged where nobody asks for anything else."""
        inputs = self.inputs
        if inputs.experiment.is_task:
            fitting = ["ekfac", "graddot", *(["tracin"] if self._checkpoints() else [])]
        else:
            fitting = list(OF_RECIPES) if _numeric(inputs.train.inputs) else []
        likeness = ["embedding_similarity"] if _numeric(inputs.train.inputs) else []
        likeness += ["bm25"] if _texts(inputs.train.inputs) else []
        sure = ["confidence"] if self._has_classes() and isinstance(self._measurement(), str) else []
        return [*fitting, *inputs.own, "random", "loss", *sure, *likeness]

    def chosen(self, named: list[str]) -> list[str]:
        """The names that are judged, those of the file as they are spelt there.

        Raises:
            InputError: a name that nothing answers to.
        """
        known = {name.lower(): name for name in self.known()}
        for name in named:
            if name not in known:
                raise InputError(
                    f"method {name!r}", f"some of {', '.join(self.known())}", did_you_mean(name, self.known())
                )
        return [known[name] for name in named] or self.usual()

    def score_all(self, names: list[str], *, asked: bool) -> dict[str, Result | Method]:
        """Scores by name; a method that cannot is told of, in its row where it was asked for."""
        made: dict[str, Result | Method] = {}
        for name in names:
            say(f"scoring by {name}")
            try:
                made[name] = self.score(name)
            except ProponentError as error:
                if asked or name in self.inputs.own:
                    made[name] = _raising(error)
                else:
                    warnings.warn(f"{name} is left out: {error}", ProponentWarning, stacklevel=2)
        return made

    def score(self, name: str) -> Result:
        """The scores of one method: those that are kept, or made now and kept, with the seconds that they took."""
        if name in self.inputs.own:
            return self._own(name)
        path, mark = self.folder / f"{name}.zarr", fingerprint(self.marks | {"method": name, "seed": str(self.seed)})
        if path.exists() and (kept := _opened(path)).dataset.attrs.get("made_from") == mark:
            return kept
        with blaming(self.inputs.experiment.path, name):
            if name in LOOKING:
                self._model  # noqa: B018  # trained once before the clock starts: they take a trained model, as others do
            start = time.perf_counter()
            made = self._made(name)
        made = _with(made, seconds=round(time.perf_counter() - start, 4), made_from=mark)
        self.folder.mkdir(parents=True, exist_ok=True)
        made.save(path)
        return made

    def _own(self, name: str) -> Result:
        method = self.inputs.own[name]
        if isinstance(method, Attribution | Values):
            return method
        start = time.perf_counter()
        with blaming(self.inputs.experiment.path, f"{name!r} of methods()"):
            made = method()
        if not isinstance(made, Attribution | Values):
            raise InputError(f"{type(made).__name__} from {name!r} of methods()", "Attribution or Values", "return one")
        return _with(made, seconds=round(time.perf_counter() - start, 4))

    def _made(self, name: str) -> Result:
        inputs, experiment = self.inputs, self.inputs.experiment
        if name in BASELINES:
            return self._baseline(name)
        if not experiment.is_task:
            from proponent.methods import recipes

            recipe = inputs.recipe
            if name != "knn_shapley" and not isinstance(recipe, SklearnRecipe):
                raise InputError(f"{name} of a {type(recipe).__name__}", "a scikit-learn model", "name another method")
            return recipes.run(recipe, inputs.train, inputs.query, name)[0]
        from proponent.methods.auto import gradient_method

        options: dict[str, Any] = {}
        if name == "tracin":  # other methods are judged by the trained model alone
            rates = experiment.call("learning_rates")
            options = {"checkpoints": self._checkpoints()} | ({} if rates is None else {"learning_rates": rates})
        return gradient_method(name, options).fit(experiment.subject, inputs.train).score(inputs.query)

    def _baseline(self, name: str) -> Result:
        inputs = self.inputs
        if name == "random":
            return baselines.random(inputs.train, inputs.query, seed=self.seed)
        if name == "embedding_similarity":
            classes = self._has_classes() and inputs.query.labels is not None
            return baselines.embedding_similarity(inputs.train, inputs.query, same_label=classes)
        if name == "bm25":
            return baselines.bm25(inputs.train, inputs.query)
        look = baselines.loss if name == "loss" else baselines.confidence
        return look(inputs.recipe, inputs.train, model=self._model, seed=self.seed)

    @cached_property
    def _model(self) -> Any:
        """Trained on everything, for all baselines that look at a model."""
        everything = np.ones((1, len(self.inputs.train)), np.uint8)
        made = fit_many(self.inputs.recipe, self.inputs.train, everything, np.array([self.seed]))[0]
        if isinstance(made, Failure):
            raise InputError(
                f"a training on everything that failed ({made.reason})", "a recipe that trains", "correct recipe()"
            )
        return made

    def _checkpoints(self) -> Any:
        return self.inputs.experiment.call("checkpoints") or []

    def _measurement(self) -> Any:
        return getattr(self.inputs.recipe, "measurement", None)

    def _has_classes(self) -> bool:
        labels, recipe = self.inputs.train.labels, self.inputs.recipe
        if isinstance(recipe, SklearnRecipe):
            return bool(is_classifier(recipe.estimator))
        return labels is not None and labels.dtype.kind != "f"


def _with(made: Result, **facts: Any) -> Any:
    """A result with more facts about it."""
    return replace(made, dataset=made.dataset.assign_attrs(facts))


def _raising(error: ProponentError) -> Method:
    def fails() -> Result:
        raise error

    return fails


def _opened(path: Path) -> Result:
    """What was kept at a path, of either kind."""
    try:
        return Attribution.load(path)
    except InputError:
        return Values.load(path)


def _numeric(data: Any) -> bool:
    """Whether examples are vectors of numbers."""
    if hasattr(data, "dtypes") and hasattr(data, "columns"):
        return all(kind.kind in "biuf" for kind in data.dtypes)
    return getattr(data, "dtype", np.dtype(object)).kind in "biuf"


def _texts(data: Any) -> bool:
    """Whether examples are texts."""
    return not hasattr(data, "columns") and len(data) > 0 and isinstance(data[0], str)
