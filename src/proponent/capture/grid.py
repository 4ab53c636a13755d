"""Layer inputs on a grid of at most 256 levels, as 8-bit images have: their inner products in 8-bit integers, exactly.

    a = origin + step · k,  k ∈ {−128 … 127}
    a·a′ = I origin² + origin step (Σk + Σk′) + step² k·k′

Integer products are exact, and several times as fast as those of single precision on processors that have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from proponent.capture import products

LEVELS = 256
SAMPLE = 2**13
"""Numbers that the grid is found from; all others are checked."""

OFF_GRID = 1e-4
"""Of a step: what the rounding of single precision may leave between a number and its level."""

WORTHWHILE = 256
"""Inputs from which the integer products save more than reading the levels costs."""


@dataclass(frozen=True)
class Grid:
    """Numbers origin + step · k for k in −128 … 127."""

    origin: float
    step: float

    @classmethod
    def of(cls, a: Tensor) -> Grid | None:
        """The grid that the first of these numbers (b, I) lie on, if there is one."""
        if a.shape[1] < WORTHWHILE or a.dtype != torch.float32 or a.device.type != "cpu" or not exact_products():
            return None
        levels = a[: max(1, SAMPLE // a.shape[1])].flatten().unique()
        if not 1 < len(levels) <= LEVELS:
            return None
        first, last = float(levels[0]), float(levels[-1])
        # Gaps are whole numbers of steps, each with a rounding error; over all levels together the error is smallest.
        gap = float(levels.double().diff().min())
        steps = round((last - first) / gap) if gap > 0 else LEVELS
        if steps >= LEVELS:
            return None
        step = (last - first) / steps
        return cls(first + 128 * step, step)

    def levels(self, a: Tensor) -> Levels | None:
        """The numbers' levels; None where one of them is off the grid."""
        exact = torch.add(-self.origin / self.step, a, alpha=1 / self.step)
        whole = exact.round()
        ends = torch.stack([*torch.aminmax(whole), *torch.aminmax(exact.sub_(whole))]).tolist()
        if not (ends[0] >= -128 and ends[1] <= 127 and ends[2] >= -OFF_GRID and ends[3] <= OFF_GRID):
            return None
        return Levels(self, whole.to(torch.int8), whole.sum(1))


@dataclass(frozen=True)
class Levels:
    """k of b vectors on a grid.

    Args:
        grid: the grid.
        k: (b, I) int8.
        total: (b,) Σ k, in single precision.
    """

    grid: Grid
    k: Tensor
    total: Tensor

    def dot(self, other: Levels, shift: float = 0.0) -> Tensor:
        """(b, b′) inner products plus `shift`."""
        origin, step = self.grid.origin, self.grid.step
        constant = shift + self.k.shape[1] * origin**2
        whole: Tensor = torch._int_mm(self.k, other.k.T)
        made = torch.add((self.total * (origin * step) + constant)[:, None], whole, alpha=step**2)
        return made.add_(other.total * (origin * step))


@cache
def exact_products() -> bool:
    """Whether 8-bit products are fast here and come out exact: without instructions of their own PyTorch takes them number by
    number, a hundred times slower than in single precision, and some processors saturate halfway."""
    if not (hasattr(torch, "_int_mm") and products.processor().get("avx512_vnni")):
        return False
    extremes = torch.tensor([-128, 127, -127, 126], dtype=torch.int8).repeat(24, 64)
    return bool((torch._int_mm(extremes, extremes.T) == extremes.long() @ extremes.long().T).all())
