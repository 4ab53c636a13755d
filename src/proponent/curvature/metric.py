"""What stands between two gradients: a metric prepares the query side once, and measures single gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from proponent.capture.blocks import PRODUCTS, Block, Dense, Factors, ghost_is_cheaper, pieces
from proponent.capture.grid import Grid, Levels
from proponent.capture.products import times
from proponent.curvature.queries import Blockwise, Meter, Prepared, Queries, by_parameter


class Metric(Protocol):
    """gᵀ P g′.

    Args:
        vectors: numbers that are held of a query, in multiples of its gradient; 0 where layers with one position are kept
            as factors.
    """

    @property
    def vectors(self) -> int: ...

    def queries(self, blocks: Mapping[str, Block], count: int, finite: Tensor, layers: tuple[str, ...] = ()) -> Queries:
        """Gradients of q queries, by block, multiplied by P; see `Queries`."""
        ...

    def directions(self, blocks: Mapping[str, Block]) -> tuple[dict[str, Tensor], Tensor | None]:
        """P g of q gradients as (q, P) by parameter, without any shortcut; and a solver's residuals, as in `Queries`."""
        ...

    def meter(self, zeros: Tensor) -> Meter:
        """What measures the gradients of b examples.

        Args:
            zeros: (b,) for the squared norms.
        """
        ...


@dataclass(frozen=True)
class Identity(Blockwise):
    """P = 1: gradients are compared as they are."""

    vectors: int = 0

    def prepare(self, name: str, query: Block) -> Prepared:
        if isinstance(query, Factors) and query.positions == 1 and query.weight:
            grid = Grid.of(query.a[:, 0])
            if grid is not None and (levels := grid.levels(query.a[:, 0])) is not None:
                return OnGrid(query, levels)
        if isinstance(query, Factors) and ghost_is_cheaper(query, query):
            return Plain(query)
        return Plain(Dense(query.names, query.rows()))  # the factors are not needed any more

    def directions(self, blocks: Mapping[str, Block]) -> tuple[dict[str, Tensor], None]:
        return by_parameter(blocks, lambda name, block: block.rows()), None

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
        if not (isinstance(block, Factors) and block.positions == 1 and block.weight):
            Plain(self.query).add(block, out)
            return
        for part in pieces(len(block), max(len(self.query), block.sides[0]), PRODUCTS):
            self._add(block[part], out[:, part])

    def _add(self, block: Factors, out: Tensor) -> None:
        levels = self.levels.grid.levels(block.a[:, 0])
        if levels is None:
            Plain(self.query).add(block, out)
            return
        out.addcmul_(self.levels.dot(levels, float(block.bias)), times(self.query.g[:, 0], block.g[:, 0].T))
