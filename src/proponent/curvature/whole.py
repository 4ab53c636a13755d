"""Curvatures of all parameters together: what queries become when a solver, not a layer's eigenbasis, inverts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proponent.capture.blocks import CHUNK, Block
from proponent.curvature.coordinates import Coordinates
from proponent.curvature.queries import Directed, Meter, Queries
from proponent.curvature.solvers import Solution

Solver = Callable[[Tensor], Solution]


@dataclass(frozen=True)
class Solved:
    """gᵀ (A + λ)⁻¹ g′ by a solver.

    Args:
        coordinates: of the parameters.
        precision: of vectors.
        solve: (A + λ) u = g for rows of right-hand sides.
        vectors: numbers that a query holds meanwhile, in multiples of its gradient.
    """

    coordinates: Coordinates
    precision: torch.dtype
    solve: Solver
    vectors: int = 6

    def queries(self, blocks: Mapping[str, Block], count: int, finite: Tensor, layers: tuple[str, ...] = ()) -> Queries:
        rows, residual = self.directions(blocks)
        return Directed({}, count, finite, layers, residual, rows)

    def directions(self, blocks: Mapping[str, Block]) -> tuple[dict[str, Tensor], Tensor]:
        found = self.solve(self.coordinates.of_blocks(blocks, self.precision))
        return self.coordinates.split(found.x), found.residual

    def meter(self, zeros: Tensor) -> Meter:
        return Gathered(self, zeros)


@dataclass
class Gathered:
    """Solves for every example of a batch."""

    metric: Solved
    zeros: Tensor
    blocks: dict[str, Block] = field(default_factory=dict)

    def take(self, name: str, block: Block) -> None:
        self.blocks[name] = block

    def total(self) -> Tensor:
        own = self.metric
        step = max(1, CHUNK // own.coordinates.size)
        for at in range(0, len(self.zeros), step):
            part = slice(at, at + step)
            rows = own.coordinates.of_blocks({n: b[part] for n, b in self.blocks.items()}, own.precision)
            self.zeros[part] = self.measured(rows)
        return self.zeros

    def measured(self, rows: Tensor) -> Tensor:
        """(b,) squared norms of gradients (b, P)."""
        return (self.metric.solve(rows).x * rows).sum(1)
