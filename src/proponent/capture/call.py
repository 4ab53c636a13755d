"""One call of a module in a forward pass: what went in, and the gradient of what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """A forward call with its output's gradient; every tensor has the batch first.

    Args:
        module: the module that was called.
        args, kwargs: its inputs, detached.
        grad: (b, …) gradient at its output.
        wanted: local names of the parameters whose gradients are wanted, such as {"weight", "bias"}.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grad: Tensor
    wanted: frozenset[str]
