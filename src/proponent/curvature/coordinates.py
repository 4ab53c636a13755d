"""All parameters of a model as one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.capture.blocks import Block
from proponent.curvature.queries import by_parameter
from proponent.task import Task


@dataclass(frozen=True)
class Coordinates:
    """Where each parameter lies in a vector of all of them.

    >>> Coordinates({"weight": 6, "bias": 2}).split(torch.zeros(3, 8))["bias"].shape
    torch.Size([3, 2])

    Args:
        sizes: numbers of each parameter, in the vector's order.
    """

    sizes: Mapping[str, int]

    @classmethod
    def of(cls, task: Task) -> Coordinates:
        """Of the parameters that the task differentiates."""
        return cls({name: p.numel() for name, p in task.selected().items()})

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """(q, size) as (q, P) of each parameter; nothing is copied."""
        return dict(zip(self.sizes, vectors.split(list(self.sizes.values()), dim=1), strict=True))

    def join(self, parts: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """(q, P) of some parameters as (q, size), the others zero."""
        q = len(next(iter(parts.values())))
        return torch.cat([parts[n] if n in parts else like.new_zeros(q, size) for n, size in self.sizes.items()], dim=1)

    def of_blocks(self, blocks: Mapping[str, Block], precision: torch.dtype) -> Tensor:
        """(b, size): gradients of b examples."""
        parts = by_parameter(blocks, lambda _, block: block.rows())
        first = next(iter(parts.values()))
        return self.join(parts, first).to(precision)
