"""The method that gave the scores, fitted again for what else is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from proponent.errors import InputError, UnsupportedModel
from proponent.experiment.load import Experiment
from proponent.methods.auto import gradient_method

Array = np.ndarray[Any, np.dtype[Any]]
Slopes = Callable[[int, Any], Array]


def fit_again(method: str, experiment: Experiment, options: dict[str, Any], asked: str) -> Any:
    """What the method's `fit` gives.

    Args:
        method: the name of the method that gave the scores, as `attribute` takes it; empty for a recipe's.
        experiment: whose model and training examples are looked at.
        options: of `attribute`.
        asked: the option that this is for, such as "self-influence".

    Raises:
        UnsupportedModel: the experiment is about a recipe.
    """
    if not (method and experiment.is_task):
        raise UnsupportedModel(f"{asked} of a recipe", "a task", f"leave out --{asked}")
    return gradient_method(method, options).fit(experiment.subject, experiment.train)


def self_influence(fitted: Any) -> pd.DataFrame:
    """id, value, label of every training example, largest first."""
    dataset = fitted.self_influence().dataset
    columns = {"id": dataset["train"].to_numpy(), "value": dataset["value"].to_numpy()}
    if "train_label" in dataset.coords:
        columns["label"] = dataset["train_label"].to_numpy()
    return pd.DataFrame(columns).sort_values("value", ascending=False, kind="stable", ignore_index=True)


def slopes_of(fitted: Any, queries: Any, shape: tuple[int, ...] | None) -> Slopes:
    """(position of a query, id of a training example) → slopes of the score over the example's pixels.

    Args:
        fitted: what gave the scores.
        queries: of the experiment.
        shape: of a picture that comes as a flat row of numbers.

    Raises:
        InputError: of the function: the input is no picture.
    """
    from proponent.rows import Rows

    rows = Rows.of(queries)

    def slopes(query: int, id: Any) -> Array:
        made = fitted.perturbation(rows[query : query + 1], rows=[id]).to_numpy()[0, 0]
        if shape is not None:
            return made.reshape(shape)
        if made.ndim not in (2, 3):
            raise InputError(
                f"--saliency of inputs of shape {made.shape}",
                "pictures",
                "define image_shape() in the experiment file, or leave out --saliency",
            )
        return made

    return slopes
