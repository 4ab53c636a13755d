"""Random projections of gradients to k numbers, block by block, from a layer's factors where these are cheaper.

    E⟨P g, P g′⟩ = ⟨g, g′⟩,  P (k, p) drawn from a seed, the same for all examples of a model

Each block of parameters has a part of P of its own, drawn from the seed and the block's name: P g = Σ_blocks P_b g_b, whose
cross terms vanish in expectation. No projection depends on the batch in which an example is met.

Sources: Kane & Nelson, Sparser Johnson-Lindenstrauss transforms, JACM 2014; Ailon & Chazelle, The fast Johnson-Lindenstrauss
transform, SIAM J. Comput. 2009; Choe et al., What is your data worth to GPT? (LoGra), 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional as F

from proponent.capture.blocks import CHUNK, Block, Factors, Lookup
from proponent.capture.products import add_times
from proponent.curvature.kronecker import layer_factors
from proponent.errors import InputError, UnsupportedModel, did_you_mean

TOGETHER = 64
"""Examples whose gradients are formed at once, as columns."""

PIECE = 2**22
"""Numbers of these that are formed at once: 16 MiB, which the C library hands out again without fresh pages."""


class Sketch(Protocol):
    """A projection as it was drawn.

    Args:
        dimension: k.
    """

    @property
    def dimension(self) -> int: ...

    def add(self, name: str, block: Block, out: Tensor) -> None:
        """out (b, k) += P_block g."""
        ...


class Projection(Protocol):
    """How P is drawn."""

    def sketch(self, dimension: int, seed: int, blocks: Mapping[str, Block]) -> Sketch:
        """Draw P for gradients like these.

        Args:
            dimension: k.
            seed: the same seed draws the same P.
            blocks: gradients of an example, by block name.
        """
        ...


@dataclass(frozen=True)
class Gaussian:
    """P_jc ~ N(0, 1/k)."""

    def sketch(self, dimension: int, seed: int, blocks: Mapping[str, Block]) -> Sketch:
        return Entries(dimension, seed, signs=False)


@dataclass(frozen=True)
class Rademacher:
    """P_jc = ±1/√k."""

    def sketch(self, dimension: int, seed: int, blocks: Mapping[str, Block]) -> Sketch:
        return Entries(dimension, seed, signs=True)


@dataclass(frozen=True)
class SJLT:
    """Each parameter goes to s of the k numbers, with a sign and 1/√s: adding gradients up in k bins.

    Args:
        nonzeros: s.
    """

    nonzeros: int = 1

    def __post_init__(self) -> None:
        if self.nonzeros < 1:
            raise InputError(
                f"nonzeros={self.nonzeros}", "at least one bin for each parameter", "pass SJLT(nonzeros=1)"
            )

    def sketch(self, dimension: int, seed: int, blocks: Mapping[str, Block]) -> Sketch:
        return Bins(dimension, seed, self.nonzeros)


@dataclass(frozen=True)
class FJLT:
    """Random signs, a Fourier transform with real coefficients, and k of these, drawn with replacement."""

    def sketch(self, dimension: int, seed: int, blocks: Mapping[str, Block]) -> Sketch:
        return Frequencies(dimension, seed)


@dataclass(frozen=True)
class Kronecker:
    """Σ_t (P_o g_t)(P_i a_t)ᵀ of each layer: its two sides are projected (LoGra). k is split over layers by size.

    A side that is not longer than its share is kept as it is. Parameters of no linear layer or convolution are added up in
    as many bins as their share is, as in `SJLT`.
    """

    def sketch(self, dimension: int, seed: int, blocks: Mapping[str, Block]) -> Sketch:
        return TwoSided.of(dimension, seed, blocks)


PROJECTIONS: dict[str, type[Any]] = {
    "gaussian": Gaussian,
    "rademacher": Rademacher,
    "sjlt": SJLT,
    "fjlt": FJLT,
    "kronecker": Kronecker,
}


def projection_of(wish: Any) -> Projection:
    """A projection by its name, or itself."""
    if isinstance(wish, str):
        if wish not in PROJECTIONS:
            raise InputError(
                f"projection {wish!r}", f"one of {', '.join(PROJECTIONS)}, or None", did_you_mean(wish, PROJECTIONS)
            )
        return PROJECTIONS[wish]()
    if not hasattr(wish, "sketch"):
        raise InputError(f"projection {wish!r}", f"one of {', '.join(PROJECTIONS)}, or None", "pass projection='sjlt'")
    return wish


@dataclass(frozen=True)
class Entries:
    """A dense P, drawn again in pieces of columns for every batch: it is never held."""

    dimension: int
    seed: int
    signs: bool

    def add(self, name: str, block: Block, out: Tensor) -> None:
        width = max(1, CHUNK // self.dimension)
        for part, start, rows in pieces(block, width):
            add_times(out, rows.to(out.dtype), self._columns(name, part, start, rows.shape[1]).to(out))

    def _columns(self, name: str, part: int, start: int, count: int) -> Tensor:
        """(count, k): P's columns from `start`, transposed."""
        rng = generator(self.seed, name, part, start)
        if self.signs:
            size = count * self.dimension
            bits = np.unpackbits(np.frombuffer(rng.bytes(-(-size // 8)), np.uint8), count=size)
            drawn = torch.from_numpy(bits).float().mul_(2).sub_(1)
        else:
            source = torch.Generator().manual_seed(int(rng.integers(2**62)))
            drawn = torch.randn(count * self.dimension, generator=source)
        return drawn.view(count, self.dimension).mul_(self.dimension**-0.5)


@dataclass(frozen=True)
class Bins:
    """A sparse P: the bin of every parameter, and its sign."""

    dimension: int
    seed: int
    nonzeros: int = 1
    drawn: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    sorted: dict[tuple[str, int, int], tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    def add(self, name: str, block: Block, out: Tensor) -> None:
        if isinstance(block, Lookup):
            self._looked_up(name, block, out)
            return
        step = _together(block)
        for at in range(0, len(block), step):
            few = block[at : at + step]
            total = out.new_zeros(self.dimension, len(few))
            for part, start, columns in column_pieces(few, PIECE // TOGETHER):
                self._add_columns(total, (name, part, start), columns.to(out.dtype), block.sizes[part])
            out[at : at + step] += total.T

    def _add_columns(self, total: Tensor, key: tuple[str, int, int], columns: Tensor, size: int) -> None:
        """total (k, b) += columns (c, b), added up in their bins: of many columns each bin is a bag of rows."""
        name, part, start = key
        if len(columns) < self.dimension:
            bins, signs = (t[start : start + len(columns)].to(columns.device) for t in self._bins(name, part, size))
            for turn in range(self.nonzeros):
                total.index_add_(0, bins[:, turn], columns * signs[:, turn, None].to(columns.dtype))
            return
        order, offsets, signs = self._bags(key, len(columns), size, columns.device)
        total += F.embedding_bag(
            order,
            columns,
            offsets,
            mode="sum",
            per_sample_weights=signs.to(columns.dtype),
            include_last_offset=True,
        )

    def _bags(self, key: tuple[str, int, int], count: int, size: int, device: torch.device) -> tuple[Tensor, ...]:
        """Columns in the order of their bins, where each bin begins, and signs."""
        name, part, start = key
        if key not in self.sorted:
            bins, signs = (t[start : start + count].flatten() for t in self._bins(name, part, size))
            order = bins.argsort(stable=True)
            ends = torch.bincount(bins, minlength=self.dimension).cumsum(0)
            made = order // self.nonzeros, torch.cat([ends.new_zeros(1), ends]), signs[order]
            self.sorted[key] = tuple(t.to(device) for t in made)
        return self.sorted[key]

    def _looked_up(self, name: str, block: Lookup, out: Tensor) -> None:
        """Only the rows of the table that are looked up."""
        width = block.g.shape[2]
        bins, signs = (t.view(block.vocabulary, -1).to(out.device) for t in self._bins(name, 0, block.sizes[0]))
        tokens = block.tokens.clamp(min=0)
        g = torch.where(block.tokens[:, :, None] < 0, 0, block.g).to(out.dtype)
        g = g[:, :, :, None].expand(*g.shape, self.nonzeros).flatten(2)
        assert bins.shape[1] == width * self.nonzeros
        out.scatter_add_(1, bins[tokens].flatten(1), (g * signs[tokens].to(out.dtype)).flatten(1))

    def _bins(self, name: str, part: int, size: int) -> tuple[Tensor, Tensor]:
        """(P, s) bins and signed weights."""
        if (name, part) not in self.drawn:
            rng = generator(self.seed, name, part)
            bins = torch.from_numpy(rng.integers(self.dimension, size=(size, self.nonzeros)))
            signs = torch.from_numpy(rng.integers(2, size=(size, self.nonzeros), dtype=np.int8)).float()
            self.drawn[name, part] = bins, signs.mul_(2).sub_(1).mul_(self.nonzeros**-0.5)
        return self.drawn[name, part]


@dataclass(frozen=True)
class Frequencies:
    """Σ_c (cos + sin)(2π j c/N) ± g_c at k random j: rows of a Hartley transform, whose N rows are orthogonal."""

    dimension: int
    seed: int
    drawn: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def add(self, name: str, block: Block, out: Tensor) -> None:
        step = max(1, min(TOGETHER, CHUNK // max(block.sizes)))
        for at in range(0, len(block), step):
            for part, rows in enumerate(block[at : at + step].rows()):
                out[at : at + step] += self._transformed(name, part, rows.to(out.dtype))

    def _transformed(self, name: str, part: int, rows: Tensor) -> Tensor:
        size = rows.shape[1]
        length = next_fast_len(size, real=True)
        if (name, part) not in self.drawn:
            rng = generator(self.seed, name, part)
            signs = torch.from_numpy(rng.integers(2, size=size, dtype=np.int8)).float().mul_(2).sub_(1)
            chosen = torch.from_numpy(rng.integers(length, size=self.dimension))
            self.drawn[name, part] = signs.to(rows.device), chosen.to(rows.device)
        signs, chosen = self.drawn[name, part]
        spectrum = torch.fft.rfft(rows * signs.to(rows.dtype), n=length)
        # Of a real row the spectrum at N − j is the conjugate of that at j.
        mirrored = chosen > length // 2
        here = spectrum[:, torch.where(mirrored, length - chosen, chosen)]
        return (here.real - torch.where(mirrored, -here.imag, here.imag)) * self.dimension**-0.5


@dataclass(frozen=True)
class Share:
    """Where one block's numbers go.

    Args:
        start: of them among the k.
        outputs, inputs: sides of its projected gradient; of other blocks (numbers, 1).
    """

    start: int
    outputs: int
    inputs: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.outputs * self.inputs)


@dataclass(frozen=True)
class TwoSided:
    """P_o ⊗ P_i of each layer, side by side."""

    dimension: int
    seed: int
    shares: Mapping[str, Share]
    drawn: dict[tuple[str, int], Tensor | None] = field(default_factory=dict, repr=False)
    others: dict[str, Bins] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, dimension: int, seed: int, blocks: Mapping[str, Block]) -> TwoSided:
        if dimension < len(blocks):
            raise InputError(
                f"{dimension} numbers for {len(blocks)} layers", "at least one for each", "raise dimension=…"
            )
        total, start = sum(sum(b.sizes) for b in blocks.values()), 0
        shares = {}
        for name, block in blocks.items():
            own = 1 + int((dimension - len(blocks)) * sum(block.sizes) / total)
            shares[name] = Share(start, *_sides(block, own))
            start = shares[name].slice.stop
        return cls(start, seed, shares)

    def add(self, name: str, block: Block, out: Tensor) -> None:
        if name not in self.shares:
            raise UnsupportedModel(
                f"a gradient of {name!r}, which the first training example has none of",
                "layers that every example goes through, for a projection whose numbers are split over layers",
                "pass projection='sjlt'",
            )
        share, own = self.shares[name], out[:, self.shares[name].slice]
        factors = layer_factors(block)
        if factors is None:
            self.others.setdefault(name, Bins(share.outputs, self.seed)).add(name, block, own)
            return
        step = max(1, CHUNK // (factors.positions * max(*factors.sides)))
        for at in range(0, len(block), step):
            few = factors[at : at + step]
            a, g = few.a.to(out.dtype), few.g.to(out.dtype)
            a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2) if few.bias else a
            a, g = self._side(name, 0, a, share.inputs), self._side(name, 1, g, share.outputs)
            own[at : at + step] += torch.bmm(g.mT, a).flatten(1)

    def _side(self, name: str, side: int, x: Tensor, to: int) -> Tensor:
        """(b, T, to); as it is, where it is not longer."""
        if x.shape[2] <= to:
            return x
        if (name, side) not in self.drawn:
            source = torch.Generator().manual_seed(int(generator(self.seed, name, side).integers(2**62)))
            self.drawn[name, side] = torch.randn(x.shape[2], to, generator=source).mul_(to**-0.5)
        drawn = self.drawn[name, side]
        assert drawn is not None
        return x @ drawn.to(x)


def _sides(block: Block, numbers: int) -> tuple[int, int]:
    """(outputs, inputs) of a layer's projected gradient, at most so many numbers: as equal as the layer's sides allow."""
    made = layer_factors(block)
    if made is None:
        return min(numbers, sum(block.sizes)), 1
    i, o = made.sides[0] + made.bias, made.sides[1]
    outputs = min(o, max(1, int(numbers**0.5)))
    inputs = min(i, numbers // outputs)
    return min(o, numbers // inputs), inputs


def generator(seed: int, name: str, *place: int) -> np.random.Generator:
    """Random numbers that belong to a place of a block."""
    return np.random.default_rng([seed, crc32(name.encode()), *place])


def pieces(block: Block, width: int) -> Iterator[tuple[int, int, Tensor]]:
    """Gradients (b, about width) of a few parameters at a time, with their part and the first one's place in it."""
    if isinstance(block, Factors) and block.weight:
        for start, left, right in _strips(block, width):
            yield 0, start, torch.bmm(left.mT, right).flatten(1)
        if block.bias:
            yield from _cut(1, block.g.sum(1), width)
    elif isinstance(block, Lookup):
        depth = block.g.shape[2]
        step = max(1, width // depth)
        for at in range(0, block.vocabulary, step):
            count = min(step, block.vocabulary - at)
            here = (block.tokens >= at) & (block.tokens < at + count)
            few = Lookup(block.names, torch.where(here, block.tokens - at, -1), block.g, count)
            yield 0, at * depth, few.rows()[0]
    else:
        for part, rows in enumerate(block.rows()):
            yield from _cut(part, rows, width)


def column_pieces(block: Block, width: int) -> Iterator[tuple[int, int, Tensor]]:
    """As `pieces`, transposed: (about width, b) without gaps."""
    if isinstance(block, Factors) and block.weight and block.positions == 1:
        for start, left, right in _strips(block, width):
            ours, theirs = (t[:, 0].T.contiguous() for t in (left, right))
            yield 0, start, (ours[:, None] * theirs).flatten(0, 1)
        if block.bias:
            yield 1, 0, block.g[:, 0].T.contiguous()
        return
    for part, start, rows in pieces(block, width):
        yield part, start, rows.T.contiguous()


def _strips(block: Factors, width: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """A few of the weight's rows: the place of the first parameter, and factors of its gradient (b, T, few), (b, T, side)."""
    left, right = (block.a, block.g) if block.transposed else (block.g, block.a)
    side = right.shape[2]
    step = max(1, width // side)
    for at in range(0, left.shape[2], step):
        yield at * side, left[:, :, at : at + step], right


def _cut(part: int, rows: Tensor, width: int) -> Iterator[tuple[int, int, Tensor]]:
    for at in range(0, rows.shape[1], width):
        yield part, at, rows[:, at : at + width]


def _together(block: Block) -> int:
    """Examples at once: those of a layer with factors are formed in pieces, others whole."""
    if isinstance(block, Factors | Lookup):
        return TOGETHER
    return max(1, min(TOGETHER, CHUNK // max(1, *block.sizes)))
