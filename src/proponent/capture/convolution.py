"""Convolutions: the weight gradients of b examples are the weight gradient of one convolution with b times the groups.

Layers of few input channels, such as a network's first, are the exception: groups of so few are slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from proponent.capture.blocks import CHUNK, Block, Dense, Factors, pieces
from proponent.capture.call import Call
from proponent.capture.products import add_times

CHANNELS = 8
"""Input channels below which products with copied windows are faster than groups of a convolution: by 2 to 4 times on two cores."""

WINDOWS = 2**20
"""Numbers of windows that are copied at once, so that they stay in a processor's cache."""


@dataclass(frozen=True)
class Geometry:
    """How a layer's windows lie, one number per dimension; the padding is with zeros, at both ends."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]

    def windows(self, x: Tensor, outputs: Sequence[int]) -> Tensor:
        """(b, C, *kernel, *outputs): what each output position sees, without a copy but for the padding."""
        x = F.pad(x, [p for d in reversed(self.padding) for p in (d, d)]) if any(self.padding) else x
        strides = x.stride()
        within = tuple(s * d for s, d in zip(strides[2:], self.dilation, strict=True))
        hop = tuple(s * d for s, d in zip(strides[2:], self.stride, strict=True))
        return x.as_strided((*x.shape[:2], *self.kernel, *outputs), (*strides[:2], *within, *hop))


@dataclass(frozen=True)
class Convolution:
    """Σ_t g_t window_t(x)ᵀ for a weight (O, C·k), and Σ_t g_t for a bias, without unfolding the windows.

    Args:
        names: the parameters' names: weight, bias, or both in this order.
        x: (b, C, …) inputs.
        g: (b, O, …) gradients at the outputs.
        geometry: of the layer's windows.
        weight, bias: which of the two are wanted.
    """

    names: tuple[str, ...]
    x: Tensor
    g: Tensor
    geometry: Geometry
    weight: bool = True
    bias: bool = False

    def __len__(self) -> int:
        return len(self.g)

    @property
    def sizes(self) -> tuple[int, ...]:
        o = self.g.shape[1]
        return (o * self.x.shape[1] * math.prod(self.geometry.kernel),) * self.weight + (o,) * self.bias

    @property
    def positions(self) -> int:
        return math.prod(self.g.shape[2:])

    @property
    def sides(self) -> tuple[int, int]:
        """(C·k, O): what a window holds, and the layer's outputs."""
        return self.x.shape[1] * math.prod(self.geometry.kernel), self.g.shape[1]

    def rows(self) -> tuple[Tensor, ...]:
        weight = (self._weight(),) if self.weight else ()
        return weight + ((self.g.flatten(2).sum(2),) if self.bias else ())

    def against(self, rows: Any, out: Tensor) -> None:
        for part in pieces(len(self), sum(self.sizes), CHUNK):
            for theirs, ours in zip(rows, self[part].rows(), strict=True):
                add_times(out[:, part], theirs, ours.T)

    def norm2(self) -> Tensor:
        return torch.stack([part.square().sum(1) for part in self.rows()]).sum(0)

    def __getitem__(self, at: slice) -> Convolution:
        return replace(self, x=self.x[at], g=self.g[at])

    def factors(self, step: int = 1, offset: int = 0) -> Factors:
        """The same gradients as those of a linear layer on the windows: C·k inputs at each output position.

        Args:
            step, offset: only every so many positions, beginning here, along every dimension.
        """
        few = (slice(offset, None, step),) * len(self.geometry.kernel)
        seen = self.geometry.windows(self.x, self.g.shape[2:])[..., *few]
        columns = seen.reshape(len(self), self.sides[0], math.prod(seen.shape[-len(few) :]))
        g = self.g[:, :, *few].flatten(2)
        return Factors(self.names, columns.mT, g.mT, weight=self.weight, bias=self.bias)

    def _weight(self) -> Tensor:
        return _weight_rows(self.x, self.g, self.geometry, 1)


def convolution(call: Call) -> list[Block]:
    """y_t = W · window_t(x) + b."""
    module: Any = call.module
    g = call.grad
    x, padding = _padded(call.args[0], module)
    weight, bias = "weight" in call.wanted, "bias" in call.wanted
    names = ("weight",) * weight + ("bias",) * bias
    geometry = Geometry(module.kernel_size, module.stride, module.dilation, padding)
    if module.groups == 1:
        return [Convolution(names, x, g, geometry, weight, bias)]
    own = (_weight_rows(x, g, geometry, module.groups),) * weight
    return [Dense(names, own + (g.flatten(2).sum(2),) * bias)]


def transposed_convolution(call: Call) -> list[Block]:
    """The convolution whose input gradient this layer's output is: inputs and outputs change places."""
    module: Any = call.module
    x, g = call.args[0], call.grad
    b, weight, bias = len(x), "weight" in call.wanted, "bias" in call.wanted
    names = ("weight",) * weight + ("bias",) * bias
    # One group per example and group: (1, b·C, …).
    shape = module.weight.shape
    like = module.weight.new_empty(b * shape[0], *shape[1:]).to(x)
    options = (list(module.stride), list(module.padding), list(module.dilation), True, list(module.output_padding))
    own = torch.ops.aten.convolution_backward(
        _side_by_side(g), _side_by_side(x), like, None, *options, b * module.groups, [False, True, False]
    )[1]
    return [Dense(names, (own.reshape(b, -1),) * weight + (g.flatten(2).sum(2),) * bias)]


def _weight_rows(x: Tensor, g: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """(b, O·C/groups·k): the weight's gradient of each example."""
    if groups == 1 and x.shape[1] < CHANNELS:
        return _from_windows(x, g, geometry)
    return _as_groups(x, g, geometry, groups)


def _from_windows(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """As products of the output gradients with windows, which are copied for a few examples at a time."""
    inside, made = x.shape[1] * math.prod(geometry.kernel), []
    for part in pieces(len(x), inside * math.prod(g.shape[2:]), WINDOWS):
        columns = geometry.windows(x[part], g.shape[2:])
        made.append(torch.bmm(g[part].flatten(2), columns.reshape(len(columns), inside, -1).mT).flatten(1))
    return torch.cat(made)


def _as_groups(x: Tensor, g: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """Examples laid side by side as groups of one convolution, whose weight gradient is all of theirs."""
    b, c, o = len(x), x.shape[1] // groups, g.shape[1]
    like = x.new_empty(b * o, c, *geometry.kernel)  # only its shape is looked at; an expanded one would be copied
    own = torch.ops.aten.convolution_backward(
        _side_by_side(g),
        _side_by_side(x),
        like,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0] * len(geometry.kernel),
        b * groups,
        [False, True, False],
    )[1]
    rows: Tensor = own.reshape(b, -1)
    return rows


def _side_by_side(x: Tensor) -> Tensor:
    return x.reshape(1, -1, *x.shape[2:])


def _padded(x: Tensor, module: Any) -> tuple[Tensor, tuple[int, ...]]:
    """The input, and the padding with zeros that is left to do: any other is made explicit."""
    reach = module._reversed_padding_repeated_twice
    none = (0,) * len(module.kernel_size)
    if not any(reach):
        return x, none
    if module.padding_mode == "zeros" and reach[::2] == reach[1::2]:
        return x, tuple(reversed(reach[::2]))
    return F.pad(x, reach, mode="constant" if module.padding_mode == "zeros" else module.padding_mode), none
