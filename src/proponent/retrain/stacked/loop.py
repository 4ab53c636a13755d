"""The training loop, for one model or a stack of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from proponent.retrain.stacked.batches import Batch, Batches
from proponent.retrain.stacked.optimizers import Optimizer, Rate


class Network(Protocol):
    """A stack of models: their parameters, and the gradients of their losses on a batch.

    Where all models take the same number of steps (`alike`), tensors may hold many parameters; otherwise each holds one,
    and its first dimension is the models'.
    """

    @property
    def models(self) -> int: ...

    def parameters(self, alike: bool) -> list[Tensor]: ...

    def gradients(self, batch: Batch, alike: bool) -> list[Tensor]:
        """Of the first k parameters, of the batch's k models."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def descend(network: Network, optimizer: Optimizer, schedule: Callable[[int, int], float], batches: Batches) -> None:
    """Train every model of a network over all its batches, in place."""
    alike, totals = batches.alike, batches.totals
    parameters = network.parameters(alike)
    moments = optimizer.start(parameters)
    for batch in batches:
        gradients = network.gradients(batch, alike)
        rates = _rates(optimizer.lr, schedule, batch.step, totals[: len(batch.rows)], parameters, alike)
        if len(batch.rows) < len(totals):  # the others are done
            k = len(batch.rows)
            own, kept = [p[:k] for p in parameters], [[m[:k] for m in of_one] for of_one in moments]
            optimizer.step(own, gradients, kept, rates, batch.step)
        else:
            optimizer.step(parameters, gradients, moments, rates, batch.step)


def _rates(
    lr: float,
    schedule: Callable[[int, int], float],
    step: int,
    totals: Sequence[int],
    parameters: Sequence[Tensor],
    alike: bool,
) -> list[Rate]:
    """The learning rate of each parameter: a number, or one for each model."""
    if alike:
        return [lr * schedule(step, totals[0])] * len(parameters)
    factors: dict[Any, float] = {total: schedule(step, total) for total in set(totals)}
    rates = torch.tensor([lr * factors[total] for total in totals], dtype=torch.float64)
    return [rates.to(p).view(-1, *[1] * (p.ndim - 1)) for p in parameters]
