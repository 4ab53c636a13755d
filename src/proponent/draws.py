"""Random signs: each belongs to an example and a place in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Generator: TypeAlias = "torch.Generator | Draws | None"

GOLDEN = -0x61C8864680B583EB
"""SplitMix64's increment, 2⁶⁴ over the golden ratio, as a signed number."""


@dataclass(frozen=True)
class Draws:
    """Random signs that belong to an example: the same in whatever batch, and with whatever padding, it is met.

    s[i, j] = ±1 by bit j of hash(seed, first + i, ·)

    >>> whole, part = (Draws(0, first).signs(torch.empty(n, 2)) for first, n in ((0, 5), (3, 2)))
    >>> torch.equal(whole[3:], part)
    True

    Args:
        seed: of all signs.
        first: the place of the batch's first example among all.
    """

    seed: int
    first: int = 0

    def signs(self, like: Tensor) -> Tensor:
        """Of a tensor's shape (b, …) and precision."""
        b, count = len(like), like.shape[1:].numel()
        own = mixed(torch.arange(self.first, self.first + b, device=like.device) + mixed(self.seed))
        words = mixed(own[:, None] + torch.arange(-(-count // 64), device=like.device))
        bits = words.view(torch.uint8)[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=like.device)
        return _signs(bits.flatten(1)[:, :count] & 1, like)


def mixed(x: Any) -> Tensor:
    """SplitMix64 of whole numbers: each bit of the result depends on every bit of x."""
    x = torch.as_tensor(x, dtype=torch.long) + GOLDEN
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def signs(like: Tensor, generator: Generator) -> Tensor:
    """±1 with equal chances, of a tensor's shape and precision."""
    if isinstance(generator, Draws):
        return generator.signs(like)
    return _signs(torch.randint(2, like.shape, generator=generator, device=like.device), like)


def _signs(bits: Tensor, like: Tensor) -> Tensor:
    return bits.to(like.dtype).mul_(2).sub_(1).view(like.shape)
