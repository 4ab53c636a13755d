"""What is measured of queries, from a model's outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proponent.batches import target_of
from proponent.errors import InputError
from proponent.losses import BinaryCrossEntropy, SquaredError


def measured(what: str, loss: Any, output: Tensor, batch: Any) -> Tensor:
    """(b,) measurements of outputs, in float64; larger is better.

    Args:
        what: "loss", "margin", "probability", "correct" or "prediction".
        loss: of the recipe; one that is a function of the model knows "loss" only, and is not measured here.
        output: (b, …) of the model.

    Raises:
        InputError: this loss has no such measurement, or it needs labels that are not there.
    """
    output = output.double()
    if what == "prediction":
        return _prediction(loss, output)
    if what == "loss":
        return -loss.per_example(output, batch)
    if what == "correct":
        return _correct(loss, output, batch)
    if not hasattr(loss, "measure"):
        raise InputError(
            f"measurement {what!r} of {type(loss).__name__}, which predicts no classes",
            "a loss over classes",
            "measure 'loss' or 'prediction', or pass a function (model, batch) -> (b,)",
        )
    if what == "margin":
        return loss.measure("margin", output, batch)
    return loss.measure("log_probability", output, batch).exp()


def _correct(loss: Any, output: Tensor, batch: Any) -> Tensor:
    """1 where the predicted class is the label; where an example has several positions, the share of those."""
    if hasattr(loss, "positions"):
        logits, target = loss.positions(output, batch)
        live = target != loss.ignore_index
        right = (logits.argmax(-1) == target) & live
        return right.sum(1).double() / live.sum(1)
    if isinstance(loss, BinaryCrossEntropy):
        target = target_of(batch).reshape(len(output), -1)
        return ((output.reshape(target.shape) > 0) == (target > 0.5)).double().mean(1)
    raise InputError(
        f"measurement 'correct' of {type(loss).__name__}, which predicts no classes",
        "a loss over classes",
        "measure 'loss' or 'prediction', or pass a function (model, batch) -> (b,)",
    )


def _prediction(loss: Any, output: Tensor) -> Tensor:
    """The predicted class's margin, or the predicted value of a regression."""
    rows = output.reshape(len(output), -1)
    if isinstance(loss, SquaredError) or not hasattr(loss, "measure"):
        if rows.shape[1] != 1:
            raise InputError(
                f"measurement 'prediction' of {rows.shape[1]} outputs for each example",
                "one",
                "pass a function (model, batch) -> (b,)",
            )
        return rows[:, 0]
    if isinstance(loss, BinaryCrossEntropy):
        return rows.abs().sum(1)
    top = rows.argmax(1, keepdim=True)
    others = rows.scatter(1, top, -torch.inf).logsumexp(1)
    return rows.gather(1, top).squeeze(1) - others
