"""One model, trained by the plain loop: for models that cannot be stacked, and what a stack must agree with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proponent.retrain.stacked.batches import Batch
from proponent.retrain.stacked.data import Data
from proponent.retrain.stacked.vmapped import single_losses


class OneModel:
    """A module and its own training examples, as a stack of one.

    Args:
        model: in training mode.
        data: the training examples.
        loss: an object with `per_example`, or a function (model, batch) -> (b,).
    """

    def __init__(self, model: nn.Module, data: Data, loss: Any) -> None:
        self.model, self.data, self.loss = model, data, loss
        self.trained = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]

    @property
    def models(self) -> int:
        return 1

    def parameters(self, alike: bool) -> list[Tensor]:
        return [p.detach() for p in self.trained]

    def gradients(self, batch: Batch, alike: bool) -> list[Tensor]:
        with torch.enable_grad():
            losses = single_losses(self.model, self.loss, self.data.batch(batch.rows[0]))
            found = torch.autograd.grad((losses * batch.weights[0]).sum(), self.trained, materialize_grads=True)
        return list(found)
