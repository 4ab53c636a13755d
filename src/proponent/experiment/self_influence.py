"""Each training example's influence on itself, by the method that gave the scores."""

from __future__ import annotations

from typing import Any

import pandas as pd

from proponent.errors import UnsupportedModel
from proponent.experiment.load import Experiment
from proponent.methods.auto import gradient_method


def self_influence(method: str, experiment: Experiment, options: dict[str, Any]) -> pd.DataFrame:
    """id, value, label of every training example, largest first.

    Args:
        method: the name of the method that gave the scores, as `attribute` takes it; empty for a recipe's.
        experiment: whose model and training examples are looked at.
        options: of `attribute`.

    Raises:
        UnsupportedModel: the experiment is about a recipe.
    """
    if not (method and experiment.is_task):
        raise UnsupportedModel("self-influence of a recipe", "a task", "leave out --self-influence")
    dataset = gradient_method(method, options).fit(experiment.subject, experiment.train).self_influence().dataset
    columns = {"id": dataset["train"].to_numpy(), "value": dataset["value"].to_numpy()}
    if "train_label" in dataset.coords:
        columns["label"] = dataset["train_label"].to_numpy()
    return pd.DataFrame(columns).sort_values("value", ascending=False, kind="stable", ignore_index=True)
