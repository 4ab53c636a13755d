"""DataInf: every layer's inverse curvature as the mean of single examples' inverses, in one pass over these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.capture.blocks import Block
from proponent.curvature.kinds import targets
from proponent.curvature.operators import Moment, weighted
from proponent.curvature.queries import Directed, Meter, Queries
from proponent.curvature.solvers import Solution
from proponent.curvature.whole import Gathered, Solved


@dataclass(frozen=True)
class HarmonicMean:
    """(1/λ) [g − (1/n) Σ_i g_i (g_i·g) / (λ + ‖g_i‖²)], the products and lengths those of one layer.

    Args:
        operator: says which gradients g_i are.
        damping: λ.
    """

    operator: Moment
    damping: float
    vectors: int = 3

    def queries(self, blocks: Mapping[str, Block], count: int, finite: Tensor, layers: tuple[str, ...] = ()) -> Queries:
        return Directed({}, count, finite, layers, None, self.directions(blocks)[0])

    def directions(self, blocks: Mapping[str, Block]) -> tuple[dict[str, Tensor], None]:
        own = self.operator.coordinates
        return own.split(self._solve(own.of_blocks(blocks, self.operator.capture.task.precision)).x), None

    def meter(self, zeros: Tensor) -> Meter:
        task = self.operator.capture.task
        return Gathered(Solved(self.operator.coordinates, task.precision, self._solve), zeros)

    def _solve(self, rhs: Tensor) -> Solution:
        operator = self.operator
        total = torch.zeros_like(rhs)
        own, into = operator.coordinates.split(rhs), operator.coordinates.split(total)
        for part in operator.parts():
            batch = operator.capture.task.batch(operator.rows, part)
            for blocks in targets(operator.kind, operator.capture, batch, part.start):
                for block in blocks.values():
                    along = rhs.new_zeros(len(rhs), len(block))
                    block.against([own[n] for n in block.names], along)
                    along /= self.damping + block.norm2()
                    for name, made in zip(block.names, weighted(block, along), strict=True):
                        into[name].add_(made)
        x = (rhs - total / len(operator.rows)) / self.damping
        return Solution(x, rhs.new_full((len(rhs),), torch.nan), 1)
