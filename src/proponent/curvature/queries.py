"""The query side of the scoring loop: what training examples' gradients are met by, block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from proponent.capture.blocks import CHUNK, Block
from proponent.capture.products import times


class Prepared(Protocol):
    """One block of q queries, multiplied by the metric."""

    def add(self, block: Block, out: Tensor) -> None:
        """out (q, b) += g_qᵀ P g_i."""
        ...


@dataclass(frozen=True)
class Queries:
    """Prepared gradients of the measurements of q queries, block by block.

    Args:
        blocks: by block name.
        count: q.
        finite: (q,) whether the query's measurement is finite.
        layers: names of blocks whose products are kept apart; where there are none, they are added up.
        residual: (q,) ‖A u − g‖ / ‖g‖ of each query's solution u, where a solver stopped short of the exact one.
    """

    blocks: Mapping[str, Prepared]
    count: int
    finite: Tensor
    layers: tuple[str, ...] = ()
    residual: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is gathered for one training example: (q,), or (layers, q)."""
        return (len(self.layers), self.count) if self.layers else (self.count,)

    def meet(self, name: str, block: Block, out: Tensor) -> None:
        """out (*shape, b) += the products with one block."""
        if name in self.blocks:
            self.blocks[name].add(block, self._place(name, out))

    def finish(self, out: Tensor) -> Tensor:
        """The products, once every block was met."""
        return out

    def _place(self, name: str, out: Tensor) -> Tensor:
        return out[self.layers.index(name)] if self.layers else out


@dataclass(frozen=True)
class Directed(Queries):
    """Queries as directions in the space of all parameters.

    Args:
        rows: (q, P) by parameter.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)

    def meet(self, name: str, block: Block, out: Tensor) -> None:
        block.against([self.rows[n] for n in block.names], self._place(name, out))


@dataclass(frozen=True)
class Mixed(Queries):
    """Combinations of r gradients that are met as they are: mix (q, r) times the products with them."""

    mix: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @property
    def shape(self) -> tuple[int, ...]:
        r = self.mix.shape[1]
        return (len(self.layers), r) if self.layers else (r,)

    def finish(self, out: Tensor) -> Tensor:
        mix = self.mix.to(out.dtype)
        if not self.layers:
            return times(mix, out)
        return torch.stack([times(mix, layer) for layer in out])


@dataclass(frozen=True)
class Beside:
    """Gradients of several blocks below each other, (r₁ + r₂ + …, b); those of None are zero."""

    parts: tuple[tuple[Prepared | None, int], ...]

    def add(self, block: Block, out: Tensor) -> None:
        at = 0
        for prepared, size in self.parts:
            if prepared is not None:
                prepared.add(block, out[at : at + size])
            at += size


@dataclass(frozen=True)
class FewAtOnce:
    """Many gradients as they are, their rows formed a few at a time for each batch that they meet: memory before time."""

    block: Block

    def add(self, block: Block, out: Tensor) -> None:
        step = max(1, 4 * CHUNK // max(1, sum(self.block.sizes)))
        for at in range(0, len(self.block), step):
            part = slice(at, at + step)
            block.against(self.block[part].rows(), out[part])


class Meter(Protocol):
    """Takes the blocks of a batch, and gives the squared norms of its gradients."""

    def take(self, name: str, block: Block) -> None: ...

    def total(self) -> Tensor:
        """(b,) gᵀ P g."""
        ...


class Blockwise:
    """A metric that couples no two blocks: each is prepared and measured by itself."""

    def prepare(self, name: str, query: Block) -> Prepared:
        raise NotImplementedError

    def norm2(self, name: str, block: Block) -> Tensor:
        """(b,) gᵀ P g of one block."""
        raise NotImplementedError

    def queries(self, blocks: Mapping[str, Block], count: int, finite: Tensor, layers: tuple[str, ...] = ()) -> Queries:
        return Queries({name: self.prepare(name, block) for name, block in blocks.items()}, count, finite, layers)

    def meter(self, zeros: Tensor) -> Meter:
        return Summed(self, zeros)


@dataclass
class Summed:
    """The sum of every block's own."""

    metric: Blockwise
    out: Tensor

    def take(self, name: str, block: Block) -> None:
        self.out += self.metric.norm2(name, block)

    def total(self) -> Tensor:
        return self.out


def by_parameter(blocks: Mapping[str, Block], rows: Callable[[str, Block], Sequence[Tensor]]) -> dict[str, Tensor]:
    """(q, P) by parameter; those of blocks that share a parameter are added up.

    Args:
        rows: (name of a block, block) → (q, P) for each part of the block.
    """
    made: dict[str, Tensor] = {}
    for key, block in blocks.items():
        for name, part in zip(block.names, rows(key, block), strict=True):
            made[name] = made[name] + part if name in made else part
    return made
