"""Each training example's influence on itself, by the method that gave the scores."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pandas as pd

from proponent.errors import UnsupportedModel
from proponent.experiment.load import Experiment

HOMES = {
    "GradDot": "proponent.methods.grad_dot",
    "GradCos": "proponent.methods.grad_dot",
    "TracIn": "proponent.methods.tracin",
    "Influence": "proponent.methods.influence",
}


def self_influence(method: str, experiment: Experiment, options: dict[str, Any]) -> pd.DataFrame:
    """id, value, label of every training example, largest first.

    Args:
        method: the method's name as its scores carry it, such as "Influence (EKFAC)".
        experiment: whose model and training examples are looked at.
        options: of the method.

    Raises:
        UnsupportedModel: the method gives no self-influence.
    """
    found = re.fullmatch(r"(\w+)(?: \((\w+)\))?", method)
    home = HOMES.get(found[1]) if found and experiment.is_task else None
    if found is None or home is None:
        raise UnsupportedModel(
            f"self-influence by {method}", f"one of {', '.join(HOMES)} on a task", "leave out --self-influence"
        )
    curvature = {} if found[2] is None else {"curvature": found[2].lower()}
    fitted = getattr(import_module(home), found[1])(**curvature, **options).fit(experiment.subject, experiment.train)
    dataset = fitted.self_influence().dataset
    columns = {"id": dataset["train"].to_numpy(), "value": dataset["value"].to_numpy()}
    if "train_label" in dataset.coords:
        columns["label"] = dataset["train_label"].to_numpy()
    return pd.DataFrame(columns).sort_values("value", ascending=False, kind="stable", ignore_index=True)
