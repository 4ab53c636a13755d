"""What --strict refuses: before the scores what a forward pass tells, after them what only gradients do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proponent.errors import InputError
from proponent.experiment.load import Experiment, blaming

AXES = {"train": "training examples", "query": "queries"}
SHOWN = 10


def require_finite_losses(experiment: Experiment, options: Mapping[str, Any]) -> None:
    """One forward pass over the training examples and the queries, at each of the checkpoints that are scored.

    Args:
        experiment: of a task; of a recipe nothing is known before its scores.
        options: of `attribute`.

    Raises:
        InputError: a loss or a measurement is not finite; names the examples.
    """
    if not experiment.is_task:
        return
    from proponent.methods.finite import not_finite

    with blaming(experiment.path, "the model"):
        found = not_finite(
            experiment.subject,
            experiment.train,
            experiment.query,
            options.get("checkpoints"),
            options.get("batch_size"),
        )
    require_none(found, "a loss or measurement")


def require_none(found: Mapping[str, list[Any]], what: str) -> None:
    """Refuse examples of which something is not finite.

    Args:
        found: axis ("train", "query") → their ids.
        what: is not finite.

    Raises:
        InputError: there are some.
    """
    told = [f"{len(ids)} {AXES[axis]} ({_listed(ids)})" for axis, ids in found.items() if ids]
    if told:
        raise InputError(
            f"{' and '.join(told)} with {what} that is not finite",
            "finite numbers, because of --strict",
            "correct or leave out these examples, or run without --strict to set them aside",
        )


def _listed(ids: list[Any]) -> str:
    return ", ".join(map(repr, ids[:SHOWN])) + (", …" if len(ids) > SHOWN else "")
