"""The first queries and the examples behind them, as a person sees them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from proponent.attribution import Attribution
from proponent.experiment.again import Slopes
from proponent.experiment.answer import Explained, Neighbour
from proponent.experiment.describe import Describer, Split
from proponent.experiment.load import Experiment, blaming
from proponent.experiment.survey import Survey

EXPLAINED = 20
"""Queries that are shown with their examples; all of them are in top.csv."""


def describer_of(experiment: Experiment, rows: dict[Split, Any], scores: Attribution) -> Describer:
    labels: dict[Split, dict[Any, str]] = {}
    for split in rows:
        coords = scores.dataset.coords
        known = coords[f"{split}_label"].to_numpy().tolist() if f"{split}_label" in coords else []
        labels[split] = dict(zip(scores.dataset[split].to_numpy().tolist(), map(str, known), strict=False))
    shape = experiment.call("image_shape")
    return Describer(experiment, rows, labels, None if shape is None else tuple(shape))


def explained(
    experiment: Experiment, scores: Attribution, found: Survey, describer: Describer, slopes: Slopes | None = None
) -> tuple[Explained, ...]:
    """The first queries, each with its strongest examples on both sides, and the slopes over the first proponent."""
    ids = scores.dataset["query"].to_numpy()[:EXPLAINED]
    predicted, measured = _predictions(experiment, len(ids))
    behind = {key: records(part) for key, part in found.top.groupby(["query", "side"], sort=False)}
    made = []
    for at, (id, guess, value) in enumerate(zip(ids.tolist(), predicted, measured, strict=True)):
        both = [behind.get((id, side), []) for side in ("proponent", "opponent")]
        proponents, opponents = (tuple(neighbour(record, describer) for record in side) for side in both)
        label = describer.labels["query"].get(id, "")
        shown = describer.show("query", id)
        over = slopes(at, both[0][0]["id"]) if slopes and both[0] else None
        made.append(Explained(str(id), label, guess, value, shown, proponents, opponents, over))
    return tuple(made)


def records(frame: pd.DataFrame, first: int | None = None) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in record.items()} for record in frame.head(first or len(frame)).to_dict("records")]


def neighbour(record: dict[str, Any], describer: Describer, number: str = "score") -> Neighbour:
    label = str(record["label"]) if "label" in record else ""
    return Neighbour(str(record["id"]), label, float(record[number]), describer.show("train", record["id"]))


def _predictions(experiment: Experiment, count: int) -> tuple[list[str], list[str]]:
    """The model's class for each of the first queries, and what is measured of them, in words."""
    nothing = [""] * count
    if not experiment.is_task:
        return nothing, nothing
    from proponent.losses import CrossEntropy, named_loss
    from proponent.rows import Rows

    task, loss = experiment.subject, named_loss(experiment.subject.loss)
    rows, classes, values = Rows.of(experiment.query)[:count], [], []
    with task.watching(), blaming(experiment.path, "the model"):
        for at in range(count):
            batch = task.batch(rows, slice(at, at + 1))
            values.append(float(task.measurements(batch)))
            output = loss.output(task.net, batch) if isinstance(loss, CrossEntropy) else None
            classes.append(str(int(output.argmax())) if output is not None and output.ndim == 2 else "")
    name = task.settings()["measurement"]
    told = [f"loss {-v:.3g}" if name == "loss" else f"{name.replace('_', ' ')} {v:.3g}" for v in values]
    return classes, told


def subject_in_words(experiment: Experiment) -> str:
    if not experiment.is_task:
        return " ".join(repr(getattr(experiment.subject, "estimator", experiment.subject)).split())
    facts = experiment.subject.settings()
    numbers = sum(p.numel() for p in experiment.subject.selected().values())
    return f"{facts['model']} with {numbers:,} parameters, loss {facts['loss']}"
