"""Random numbers from which targets are drawn: each belongs to an example and a place in it."""

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
    """Random numbers that belong to an example: the same in whatever batch, and with whatever padding, it is met.

    u[i, j] = hash(seed, first + i, j) in (0, 1)

    >>> whole, part = (Draws(0, first).uniform(torch.empty(n, 2)) for first, n in ((0, 5), (3, 2)))
    >>> torch.equal(whole[3:], part)
    True

    Args:
        seed: of all numbers.
        first: the place of the batch's first example among all.
    """

    seed: int
    first: int = 0

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers of a tensor's shape (b, …) and precision."""
        b = len(like)
        own = mixed(torch.arange(self.first, self.first + b, device=like.device) + mixed(self.seed))
        within = torch.arange(like.shape[1:].numel(), device=like.device)
        bits = 53 if like.dtype == torch.float64 else 24
        kept = (mixed(own[:, None] + within) >> (64 - bits)) & ((1 << bits) - 1)
        half = torch.finfo(like.dtype).eps / 4
        return (kept.to(like.dtype) / 2**bits).clamp(half, 1 - 2 * half).view(like.shape)


def mixed(x: Any) -> Tensor:
    """SplitMix64 of whole numbers: each bit of the result depends on every bit of x."""
    x = torch.as_tensor(x, dtype=torch.long) + GOLDEN
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(like: Tensor, generator: Generator) -> Tensor:
    """Numbers in (0, 1) of a tensor's shape and precision."""
    if isinstance(generator, Draws):
        return generator.uniform(like)
    half = torch.finfo(like.dtype).eps / 4
    made = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return made.clamp(half, 1 - 2 * half)


def poisson_quantile(rate: Tensor, u: Tensor) -> Tensor:
    """The smallest count k with P(count ≤ k) ≥ u, by bisection; 0 where the rate is not finite."""
    rate = torch.nan_to_num(rate, nan=0.0, posinf=0.0)
    low, high = torch.full_like(rate, -1), (rate + 12 * rate.sqrt() + 20).ceil()
    for _ in range(2 + int(high.max().log2())):
        middle = ((low + high) / 2).floor()
        enough = torch.special.gammaincc(middle + 1, rate) >= u
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high
