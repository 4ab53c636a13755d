"""What an evaluation needs of an experiment file: a recipe beside the task, examples that can be subset, known bad ones."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.attribution import Attribution, Values
from proponent.errors import InputError, ProponentWarning
from proponent.examples import Examples
from proponent.experiment.load import Experiment, blaming
from proponent.retrain.recipe import as_recipe

Array = np.ndarray[Any, np.dtype[Any]]

SAME = {"log_probability": "loss"}
"""What a task measures, by the name that a recipe has for it."""


@dataclass(frozen=True)
class Inputs:
    """What is evaluated and by what.

    Args:
        experiment: the file that it comes from.
        recipe: how to train the model again.
        train, query: as Examples, which can be subset.
        bad: (n,) which training examples are known to be bad, or None where nobody says.
        own: the file's own methods by name: results, or functions that make them.
    """

    experiment: Experiment
    recipe: Any
    train: Examples
    query: Examples
    bad: Array | None
    own: Mapping[str, Any]

    @classmethod
    def of(cls, experiment: Experiment) -> Inputs:
        """Ask the file for everything, so that what is missing is told before the long work.

        Raises:
            InputError: no recipe(), data that cannot be subset, or bad() or methods() that return something else.
        """
        _tell_misspelt(experiment)
        recipe = _recipe(experiment)
        train, query = (_examples(experiment, split) for split in ("train", "query"))
        return cls(experiment, recipe, train, query, _bad(experiment, len(train)), _own(experiment))


def _recipe(experiment: Experiment) -> Any:
    """The recipe, which a scikit-learn experiment has as its subject."""
    if not experiment.is_task:
        return as_recipe(experiment.subject)
    if not experiment.defines("recipe"):
        close = _close(experiment, "recipe")
        add = "def recipe(): return pp.TorchRecipe(make_model, loss=…, optimizer=…, epochs=…), as the model was trained"
        raise InputError(
            f"no recipe() in {experiment.path.name}",
            "recipe(), which says how to train the model again on a subset",
            f"rename {close}() to recipe()" if close else f"add: {add}",
        )
    made = experiment.call("recipe")
    if made is None:
        raise InputError(f"None from recipe() in {experiment.path.name}", "a recipe", "add a return to the function")
    recipe = as_recipe(made)
    _tell_other_measurement(str(experiment.subject.settings()["measurement"]), getattr(recipe, "measurement", None))
    return recipe


def _tell_other_measurement(of_task: str, of_recipe: Any) -> None:
    if isinstance(of_recipe, str) and of_recipe != SAME.get(of_task, of_task):
        warnings.warn(
            f"the task measures {of_task!r} and the recipe {of_recipe!r}: scores are judged by what they do not predict",
            ProponentWarning,
            stacklevel=4,
        )


def _examples(experiment: Experiment, split: str) -> Examples:
    """A side of the data as Examples; tensors as arrays, because a ledger knows examples by their bytes."""
    data = getattr(experiment, split)
    if isinstance(data, Mapping) or (isinstance(data, tuple) and len(data) != 2):
        raise InputError(
            f"a {type(data).__name__} of {len(data)} from {split}() in {experiment.path.name}",
            "examples that can be subset",
            "return (inputs, labels), or pp.Examples.of(...)",
        )
    with blaming(experiment.path, f"reading {split}()"):
        if hasattr(data, "dataset") and hasattr(data, "collate_fn"):
            data = data.dataset
        if isinstance(data, tuple):
            data = tuple(_array(part) for part in data)
        return Examples.of(_array(data))


def _array(data: Any) -> Any:
    return data.detach().cpu().numpy() if hasattr(data, "detach") else data


def _bad(experiment: Experiment, n: int) -> Array | None:
    """(n,) which training examples are bad."""
    made = experiment.call("bad")
    if made is None:
        if experiment.defines("bad"):
            raise InputError(f"None from bad() in {experiment.path.name}", f"{n} booleans", "add a return")
        return None
    bad = np.asarray(_array(made))
    if bad.dtype != bool or bad.shape != (n,) or not 0 < bad.sum() < n:
        raise InputError(
            f"{bad.dtype} of shape {bad.shape} from bad() in {experiment.path.name}",
            f"{n} booleans, one per training example, some true and some false",
            "return an array that is True where a training example is known to be bad",
        )
    return bad


def _own(experiment: Experiment) -> dict[str, Any]:
    """The file's own methods, checked as far as they can be without running them."""
    if not experiment.defines("methods"):
        return {}
    made = experiment.call("methods")
    wanted = "a dict: name → Attribution, Values, or a function without arguments that returns one"
    if not isinstance(made, Mapping):
        raise InputError(
            f"{type(made).__name__} from methods() in {experiment.path.name}", wanted, "return {'mine': lambda: …}"
        )
    for name, method in made.items():
        if not (isinstance(method, Attribution | Values) or callable(method)):
            raise InputError(
                f"{type(method).__name__} for {name!r} from methods() in {experiment.path.name}", wanted, "change it"
            )
    return {str(name): method for name, method in made.items()}


def _close(experiment: Experiment, name: str) -> str:
    """A function of the file itself with almost this name."""
    module = experiment.module
    own = {k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__}
    return next(iter(difflib.get_close_matches(name, own - {"task", "train", "query"}, n=1, cutoff=0.8)), "")


def _tell_misspelt(experiment: Experiment) -> None:
    """A function that is almost an optional one would be passed over in silence."""
    close = _close(experiment, "methods")
    if close and not experiment.defines("methods"):
        warnings.warn(
            f"{close}() in {experiment.path.name} is not used; did you mean methods()?", ProponentWarning, stacklevel=3
        )
