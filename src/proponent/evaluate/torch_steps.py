"""One training step of a torch model, and what it changes: the only file of this room that knows torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proponent.rows import Rows
from proponent.task import Task

Array = np.ndarray[Any, np.dtype[Any]]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """Trains a copy of a model one step on given examples, from the same weights each time; see `training_step`."""

    task: Task
    train: Rows
    query: Rows
    make_optimizer: MakeOptimizer
    batch: int
    before: Array

    def __call__(self, rows: Iterable[int]) -> Array:
        """(q,) the change of the queries' measurements by one step on the mean loss of these rows."""
        parameters = list(self.task.selected().values())
        start = [p.detach().clone() for p in parameters]
        try:
            with self.task.watching():
                self._step(list(rows), parameters)
                return _measure(self.task, self.query, self.batch) - self.before
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
                    parameter.grad = None

    def _step(self, rows: list[int], parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = self.make_optimizer(parameters)
        for row in rows:
            loss = self.task.losses(self.task.batch(self.train, slice(row, row + 1))).sum() / len(rows)
            loss.backward()
        optimizer.step()


def training_step(
    task: Task,
    train: Any,
    query: Any,
    *,
    optimizer: float | MakeOptimizer = 1e-3,
    batch: int = 256,
) -> TrainingStep:
    """A step for `tail_patch`: one optimizer step on given examples, and the change of every query's measurement.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]])
    >>> step = training_step(Task(model, loss="squared_error"), data, data, optimizer=0.25)
    >>> step([0]).tolist()  # the weight goes from 0 to 0.5, the loss from 1 to 0.25
    [0.75]

    Args:
        task: the trained model, its loss and its measurement. The model itself stays as it is: a copy is trained, in eval
            mode.
        train: the training examples that positions refer to.
        query: what is measured.
        optimizer: the learning rate of plain gradient descent, or a function from parameters to an optimizer, made anew for
            every step.
        batch: queries measured at once.
    """
    if callable(optimizer):
        make = optimizer
    else:
        rate = float(optimizer)

        def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=rate)

    own = replace(task, model=copy.deepcopy(task.net))
    examples, queries = Rows.of(train), Rows.of(query)
    with own.watching():
        before = _measure(own, queries, batch)
    return TrainingStep(own, examples, queries, make, batch, before)


def _measure(task: Task, query: Rows, batch: int) -> Array:
    measured: list[Tensor] = []
    with torch.no_grad():
        for at in query.parts(batch):
            measured.append(task.measurements(task.batch(query, at)).double().cpu())
    return np.asarray(torch.cat(measured).numpy())
