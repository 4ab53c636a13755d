"""Gradients of a batch, block by block, and their inner products: the gradients themselves only where that is cheaper.

A block holds the gradients of b examples for one module's parameters as a tuple of parts, each conceptually (b, P): weight
then bias. Everything that scoring needs is linear in the gradient, so a block answers four questions: its rows, its
products with given rows, its products with another block, its squared norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from proponent.capture.products import add_times, times

CHUNK = 2**24
"""Numbers that a product may hold beside its operands: 64 MiB in float32."""

PRODUCTS = 2**21
"""Products of pairs made at once where others are multiplied into them: 8 MiB; smaller pieces cost time."""


class Block(Protocol):
    """Gradients of b examples for the parameters `names`, in parts of shape (b, P)."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """P of each part."""
        ...

    def rows(self) -> tuple[Tensor, ...]:
        """The gradients, (b, P) for each part, in the parameter's own layout."""
        ...

    def against(self, rows: Sequence[Tensor], out: Tensor) -> None:
        """out (q, b) += ⟨rows_q, gradient_i⟩."""
        ...

    def norm2(self) -> Tensor:
        """(b,) squared norms."""
        ...

    def __getitem__(self, at: slice) -> Block: ...


@dataclass(frozen=True)
class Factors:
    """Σ_t g_t a_tᵀ for a weight (O, I), and Σ_t g_t for a bias.

    Args:
        names: the parameters' names: weight, bias, or both in this order.
        a: (b, T, I) inputs of the layer at its T positions.
        g: (b, T, O) gradients at its outputs.
        weight, bias: which of the two are wanted.
        transposed: the parameter is stored as (I, O).
    """

    names: tuple[str, ...]
    a: Tensor
    g: Tensor
    weight: bool = True
    bias: bool = False
    transposed: bool = False

    def __len__(self) -> int:
        return len(self.g)

    @property
    def positions(self) -> int:
        return self.g.shape[1]

    @property
    def sides(self) -> tuple[int, int]:
        """(I, O): the layer's inputs and outputs at a position."""
        return self.a.shape[2], self.g.shape[2]

    @property
    def sizes(self) -> tuple[int, ...]:
        i, o = self.a.shape[2], self.g.shape[2]
        return (i * o,) * self.weight + (o,) * self.bias

    def rows(self) -> tuple[Tensor, ...]:
        weight = (self._weight().flatten(1),) if self.weight else ()
        return weight + ((self.g.sum(1),) if self.bias else ())

    def against(self, rows: Sequence[Tensor], out: Tensor) -> None:
        if self.bias:
            out.addmm_(rows[-1], self.g.sum(1).T)
        if self.weight:
            for part in pieces(len(self), self.sizes[0], CHUNK):
                add_times(out[:, part], rows[0], self[part]._weight().flatten(1).T)

    def dot(self, other: Factors, out: Tensor) -> None:
        """out (q, b) += products of these q gradients with b others, from the factors alone."""
        (q, t, _), (b, s, _) = self.g.shape, other.g.shape
        if t == s == 1:
            for part in pieces(b, q, PRODUCTS):
                gg = times(self.g[:, 0], other.g[part, 0].T)
                if self.weight:
                    aa = times(self.a[:, 0], other.a[part, 0].T)
                    out[:, part].addcmul_(aa.add_(1.0) if self.bias else aa, gg)
                else:
                    out[:, part].add_(gg)
            return
        for part in pieces(q, t * b * s, CHUNK):
            products = times(self.g[part].flatten(0, 1), other.g.flatten(0, 1).T)
            if self.weight:
                aa = times(self.a[part].flatten(0, 1), other.a.flatten(0, 1).T)
                products.mul_(aa.add_(1.0) if self.bias else aa)
            out[part].add_(products.view(-1, t, b, s).sum((1, 3)))

    def norm2(self) -> Tensor:
        b, t, o = self.g.shape
        i = self.a.shape[2]
        if t == 1:
            length = self.g.square().sum((1, 2))
            along = self.a.square().sum((1, 2)) if self.weight else torch.zeros_like(length)
            return length * (along + float(self.bias))
        if t * (i + o) < i * o:
            gg = torch.bmm(self.g, self.g.mT)
            if not self.weight:
                return gg.sum((1, 2))
            aa = torch.bmm(self.a, self.a.mT)
            return (gg * (aa + float(self.bias))).sum((1, 2))
        total = self.g.sum(1).square().sum(1) if self.bias else self.g.new_zeros(b)
        return total + self._weight().flatten(1).square().sum(1) if self.weight else total

    def __getitem__(self, at: slice) -> Factors:
        return replace(self, a=self.a[at], g=self.g[at])

    def apart(self) -> Factors:
        """b T gradients of one position each; an example's are their sum."""
        return replace(self, a=self.a.flatten(0, 1)[:, None], g=self.g.flatten(0, 1)[:, None])

    def _weight(self) -> Tensor:
        left, right = (self.a, self.g) if self.transposed else (self.g, self.a)
        if self.positions == 1:
            return left[:, 0, :, None] * right[:, 0, None, :]
        return torch.bmm(left.mT, right)


