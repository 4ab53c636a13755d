"""Many models of any architecture that torch.func can vectorise, called as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from proponent.losses import CausalLM, MaskedLM
from proponent.retrain.stacked.batches import Batch
from proponent.retrain.stacked.data import Data
from proponent.retrain.stacked.outputs import OF_OUTPUTS

Tensors = Mapping[str, Tensor]
SEQUENCES = (CausalLM, MaskedLM)


class VmappedStack:
    """M models whose forward pass is vectorised over their parameters; autograd does the rest.

    Losses do not see the models as a stack: where a loss is one of outputs and targets, it gets the outputs of all models
    as one batch, so that it may look at them as it likes.

    Args:
        model: any one of them, in training mode.
        tensors: every parameter and buffer by name, (M, …).
        data: the training examples of all.
        loss: an object with `per_example`, or a function (model, batch) -> (b,).
    """

    def __init__(self, model: nn.Module, tensors: Tensors, data: Data, loss: Any) -> None:
        self.tensors, self.data = tensors, data
        self.trained = [name for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()]
        self.losses = stacked_losses(model, loss)

    @property
    def models(self) -> int:
        return len(next(iter(self.tensors.values())))

    def parameters(self, alike: bool) -> list[Tensor]:
        return [self.tensors[name] for name in self.trained]

    def gradients(self, batch: Batch, alike: bool) -> list[Tensor]:
        first = {name: t[: len(batch.rows)] for name, t in self.tensors.items()}
        own = {name: first[name].detach().requires_grad_() for name in self.trained}
        with torch.enable_grad():
            losses = self.losses(first | own, *self.data.batch(batch.rows))
            found = torch.autograd.grad((losses * batch.weights).sum(), list(own.values()), materialize_grads=True)
        return list(found)


def stacked_losses(model: nn.Module, loss: Any) -> Callable[[Tensors, Tensor, Any], Tensor]:
    """(tensors (k, …), inputs (k, b, …), targets (k, b, …)) -> (k, b) losses of stacked models."""
    if type(loss) in OF_OUTPUTS + SEQUENCES:
        return _OfOutputs(stacked_outputs(model, shared=False), loss)

    called = _with_tensors(model)

    def of_one(tensors: Tensors, inputs: Tensor, targets: Any) -> Tensor:
        return single_losses(lambda *args, **named: called(tensors, *args, **named), loss, (inputs, targets))

    return vmap(of_one, in_dims=(0, 0, 0))


def stacked_outputs(model: nn.Module, shared: bool) -> Callable[[Tensors, Tensor], Tensor]:
    """(tensors (k, …), inputs (k, b, …), or (b, …) where all share them) -> (k, b, …) outputs."""

    called = _with_tensors(model)

    def of_one(tensors: Tensors, inputs: Tensor) -> Tensor:
        made = called(tensors, inputs)
        return made.logits if hasattr(made, "logits") else made

    return vmap(of_one, in_dims=(0, None if shared else 0))


def single_losses(model: Any, loss: Any, batch: Any) -> Tensor:
    """(b,) losses of one model."""
    return loss.per_example(loss.output(model, batch), batch) if hasattr(loss, "per_example") else loss(model, batch)


def _with_tensors(model: nn.Module) -> Callable[..., Any]:
    """The model called with other parameters and buffers, which are named once however often they are used.

    Every place of a tensor is named here, because torch's own tying leaves a module that is used twice with the tensors
    that it was called with.
    """
    names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    places = {
        f"{prefix}.{key}".lstrip("."): names[id(t)]
        for prefix, module in model.named_modules()
        for key, t in (*module._parameters.items(), *module._buffers.items())
        if t is not None
    }

    def called(tensors: Tensors, *args: Any, **named: Any) -> Any:
        own = {place: tensors[name] for place, name in places.items()}
        return functional_call(model, own, args, named, tie_weights=False)

    return called


class _OfOutputs:
    """A loss of outputs and targets, of all models at once."""

    def __init__(self, outputs: Callable[[Tensors, Tensor], Tensor], loss: Any) -> None:
        self.outputs, self.loss = outputs, loss

    def __call__(self, tensors: Tensors, inputs: Tensor, targets: Tensor) -> Tensor:
        made = self.outputs(tensors, inputs).flatten(0, 1)
        return self.loss.per_example(made, (inputs.flatten(0, 1), targets.flatten(0, 1))).view(inputs.shape[:2])


def stacked(models: Sequence[Tensors]) -> dict[str, Tensor]:
    """Parameters and buffers of several models, (M, …)."""
    return {name: torch.stack([m[name] for m in models]) for name in models[0]}
