"""The layers of a plain multi-layer perceptron, read off a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """A function of each number, with its derivative.

    Args:
        forward: (z, out) writes the activations; `out` is z where `keeps_output`.
        backward: (gradient, kept) multiplies the gradient by the derivative in place; `kept` is the output or z.
        keeps_output: whether the derivative is known from the output.
    """

    forward: Callable[[Tensor, Tensor], Any]
    backward: Callable[[Tensor, Tensor], Any]
    keeps_output: bool


@dataclass(frozen=True)
class Dense:
    """A linear layer and what follows it.

    Args:
        name: of the linear layer in its model.
        inputs, outputs: how many.
        bias: whether it has one.
        activation: None where there is none.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool
    activation: Activation | None

    def key(self, kind: str) -> str:
        """The name of its "weight" or "bias" in its model."""
        return f"{self.name}.{kind}".lstrip(".")


def _relu(module: Any) -> Activation:
    return Activation(
        lambda z, out: torch.relu_(z), lambda g, a: aten.threshold_backward.grad_input(g, a, 0, grad_input=g), True
    )


def _tanh(module: Any) -> Activation:
    return Activation(lambda z, out: z.tanh_(), lambda g, a: aten.tanh_backward.grad_input(g, a, grad_input=g), True)


def _sigmoid(module: Any) -> Activation:
    return Activation(
        lambda z, out: z.sigmoid_(), lambda g, a: aten.sigmoid_backward.grad_input(g, a, grad_input=g), True
    )


def _gelu(module: Any) -> Activation:
    how = module.approximate
    return Activation(
        lambda z, out: aten.gelu.out(z, approximate=how, out=out),
        lambda g, z: aten.gelu_backward.grad_input(g, z, approximate=how, grad_input=g),
        False,
    )


def _silu(module: Any) -> Activation:
    return Activation(
        lambda z, out: aten.silu.out(z, out=out), lambda g, z: aten.silu_backward.grad_input(g, z, grad_input=g), False
    )


def _leaky_relu(module: Any) -> Activation:
    slope = module.negative_slope
    return Activation(
        lambda z, out: aten.leaky_relu.out(z, slope, out=out),
        lambda g, z: aten.leaky_relu_backward.grad_input(g, z, slope, False, grad_input=g),
        False,
    )


ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: _relu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.GELU: _gelu,
    nn.SiLU: _silu,
    nn.LeakyReLU: _leaky_relu,
}


def dense_layers(model: nn.Module, inputs: torch.Size) -> list[Dense] | None:
    """The layers of a Sequential of Flatten, Linear and activations; None for any other model.

    >>> dense_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.Size([2, 2]))[1].name
    '3'

    Args:
        inputs: the shape of one example.
    """
    leaves = list(_leaves(model, ""))
    parameters = dict(model.named_parameters())
    if any(m is None for _, m in leaves) or not all(p.requires_grad for p in parameters.values()):
        return None
    layers: list[Dense] = []
    flat = len(inputs) == 1
    for name, m in leaves:
        if isinstance(m, nn.Flatten) and type(m) is nn.Flatten:
            if m.start_dim != 1 or m.end_dim not in (-1, len(inputs)) or layers:
                return None
            flat = True
        elif isinstance(m, nn.Linear) and type(m) is nn.Linear and flat:
            layers.append(Dense(name, m.in_features, m.out_features, m.bias is not None, None))
        elif type(m) in ACTIVATIONS and layers and layers[-1].activation is None:
            layers.append(replace(layers.pop(), activation=ACTIVATIONS[type(m)](m)))
        elif not (type(m) is nn.Identity or (isinstance(m, nn.Dropout) and m.p == 0)):
            return None
    named = {layer.key(kind) for layer in layers for kind in ("weight", "bias")[: 1 + layer.bias]}
    fits = bool(layers) and layers[0].inputs == inputs.numel() and named == parameters.keys()
    return layers if fits and not any(True for _ in model.buffers()) else None


def _leaves(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module | None]]:
    """Leaves in the order they are called in; None where the model does anything but call them."""
    if _hooked(model):
        yield name, None
    elif type(model) is nn.Sequential:
        for key, child in model._modules.items():  # named_children() leaves out a layer's second use
            yield from _leaves(cast(nn.Module, child), f"{name}.{key}".lstrip("."))
    else:
        yield name, model


def _hooked(model: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(model, kind) for kind in hooks) or "forward" in vars(model)
