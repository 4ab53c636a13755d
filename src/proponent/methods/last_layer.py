"""The last linear layer of a model: found, its inputs as features, and its training as a convex problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proponent.batches import split
from proponent.convex.losses import Logistic, Loss, Softmax, Squared
from proponent.convex.problem import Problem
from proponent.errors import InputError, UnsupportedModel, did_you_mean
from proponent.losses import BinaryCrossEntropy, CrossEntropy, SquaredError, named_loss, require_classes
from proponent.rows import Rows
from proponent.store.matrix import MEMORY_LIMIT
from proponent.task import Task

Array = np.ndarray[Any, np.dtype[Any]]

BATCH = 1024


@dataclass(frozen=True)
class LastLayer:
    """The linear layer whose output is the model's.

    Args:
        task: of the model.
        name: of the layer.
        module: the layer.
    """

    task: Task
    name: str
    module: nn.Linear

    @classmethod
    def of(cls, task: Task, rows: Rows, name: str | None = None) -> LastLayer:
        """The named one, or the one that the model ends in.

        Raises:
            UnsupportedModel: no linear layer's output is the model's, one vector for each example.
            InputError: there is no linear layer of that name.
        """
        layers = {n: m for n, m in task.net.named_modules() if isinstance(m, nn.Linear)}
        if name is not None and name not in layers:
            raise InputError(f"layer {name!r}", "the name of a linear layer", did_you_mean(name, layers))
        with task.watching(), torch.no_grad():
            batch = task.batch(rows, slice(0, min(2, len(rows))))
            heard, output = _heard(task.net, layers if name is None else {name: layers[name]}, batch)
        ends = [n for n, (_, y) in heard.items() if y.shape == output.shape and torch.equal(y, output)]
        if not ends or output.ndim != 2:
            raise UnsupportedModel(
                f"a model whose output, of shape {tuple(output.shape)}, is not that of "
                + ("one of its linear layers" if name is None else f"its layer {name!r}"),
                "a linear layer at the end, with one vector of outputs for each example",
                "give the model such an end, or use Influence(…) with parameters='NAME.*' of any layer",
            )
        return cls(task, ends[-1], layers[ends[-1]])

    @property
    def weights(self) -> Array:
        """(c, d) in double precision, the bias as the last column."""
        parts = [self.module.weight] + ([] if self.module.bias is None else [self.module.bias[:, None]])
        return torch.cat(parts, 1).detach().double().cpu().numpy()

    def features(self, rows: Rows) -> tuple[Array, Array | None]:
        """(n, d) inputs of the layer in double precision, with a one last where it has a bias; and targets, where given."""
        width = self.module.in_features + (self.module.bias is not None)
        if 8 * len(rows) * width > MEMORY_LIMIT:
            raise InputError(
                f"{len(rows):,} examples with {width:,} features each, {8 * len(rows) * width / 2**30:.1f} GiB",
                f"at most {MEMORY_LIMIT / 2**30:.0f} GiB in memory",
                "take a part of the training examples",
            )
        made, targets = np.ones((len(rows), width)), []
        with self.task.watching(), torch.no_grad():
            for at in rows.parts(BATCH):
                batch = self.task.batch(rows, at)
                x = _heard(self.task.net, {self.name: self.module}, batch)[0][self.name][0]
                made[at, : self.module.in_features] = x.double().cpu().numpy()
                targets.append(_parts(batch)[2])
        if any(t is None for t in targets):
            return made, None
        return made, torch.cat(targets).cpu().numpy()

    def problem(self, features: Array, targets: Array, l2: float) -> Problem:
        """The mean loss of a linear layer on these features, plus l2/2 times the square of all its weights.

        Raises:
            UnsupportedModel: a loss that is not the softmax's, the logistic or the squared one of a single output.
        """
        n, d = features.shape
        loss, y, weight = self._loss(targets)
        return Problem(features, y, np.full(n, weight / n), loss, np.full(d, l2))

    def signs(self, targets: Array | None, outputs: Array) -> tuple[Array, Array]:
        """(q,) whose logit is explained, and its sign: the target's where given, else the predicted class's."""
        own = named_loss(self.task.loss)
        if isinstance(own, CrossEntropy):
            which = outputs.argmax(1) if targets is None else targets.reshape(-1).astype(int)
            return which, np.ones(len(outputs))
        first = np.zeros(len(outputs), dtype=int)
        if isinstance(own, BinaryCrossEntropy):
            positive = outputs[:, 0] > 0 if targets is None else targets.reshape(-1) > 0.5
            return first, np.where(positive, 1.0, -1.0)
        return first, np.ones(len(outputs))

    def _loss(self, targets: Array) -> tuple[Loss, Array, float]:
        """The loss, its targets, and what it is multiplied by."""
        own, c, y = named_loss(self.task.loss), self.module.out_features, targets.reshape(-1)
        if isinstance(own, CrossEntropy) and own.label_smoothing == 0:
            require_classes(torch.from_numpy(y), c, ignore_index=-1)
            return Softmax(c), y.astype(int), 1.0
        if isinstance(own, BinaryCrossEntropy) and c == 1 and set(np.unique(y)) <= {0, 1}:
            return Logistic(), 2.0 * y - 1, 1.0
        if isinstance(own, SquaredError) and c == 1:
            return Squared(), y.astype(float), 2.0
        raise UnsupportedModel(
            f"the loss {self.task.loss!r} with {c} outputs",
            "cross_entropy without label smoothing; binary_cross_entropy with targets 0 and 1, or squared_error, of one output",
            "use Influence(…), which takes any loss",
        )


def _heard(net: nn.Module, layers: dict[str, nn.Linear], batch: Any) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Inputs and outputs of layers in the order of their calls, and the model's output."""
    heard: dict[str, tuple[Tensor, Tensor]] = {}

    def hear(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            heard.pop(name, None)
            heard[name] = args[0], output

        return hook

    handles = [layer.register_forward_hook(hear(name)) for name, layer in layers.items()]
    try:
        args, named, _ = _parts(batch)
        out = net(*args, **named)
    finally:
        for handle in handles:
            handle.remove()
    return heard, out.logits if hasattr(out, "logits") else out


def _parts(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """As `split`, for batches without a target too."""
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return tuple(batch), {}, None
    return split(batch)
