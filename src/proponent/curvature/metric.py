"""What stands between two gradients: a metric prepares the query side once, and measures single gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from proponent.capture.blocks import Block, Factors, ghost_is_cheaper
from proponent.capture.grid import Grid, Levels
from proponent.capture.products import times


class Prepared(Protocol):
    """One block of q queries, multiplied by the metric."""

    def add(self, block: Block, out: Tensor) -> None:
        """out (q, b) += g_qᵀ P g_i."""
        ...


class Metric(Protocol):
    """gᵀ P g′, block by block.

    Args:
        keeps_factors: one-position layers' queries are kept as factors, not as gradients.
    """

    @property
    def keeps_factors(self) -> bool: ...

    def prepare(self, name: str, query: Block) -> Prepared: ...

    def norm2(self, name: str, block: Block) -> Tensor:
        """(b,) gᵀ P g."""
        ...


@dataclass(frozen=True)
class Identity:
    """P = 1: gradients are compared as they are."""

    keeps_factors: bool = True

    def prepare(self, name: str, query: Block) -> Prepared:
        if isinstance(query, Factors) and query.positions == 1 and query.weight:
            grid = Grid.of(query.a[:, 0])
            if grid is not None and (levels := grid.levels(query.a[:, 0])) is not None:
                return OnGrid(query, levels)
        return Plain(query)

    def norm2(self, name: str, block: Block) -> Tensor:
        return block.norm2()


@dataclass
class Plain:
    """Queries as factors or as rows, whichever makes the products cheaper; rows are formed once."""

    query: Block
    rows: tuple[Tensor, ...] = field(default=())

    def add(self, block: Block, out: Tensor) -> None:
        if isinstance(self.query, Factors) and isinstance(block, Factors) and ghost_is_cheaper(self.query, block):
            self.query.dot(block, out)
            return
        self.rows = self.rows or self.query.rows()
        block.against(self.rows, out)


@dataclass(frozen=True)
class OnGrid:
    """Queries whose layer inputs lie on a grid of 256 levels; training examples that do not are taken as they are."""

    query: Factors
    levels: Levels

    def add(self, block: Block, out: Tensor) -> None:
        levels = None
        if isinstance(block, Factors) and block.positions == 1 and block.weight:
            levels = self.levels.grid.levels(block.a[:, 0])
        if levels is None:
            Plain(self.query).add(block, out)
            return
        assert isinstance(block, Factors)
        out.addcmul_(self.levels.dot(levels, float(block.bias)), times(self.query.g[:, 0], block.g[:, 0].T))