@dataclass(frozen=True)
class Lookup:
    """Σ_t e_token(t) g_tᵀ for an embedding table (V, D): gradients with few rows that are not zero.

    Args:
        names: the parameter's name.
        tokens: (b, T) rows looked up; a negative token is not counted.
        g: (b, T, D) gradients at the outputs.
        vocabulary: V.
    """

    names: tuple[str, ...]
    tokens: Tensor
    g: Tensor
    vocabulary: int

    def __len__(self) -> int:
        return len(self.g)

    @property
    def positions(self) -> int:
        return self.g.shape[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.vocabulary * self.g.shape[2],)

    def rows(self) -> tuple[Tensor, ...]:
        b, _, d = self.g.shape
        table = self.g.new_zeros(b, self.vocabulary + 1, d)
        at = torch.where(self.tokens < 0, self.vocabulary, self.tokens)
        table.scatter_add_(1, at[:, :, None].expand_as(self.g), self.g)
        return (table[:, :-1].flatten(1),)

    def against(self, rows: Sequence[Tensor], out: Tensor) -> None:
        # Of a large table only the rows that are looked up here.
        seen, place = torch.unique(self.tokens, return_inverse=True)
        kept = seen[seen >= 0]
        few = replace(self, tokens=place - (len(seen) - len(kept)), vocabulary=len(kept))
        theirs = rows[0].unflatten(1, (self.vocabulary, -1))[:, kept].flatten(1)
        for part in pieces(len(self), few.sizes[0], CHUNK):
            add_times(out[:, part], theirs, few[part].rows()[0].T)

    def norm2(self) -> Tensor:
        same = (self.tokens[:, :, None] == self.tokens[:, None, :]) & (self.tokens[:, :, None] >= 0)
        return (torch.bmm(self.g, self.g.mT) * same).sum((1, 2))

    def __getitem__(self, at: slice) -> Lookup:
        return replace(self, tokens=self.tokens[at], g=self.g[at])

    def apart(self) -> Lookup:
        """b T gradients of one position each; an example's are their sum."""
        return replace(self, tokens=self.tokens.flatten()[:, None], g=self.g.flatten(0, 1)[:, None])


@dataclass(frozen=True)
class Dense:
    """Gradients as they are: (b, P) for each parameter."""

    names: tuple[str, ...]
    parts: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(p.shape[1] for p in self.parts)

    def rows(self) -> tuple[Tensor, ...]:
        return self.parts

    def against(self, rows: Sequence[Tensor], out: Tensor) -> None:
        for theirs, ours in zip(rows, self.parts, strict=True):
            add_times(out, theirs, ours.T)

    def norm2(self) -> Tensor:
        return torch.stack([p.square().sum(1) for p in self.parts]).sum(0)

    def __getitem__(self, at: slice) -> Dense:
        return replace(self, parts=tuple(p[at] for p in self.parts))


def pieces(examples: int, each: int, numbers: int) -> list[slice]:
    """Slices of a batch that hold at most so many numbers, where an example takes `each`, or one example.

    >>> pieces(5, 3, 7)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, numbers // max(1, each))
    return [slice(at, min(at + step, examples)) for at in range(0, examples, step)]


def numbers(block: Block) -> int:
    """Held for a block's gradients: those of its factors, or of the gradients where it has none."""
    held = [v for v in vars(block).values() if isinstance(v, Tensor)]
    return sum(t.numel() for t in held) if held else sum(block.sizes)


def concatenate(blocks: Sequence[Any]) -> Any:
    """Blocks of several batches as one; positions are padded with zeros where their numbers differ."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    if any(type(b) is not type(first) for b in blocks) or not isinstance(first, Factors | Lookup):
        parts = zip(*(b.rows() for b in blocks), strict=True)
        return Dense(first.names, tuple(map(torch.cat, parts)))
    g = _padded([b.g for b in blocks], 0)
    if isinstance(first, Lookup):
        return replace(first, tokens=_padded([b.tokens for b in blocks], -1), g=g)
    return replace(first, a=_padded([b.a for b in blocks], 0), g=g)


def compact(block: Block) -> Block:
    """The gradients in place of what they are made of, where that takes more room: products with it are no cheaper either.

    Factors of one position stay: what multiplies them without forming gradients needs them.
    """
    one_position = isinstance(block, Factors) and block.positions == 1
    return block if one_position or numbers(block) <= sum(block.sizes) else Dense(block.names, block.rows())


def _padded(parts: Sequence[Tensor], value: float) -> Tensor:
    most = max(p.shape[1] for p in parts)
    end = [(0, 0) * (p.ndim - 2) + (0, most - p.shape[1]) for p in parts]
    return torch.cat([F.pad(p, e, value=value) if e[-1] else p for p, e in zip(parts, end, strict=True)])


def ghost_is_cheaper(query: Factors, train: Factors) -> bool:
    """Whether products from factors take fewer floating-point operations than from gradients.

    ghost: q b T T' (I + O); materialised: b T' I O for the rows, then q b I O.
    """
    (q, t, o), (b, s, _) = query.g.shape, train.g.shape
    i = train.a.shape[2]
    return q * b * t * s * (i + o) <= b * s * i * o + q * b * i * o
