"""Many multi-layer perceptrons of one architecture, with a forward and a backward pass written out for all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.retrain.stacked.batches import Batch
from proponent.retrain.stacked.data import Data
from proponent.retrain.stacked.layers import Dense
from proponent.retrain.stacked.outputs import OutputGradient
from proponent.retrain.stacked.products import Products, products


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's share of the room for k models and b examples: parameters, gradients and activations."""

    dense: Dense
    products: Products
    weight: Tensor
    weight_gradient: Tensor
    bias: Tensor | None
    bias_gradient: Tensor | None
    z: Tensor
    out: Tensor
    gradient: Tensor


class StackedMLP:
    """M perceptrons; their parameters lie in one tensor, layer by layer and within it model by model.

    Nothing is allocated in the loop: a step writes into the same memory as the one before, which so stays in the cache.

    Args:
        dense: their layers.
        models: M.
        data: the training examples of all.
        gradient: of the loss in the outputs.
        batch: examples of a full batch.
    """

    def __init__(self, dense: Sequence[Dense], models: int, data: Data, gradient: OutputGradient, batch: int) -> None:
        self.dense, self.models, self.data, self.gradient = dense, models, data, gradient
        self.inputs = data.inputs.flatten(1)
        like, examples = self.inputs, models * batch
        shapes: dict[str, tuple[int, ...]] = {d.key("weight"): (models, d.outputs, d.inputs) for d in dense}
        shapes |= {d.key("bias"): (models, d.outputs) for d in dense if d.bias}
        self.flat = like.new_zeros(sum(torch.Size(s).numel() for s in shapes.values()))
        self.flat_gradient = torch.zeros_like(self.flat)
        self.tensors, self.gradients_of = _parts(self.flat, shapes), _parts(self.flat_gradient, shapes)
        self.products = [products(d.outputs, d.inputs, batch, like) for d in dense]
        self.gathered = like.new_empty(examples * dense[0].inputs)
        self.z = [like.new_empty(examples * d.outputs) for d in dense]
        self.out = [torch.empty_like(z) if _apart(d) else z for d, z in zip(dense, self.z, strict=True)]
        self.backward = [torch.empty_like(z) for z in self.z]
        self.rooms: dict[tuple[int, int], list[_Layer]] = {}

    def parameters(self, alike: bool) -> list[Tensor]:
        return [self.flat] if alike else list(self.tensors.values())

    def gradients(self, batch: Batch, alike: bool) -> list[Tensor]:
        k, b = batch.rows.shape
        layers, rows = self._room(k, b), batch.rows.reshape(-1)
        x = self.gathered[: len(rows) * self.inputs.shape[1]].view(len(rows), -1)
        torch.index_select(self.inputs, 0, rows, out=x)
        first = x.view(k, b, -1).mT
        output = self._forward(layers, first)
        self.gradient(output, rows, batch.weights, layers[-1].gradient)
        self._backward(layers, first)
        return [self.flat_gradient] if alike else [g[:k] for g in self.gradients_of.values()]

    def _forward(self, layers: Sequence[_Layer], inputs: Tensor) -> Tensor:
        for own in layers:
            own.products.outputs(own.weight, inputs, own.z)
            if own.bias is not None:
                own.z.add_(own.bias)
            if own.dense.activation is not None:
                own.dense.activation.forward(own.z, own.out)
            inputs = own.out
        return inputs

    def _backward(self, layers: Sequence[_Layer], first: Tensor) -> None:
        for at in reversed(range(len(layers))):
            own = layers[at]
            if own.dense.activation is not None:
                kept = own.out if own.dense.activation.keeps_output else own.z
                own.dense.activation.backward(own.gradient, kept)
            inputs = layers[at - 1].out if at else first
            own.products.weight_gradient(own.gradient, inputs, own.weight_gradient)
            if own.bias_gradient is not None:
                torch.sum(own.gradient, 2, out=own.bias_gradient)
            if at:  # nobody needs the gradient in the examples themselves
                own.products.input_gradient(own.weight, own.gradient, layers[at - 1].gradient)

    def _room(self, k: int, b: int) -> list[_Layer]:
        """Views for the first k models and b examples; made once, because views take as long as small products."""
        if (k, b) not in self.rooms:
            self.rooms[k, b] = [self._layer(at, k, b) for at in range(len(self.dense))]
        return self.rooms[k, b]

    def _layer(self, at: int, k: int, b: int) -> _Layer:
        d = self.dense[at]
        weight, bias = d.key("weight"), d.key("bias")

        def room(flat: Tensor) -> Tensor:
            return flat[: k * d.outputs * b].view(k, d.outputs, b)

        return _Layer(
            dense=d,
            products=self.products[at],
            weight=self.tensors[weight][:k],
            weight_gradient=self.gradients_of[weight][:k],
            bias=self.tensors[bias][:k, :, None] if d.bias else None,
            bias_gradient=self.gradients_of[bias][:k] if d.bias else None,
            z=room(self.z[at]),
            out=room(self.out[at]),
            gradient=room(self.backward[at]),
        )


def _apart(dense: Dense) -> bool:
    return dense.activation is not None and not dense.activation.keeps_output


def _parts(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    sizes = [torch.Size(s).numel() for s in shapes.values()]
    return {name: part.view(shapes[name]) for name, part in zip(shapes, flat.split(sizes), strict=True)}
