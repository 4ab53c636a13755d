"""Which examples have no finite loss or measurement: one forward pass, before any gradient is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from proponent.capture.gradients import Capture
from proponent.methods.ensemble import with_weights
from proponent.methods.score import Sizes
from proponent.rows import Rows
from proponent.task import Task


def not_finite(
    task: Task,
    train: Any,
    query: Any,
    checkpoints: Sequence[str | Path | Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
) -> dict[str, list[Any]]:
    """Axis ("train", "query") → ids of the examples that scores would set aside because of their loss or measurement.

    >>> import torch, proponent as pp
    >>> x, y = torch.ones(4, 3), torch.zeros(4, dtype=torch.long)
    >>> x[2] = torch.nan
    >>> not_finite(pp.Task(torch.nn.Linear(3, 2)), (x, y), (x[:2], y[:2]))
    {'train': [2], 'query': []}

    Args:
        task, train, query: as for `attribute`.
        checkpoints: that are scored in place of the task's own weights.
        batch_size: examples at once; found from their size by default.
    """
    sides = {"train": Rows.of(train), "query": Rows.of(query)}
    found: dict[str, Any] = {}
    with task.watching():
        batch = batch_size or Sizes.of(Capture.of(task, sides["train"]), sides["train"]).batch()
    for own in (with_weights(task, c) for c in checkpoints) if checkpoints else [task]:
        with own.watching(), torch.no_grad():
            for axis, measure in (("train", own.losses), ("query", own.measurements)):
                rows = sides[axis]
                made = torch.cat([measure(own.batch(rows, at)) for at in rows.parts(batch)])
                found[axis] = found.get(axis, False) | ~made.isfinite().numpy(force=True)
    return {axis: rows.ids[found[axis]].tolist() for axis, rows in sides.items()}
