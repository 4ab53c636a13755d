"""The gradient of the loss in the outputs of stacked models, (models, outputs, examples)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from proponent.losses import BinaryCrossEntropy, CrossEntropy, Poisson, SquaredError, require_classes

OF_OUTPUTS = (CrossEntropy, BinaryCrossEntropy, SquaredError, Poisson)
"""Losses of an example's own outputs and target, and of nothing else."""


class OutputGradient(Protocol):
    """What the backward pass starts from."""

    def __call__(self, output: Tensor, rows: Tensor, weights: Tensor, out: Tensor) -> None:
        """Write the gradient of Σ weights · losses.

        Args:
            output: (k, o, b), may be overwritten.
            rows: (k · b,) positions in the training data.
            weights: broadcasts to (k, b).
            out: (k, o, b).
        """


class SoftmaxGradient:
    """p − y of cross-entropy, with the label y smoothed; 0 where the target is ignored."""

    def __init__(self, loss: CrossEntropy, targets: Tensor, outputs: int, like: Tensor) -> None:
        require_classes(targets, outputs, loss.ignore_index)
        live = targets != loss.ignore_index
        self.classes = torch.where(live, targets, 0).long()
        self.live = None if bool(live.all()) else live
        self.even = loss.label_smoothing / outputs
        self.own = like.new_full((1, 1, 1), loss.label_smoothing - 1.0)

    def __call__(self, output: Tensor, rows: Tensor, weights: Tensor, out: Tensor) -> None:
        k, _, b = output.shape
        torch.ops.aten._softmax.out(output, 1, False, out=out)
        out.scatter_add_(1, self.classes[rows].view(k, 1, b), self.own.expand(k, 1, b))
        if self.even:
            out.sub_(self.even)
        if self.live is not None:
            weights = weights * self.live[rows].view(k, b)
        out.mul_(weights[:, None])


class LossGradient:
    """Of any loss of outputs and targets, by autograd."""

    def __init__(self, loss: Any, targets: Tensor) -> None:
        self.loss, self.targets = loss, targets

    def __call__(self, output: Tensor, rows: Tensor, weights: Tensor, out: Tensor) -> None:
        k, o, b = output.shape
        with torch.enable_grad():
            leaf = output.mT.reshape(k * b, o).requires_grad_()
            losses = self.loss.per_example(leaf, (rows, self.targets[rows])).view(k, b)
            (found,) = torch.autograd.grad((losses * weights).sum(), leaf)
        out.copy_(found.view(k, b, o).mT)


def output_gradient(loss: Any, targets: Tensor, outputs: int, like: Tensor) -> OutputGradient:
    """The quickest for a loss; `like` is in the outputs' precision.

    Raises:
        InputError: targets that are not the model's classes.
    """
    if type(loss) is CrossEntropy and targets.ndim == 1:
        return SoftmaxGradient(loss, targets, outputs, like)
    return LossGradient(loss, targets)
