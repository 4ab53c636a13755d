"""The exact Hessian of a convolutional network with tanh, all of it, in large matrix products.

By products with the unit vectors it takes a pass for each parameter; here a layer's units share theirs. With z the inputs of all
units, J their derivatives in the parameters, δ = ∂ℓ/∂z and ȧ, ä the derivatives of tanh:

    ∇²ℓ = Jᵀ_out (∇²ℓ in the logits) J_out + Σ_units (∂ℓ/∂a) ä J_zᵀ J_z + Σ_layers δ ⊗ ∂(their inputs)/∂θ, and its transpose
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Layer:
    """A convolution's weights (o, c, k, k), of which `below` parameters come before."""

    weight: Tensor
    bias: Tensor
    stride: int
    below: int

    @property
    def weights(self) -> int:
        """Of one output channel."""
        return self.weight[0].numel()

    @property
    def above(self) -> int:
        return self.below + self.weight.numel() + len(self.bias)

    def own(self, channel: int) -> Tensor:
        """Indices of a channel's weights, then of its bias."""
        first, bias = self.below + channel * self.weights, self.below + self.weight.numel() + channel
        return torch.cat((torch.arange(first, first + self.weights), torch.tensor([bias])))

    def inputs(self, a: Tensor) -> Tensor:
        """(b, weights + 1, positions): what each weight of a channel is multiplied with; 1 for the bias."""
        patches = F.unfold(a, self.weight.shape[-1], stride=self.stride)
        return F.pad(patches, (0, 0, 0, 1), value=1.0)


def layers(net: nn.Sequential) -> Iterator[Layer]:
    below = 0
    for module in net:
        if isinstance(module, nn.Conv2d):
            layer = Layer(module.weight.detach(), module.bias.detach(), module.stride[0], below)
            below = layer.above
            yield layer


def add_hessian(made: Tensor, net: nn.Sequential, x: Tensor, y: Tensor, weight: float) -> None:
    """weight · Σ ∇²ℓ; what couples a layer's weights with those below it is put below the diagonal, and twice.

    Args:
        made: (P, P), added to; its symmetric part is what is asked for.
        net: convolutions with tanh, the mean over positions, a linear layer.
    """
    z, a, seen, units = x, x, list(layers(net)), []
    for layer in seen:
        z = F.conv2d(a, layer.weight, layer.bias, layer.stride).requires_grad_()
        units.append(z)
        a = z.tanh()
    logits = F.linear(a.mean((2, 3)), net[-1].weight.detach(), net[-1].bias.detach())
    *deltas, slope = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum") * weight, [*units, logits])
    a, tangents = x, x.new_zeros(len(x), 0, *x.shape[1:])
    for layer, z, delta in zip(seen, units, deltas, strict=True):
        add_weights(made, layer, tangents, delta)
        tangents, a = add_units(made, layer, a, tangents, z.detach().tanh(), delta)
    add_outputs(made, net[-1].weight.detach(), a.mean((2, 3)), tangents.mean((3, 4)), logits.detach(), slope, weight)


def add_weights(made: Tensor, layer: Layer, tangents: Tensor, delta: Tensor) -> None:
    """δ ⊗ ∂(the layer's inputs)/∂θ: a convolution of the tangents with δ.

    Args:
        tangents: (b, below, c, h, w) of the inputs.
        delta: (b, o, h, w).
    """
    if layer.below:
        stacked = tangents.permute(1, 2, 0, 3, 4).flatten(0, 1)  # (below · c, b, h, w)
        k = layer.weight.shape[-1]
        coupled = F.conv2d(stacked, delta.transpose(0, 1), dilation=layer.stride)[:, :, :k, :k]
        coupled = coupled.reshape(layer.below, -1, *coupled.shape[1:]).permute(2, 1, 3, 4, 0)  # (o, c, k, k, below)
        made[layer.below : layer.above - len(layer.bias), : layer.below] += 2 * coupled.reshape(-1, layer.below)


def add_units(
    made: Tensor, layer: Layer, a: Tensor, tangents: Tensor, value: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ (∂ℓ/∂a) ä J_zᵀ J_z of a layer's units; the tangents of their values, and these.

    δ = (∂ℓ/∂a) ȧ and ä = −2 a ȧ, so the weight is −2 a δ.
    """
    b, o, h, w = value.shape
    below, own = layer.below, layer.inputs(a)
    lower = F.conv2d(tangents.flatten(0, 1), layer.weight, None, layer.stride).view(b, below, o, h, w)
    full = value.new_zeros(b, layer.above, o, h, w)
    full[:, :below] = lower
    for channel in range(o):
        rows = (
            torch.cat((lower[:, :, channel].flatten(2), own), 1).transpose(0, 1).flatten(1)
        )  # (parameters, b · positions)
        at = layer.own(channel)
        product = (rows * (-2 * value * delta)[:, channel].reshape(-1)) @ rows.T
        made[:below, :below] += product[:below, :below]
        made[at, :below] += 2 * product[below:, :below]
        made[at[:, None], at] += product[below:, below:]
        full[:, at, channel] = own.view(b, -1, h, w)
    return full.mul_((1 - value**2)[:, None]), value


def add_outputs(
    made: Tensor, weights: Tensor, a: Tensor, tangents: Tensor, logits: Tensor, slope: Tensor, weight: float
) -> None:
    """The Gauss-Newton matrix, and the coupling of the last layer with its inputs' tangents (b, below, k)."""
    (c, k), (b, below) = weights.shape, tangents.shape[:2]
    made[below : below + c * k, :below] += 2 * torch.einsum("bc,bpk->ckp", slope, tangents).flatten(0, 1)
    jacobian = logits.new_zeros(b, c, len(made))
    jacobian[:, :, :below] = (tangents @ weights.T).transpose(1, 2)
    for one in range(c):
        jacobian[:, one, below + one * k : below + (one + 1) * k] = a
        jacobian[:, one, below + c * k + one] = 1.0
    p = logits.softmax(1)
    centred = jacobian - torch.einsum("bc,bcp->bp", p, jacobian)[:, None]
    rows = (centred * (p * weight).sqrt()[:, :, None]).flatten(0, 1)
    made += rows.T @ rows
