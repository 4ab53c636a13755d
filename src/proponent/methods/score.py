"""The scoring loop of every gradient method: queries prepared once, training examples streamed once.

    score[q, i] = scale · Σ_members w · ⟨ψ(q), P φ(i)⟩,   φ(i) = ∇ℓ_i,  ψ(q) = −∇m_q

A measurement that is minus the loss has ψ = ∇ℓ, so a proponent's score is positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proponent.capture.blocks import Block, Factors, concatenate
from proponent.capture.gradients import Capture
from proponent.curvature.metric import Metric, Prepared
from proponent.rows import Rows

MEMORY = 2**27
"""Bytes of layer inputs and output gradients that a batch may hold."""

QUERY_MEMORY = 2**30
"""Bytes of prepared query gradients held at once; more queries take another pass over the training set."""


@dataclass(frozen=True)
class Queries:
    """Prepared gradients of the measurements of q queries.

    Args:
        blocks: by block name.
        count: q.
        finite: (q,) whether the query's measurement and gradient are finite.
    """

    blocks: dict[str, Prepared]
    count: int
    finite: Tensor


def prepare(capture: Capture, metric: Metric, query: Rows, batch: int) -> Queries:
    """The query side: captured batch by batch, multiplied by the metric's curvature once."""
    task = capture.task
    gathered: dict[str, list[Block]] = {}
    values = []
    for at in parts_of(query, batch):
        value, blocks = capture.gradients(task.batch(query, at), task.measurements)
        values.append(value)
        for name, block in blocks.items():
            gathered.setdefault(name, []).append(block)
    prepared = {name: metric.prepare(name, concatenate(parts)) for name, parts in gathered.items()}
    return Queries(prepared, len(query), torch.cat(values).isfinite())


def stream(
    capture: Capture, queries: Queries, train: Rows, parts: Iterable[slice], scale: float
) -> Iterator[tuple[slice, Tensor, dict[str, Block]]]:
    """Blocks of columns of scale · ⟨ψ(q), P φ(i)⟩: (training examples, (q, b), their gradients).

    What is not finite is NaN. The next block overwrites the scores of this one.
    """
    task, held = capture.task, torch.empty(0)
    for at in parts:
        losses, blocks = capture.gradients(task.batch(train, at), task.losses)
        if held.shape != (queries.count, len(losses)):
            held = losses.new_empty((queries.count, len(losses)), dtype=_wide(losses.dtype))
        out = held.zero_()
        for name, block in blocks.items():
            if name in queries.blocks:
                queries.blocks[name].add(block, out)
        out.mul_(-scale)
        _set_aside(out, queries.finite, losses.isfinite())
        yield at, out, blocks


def _set_aside(scores: Tensor, queries: Tensor, train: Tensor) -> None:
    if not bool(queries.all()):
        scores[~queries] = torch.nan
    if not bool(train.all()):
        scores[:, ~train] = torch.nan


def parts_of(rows: Rows, size: int) -> list[slice]:
    """Contiguous parts of at most `size` examples."""
    return [slice(at, min(at + size, len(rows))) for at in range(0, len(rows), size)]


def squared_norms(capture: Capture, metric: Metric, rows: Rows, batch: int, of: Callable[[Any], Tensor]) -> Tensor:
    """(n,) gᵀ P g of each example's gradient, without any matrix of pairs; NaN where it is not finite."""
    norms = []
    for at in parts_of(rows, batch):
        values, blocks = capture.gradients(capture.task.batch(rows, at), of)
        norms.append(torch.where(values.isfinite(), batch_norms(metric, blocks), torch.nan))
    return torch.cat(norms)


def batch_norms(metric: Metric, blocks: dict[str, Block]) -> Tensor:
    """(b,) gᵀ P g, summed over all blocks."""
    return torch.stack([metric.norm2(name, block) for name, block in blocks.items()]).sum(0)


@dataclass(frozen=True)
class Sizes:
    """What one example takes.

    Args:
        factors: numbers in layer inputs and output gradients.
        gradient: numbers in the gradient, p.
        ghost: numbers of a query that is kept as factors where its blocks have one position.
    """

    factors: int
    gradient: int
    ghost: int

    @classmethod
    def of(cls, capture: Capture, rows: Rows) -> Sizes:
        task = capture.task
        _, blocks = capture.gradients(task.batch(rows, slice(0, 1)), task.losses)
        return cls(
            sum(_numbers(b) for b in blocks.values()),
            sum(sum(b.sizes) for b in blocks.values()),
            sum(_numbers(b) if isinstance(b, Factors) and b.positions == 1 else sum(b.sizes) for b in blocks.values()),
        )

    def batch(self) -> int:
        """Examples captured at once."""
        return max(1, min(1024, MEMORY // (4 * max(1, self.factors))))

    def queries(self, identity: bool) -> int:
        """Queries prepared at once."""
        return max(1, QUERY_MEMORY // (4 * (self.ghost if identity else self.gradient)))


def _numbers(block: Block) -> int:
    held: tuple[Any, ...] = tuple(v for v in vars(block).values() if isinstance(v, Tensor))
    return sum(t.numel() for t in held) if held else sum(block.sizes)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
