"""Optimisers as specs: the arithmetic of torch.optim, in place on a few large tensors that hold many models.

A rate is one number where all models have the same, else one per model, in a tensor that broadcasts to the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from proponent.errors import InputError, did_you_mean

Rate: TypeAlias = "float | Tensor"
Moments: TypeAlias = "list[list[Tensor]]"


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum, v ← μ v + g + λ w, w ← w − η v; or with Nesterov's step, w ← w − η (g + λ w + μ v).

    >>> w = torch.tensor([1.0])
    >>> SGD(lr=0.5, momentum=0.0).step([w], [torch.tensor([1.0])], [[]], [0.5], 0)
    >>> w
    tensor([0.5000])

    Args:
        lr: learning rate η, which the schedule multiplies.
        momentum: μ.
        nesterov: look ahead by one step of momentum.
        weight_decay: λ, of all parameters, added to the gradient.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _require(self.lr > 0, "lr", self.lr, "positive")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")

    def start(self, parameters: Sequence[Tensor]) -> Moments:
        """The velocity of each parameter, where there is momentum."""
        return [[torch.zeros_like(p)] if self.momentum else [] for p in parameters]

    def step(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        moments: Moments,
        rates: Sequence[Rate],
        step: int,
    ) -> None:
        """One step, in place."""
        for p, g, own, rate in zip(parameters, gradients, moments, rates, strict=True):
            g = g.add(p, alpha=self.weight_decay) if self.weight_decay else g
            if self.momentum:
                (v,) = own
                torch.add(g, v, alpha=self.momentum, out=v)
                g = g.add(v, alpha=self.momentum) if self.nesterov else v
            _descend(p, g, rate)


@dataclass(frozen=True)
class Adam:
    """Steps of m / (√v + ε), with m and v the running means of g + λ w and of its square, both without their bias.

    Args:
        lr: learning rate η, which the schedule multiplies.
        betas: shares of the past in the running means.
        eps: ε.
        weight_decay: λ, of all parameters, added to the gradient.

    Source: Kingma & Ba, Adam: a method for stochastic optimization, ICLR 2015.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _require(self.lr > 0, "lr", self.lr, "positive")
        _require(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "in [0, 1)")
        _require(self.eps > 0, "eps", self.eps, "positive")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")

    def start(self, parameters: Sequence[Tensor]) -> Moments:
        """The running means, and room for a step, of each parameter."""
        return [[torch.zeros_like(p) for _ in range(3)] for p in parameters]

    def step(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        moments: Moments,
        rates: Sequence[Rate],
        step: int,
    ) -> None:
        """One step, in place."""
        for p, g, own, rate in zip(parameters, gradients, moments, rates, strict=True):
            g = g.add(p, alpha=self.weight_decay) if self.weight_decay else g
            self._move(p, g, own, rate, step)

    def _move(self, p: Tensor, g: Tensor, own: list[Tensor], rate: Rate, step: int) -> None:
        (first, second), (m, v, room) = self.betas, own
        m.lerp_(g, 1 - first)
        v.mul_(second).addcmul_(g, g, value=1 - second)
        torch.sqrt(v, out=room).div_((1 - second ** (step + 1)) ** 0.5).add_(self.eps)
        torch.div(m, room, out=room)
        _descend(p, room, rate / (1 - first ** (step + 1)))


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay is not part of the gradient: w ← (1 − ηλ) w before each step.

    Args:
        lr, betas, eps: as in `Adam`.
        weight_decay: λ, of all parameters.

    Source: Loshchilov & Hutter, Decoupled weight decay regularization, ICLR 2019.
    """

    weight_decay: float = 0.01

    def step(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        moments: Moments,
        rates: Sequence[Rate],
        step: int,
    ) -> None:
        """One step, in place."""
        for p, g, own, rate in zip(parameters, gradients, moments, rates, strict=True):
            if self.weight_decay:
                p.mul_(1 - rate * self.weight_decay)
            self._move(p, g, own, rate, step)


Optimizer: TypeAlias = "SGD | Adam"
OPTIMIZERS: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def named_optimizer(optimizer: Any, lr: float | None = None) -> Optimizer:
    """An optimiser, by name or as it is; a learning rate goes with a name.

    >>> named_optimizer("sgd", lr=0.3)
    SGD(lr=0.3, momentum=0.9, nesterov=False, weight_decay=0.0)

    Raises:
        InputError: it is neither, or a learning rate comes with a spec that has its own.
    """
    if isinstance(optimizer, SGD | Adam):
        if lr is not None:
            raise InputError(
                f"lr={lr} beside {optimizer}", "one learning rate", "write it into the optimizer: SGD(lr=…)"
            )
        return optimizer
    if not isinstance(optimizer, str) or optimizer.lower() not in OPTIMIZERS:
        raise InputError(
            f"optimizer {optimizer!r}",
            f"one of {', '.join(OPTIMIZERS)}, or SGD(…), Adam(…), AdamW(…)",
            did_you_mean(str(optimizer), OPTIMIZERS),
        )
    kind = OPTIMIZERS[optimizer.lower()]
    return kind() if lr is None else kind(lr=lr)


def _descend(p: Tensor, direction: Tensor, rate: Rate) -> None:
    if isinstance(rate, Tensor):
        p.addcmul_(direction, rate, value=-1)
    else:
        p.add_(direction, alpha=-rate)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise InputError(f"{name}={value}", f"{name} {wanted}", f"pass a {name} that is {wanted}")
