"""The scoring loop of every gradient method: queries prepared once, training examples streamed once.

    score[q, i] = scale · Σ_members w · ⟨ψ(q), P φ(i)⟩,   φ(i) = ∇ℓ_i,  ψ(q) = −∇m_q

A measurement that is minus the loss has ψ = ∇ℓ, so a proponent's score is positive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proponent.capture.blocks import Block, Factors, Lookup, compact, concatenate, numbers
from proponent.capture.forward_mode import with_losses
from proponent.capture.gradients import Capture
from proponent.curvature.metric import Metric
from proponent.curvature.queries import Blockwise, Directed, Meter, Queries
from proponent.errors import InputError
from proponent.rows import Rows

CACHED = 2**24
"""Bytes of layer inputs and output gradients that a batch holds, so that most of them stay in a processor's cache."""

MEMORY = 2**27
"""Bytes of these that a batch may hold so as to have FEW examples: products of fewer are slow."""

FEW = 64

QUERY_MEMORY = 2**30
"""Bytes of prepared query gradients held at once; more queries take another pass over the training set."""


def prepare(capture: Capture, metric: Metric, query: Rows, batch: int, layers: tuple[str, ...] = ()) -> Queries:
    """The query side: captured batch by batch, multiplied by the metric's curvature once."""
    finite, blocks = _gathered(capture, query, batch)
    if isinstance(metric, Blockwise):  # a block is let go of as soon as it is prepared
        return Queries({n: metric.prepare(n, blocks.pop(n)) for n in list(blocks)}, len(query), finite, layers)
    return metric.queries(blocks, len(query), finite, layers)


def directions(capture: Capture, metric: Metric, query: Rows, batch: int) -> Directed:
    """The query side in the parameters' own layout: P ∇m_q."""
    finite, blocks = _gathered(capture, query, batch)
    rows, residual = metric.directions(blocks)
    return Directed({}, len(query), finite, (), residual, rows)


def layers_of(capture: Capture, query: Rows) -> tuple[str, ...]:
    """Names of the blocks in which queries have gradients, in the order of the model's parameters."""
    task = capture.task
    _, blocks = capture.gradients(task.batch(query, slice(0, 1)), task.measurements)
    order = list(task.selected())
    return tuple(sorted(blocks, key=lambda name: order.index(blocks[name].names[0])))


def _gathered(capture: Capture, query: Rows, batch: int) -> tuple[Tensor, dict[str, Block]]:
    """(q,) whether each measurement is finite, and the measurements' gradients."""
    task = capture.task
    gathered: dict[str, list[Block]] = {}

    def take(name: str, block: Block) -> None:
        gathered.setdefault(name, []).append(compact(block))

    values = [capture.each(task.batch(query, at), task.measurements, take) for at in query.parts(batch)]
    return torch.cat(values).isfinite(), {name: concatenate(gathered.pop(name)) for name in list(gathered)}


def stream(
    capture: Capture, queries: Queries, train: Rows, parts: Iterable[slice], scale: float, norms: Norms | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of columns of scale · ⟨ψ(q), P φ(i)⟩: (training examples, (q, b)), over both norms where these are given.

    Where the queries keep layers apart, a block is (layers, q, b).

    What is not finite is NaN. The next block overwrites the scores of this one.
    """
    task, held = capture.task, torch.empty(0)
    for at in parts:
        batch = task.batch(train, at)
        if held.shape != (*queries.shape, at.stop - at.start):
            held = torch.empty((*queries.shape, at.stop - at.start), dtype=task.precision, device=task.device)
        held.zero_()
        own = None if norms is None else norms.metric.meter(held.new_zeros(held.shape[-1]))
        losses = capture.each(batch, task.losses, _meet(queries, held, own))
        out = queries.finish(held).mul_(-scale)
        if norms is not None and own is not None:
            out /= norms.query[:, None] * own.total().sqrt()
        _set_aside(out, queries.finite, losses.isfinite())
        yield at, out


def totals(capture: Capture, metric: Metric, query: Rows, train: Rows, batch: int, weights: Tensor) -> Tensor:
    """Weighted sums of the scores of all training examples, scale 1: (q, s); of a metric that stands for several, (several q, s).

    Products are summed before they are combined, and no matrix of pairs is made. What is not finite counts as 0.

    Args:
        weights: (s, n).
    """
    task, queries = capture.task, prepare(capture, metric, query, batch)
    made = torch.zeros(*queries.shape, len(weights), dtype=torch.float64, device=task.device)
    for at in train.parts(batch):
        held = torch.zeros((*queries.shape, at.stop - at.start), dtype=task.precision, device=task.device)
        losses = capture.each(task.batch(train, at), task.losses, _meet(queries, held, None))
        finite = losses.isfinite() & held.sum(0).isfinite()
        if not bool(finite.all()):
            held[..., ~finite] = 0.0
        made += (held @ weights[:, at].to(held).T).double()
    return torch.nan_to_num(queries.finish(made).neg_(), nan=0.0, posinf=0.0, neginf=0.0)


def stream_forward(
    capture: Capture, queries: Directed, train: Rows, parts: Iterable[slice], scale: float
) -> Iterator[tuple[slice, Tensor]]:
    """As `stream`, by one forward pass per query and no backward pass: for few queries, on any architecture.

    ⟨P ∇m_q, ∇ℓ_i⟩ is the derivative of ℓ_i along P ∇m_q.
    """
    task, count = capture.task, queries.count
    for at in parts:
        batch = task.batch(train, at)
        made = [with_losses(task, {k: r[q] for k, r in queries.rows.items()}, batch) for q in range(count)]
        out = torch.stack([slopes for _, slopes in made]).to(task.precision).mul_(-scale)
        _set_aside(out, queries.finite, made[0][0].isfinite())
        yield at, out


def by_position(capture: Capture, queries: Queries, train: Rows, scale: float) -> tuple[Tensor, Tensor]:
    """scale · ⟨ψ(q), P φ(i)⟩ of one training example, position by position, (q, T), and what has no position, (q, 1).

    T is the number of positions that most layers have. A layer's gradient is a sum over its positions, so each of them is
    met like an example of one position.

    Raises:
        InputError: no layer has positions.
    """
    task = capture.task
    losses, blocks = capture.gradients(task.batch(train, slice(0, 1)), task.losses)
    counts = Counter(b.positions for b in blocks.values() if isinstance(b, Factors | Lookup) and b.positions > 1)
    if not counts:
        raise InputError(
            "a training example without positions in any layer",
            "a linear layer or an embedding at several positions, such as tokens",
            "use score(query)",
        )
    positions = counts.most_common(1)[0][0]
    own, rest = (torch.zeros(*queries.shape, size, dtype=task.precision, device=task.device) for size in (positions, 1))
    for name, block in blocks.items():
        if isinstance(block, Factors | Lookup) and block.positions == positions:
            queries.meet(name, block.apart(), own)
        else:
            queries.meet(name, block, rest)
    shares = tuple(queries.finish(out).mul_(-scale) for out in (own, rest))
    for share in shares:
        _set_aside(share, queries.finite, losses.isfinite().expand(share.shape[-1]))
    return shares[0], shares[1]


@dataclass(frozen=True)
class Norms:
    """What cosines are divided by.

    Args:
        query: (q,) ‖ψ(q)‖.
        metric: of the training examples' norms.
    """

    query: Tensor
    metric: Metric


def _meet(queries: Queries, out: Tensor, own: Meter | None) -> Callable[[str, Block], None]:
    """Adds each block's products to `out` and, for cosines, lets its norms be measured."""

    def meet(name: str, block: Block) -> None:
        queries.meet(name, block, out)
        if own is not None:
            own.take(name, block)

    return meet


def _set_aside(scores: Tensor, queries: Tensor, train: Tensor) -> None:
    if not bool(queries.all()):
        scores[..., ~queries, :] = torch.nan
    if not bool(train.all()):
        scores[..., ~train] = torch.nan
    if not bool(scores.sum().isfinite()):  # a loss may be finite where its gradient is not
        scores.masked_fill_(~scores.isfinite(), torch.nan)


def squared_norms(capture: Capture, metric: Metric, rows: Rows, batch: int, of: Callable[[Any], Tensor]) -> Tensor:
    """(n,) gᵀ P g of each example's gradient, without any matrix of pairs; NaN where it is not finite."""
    norms = []
    for at in rows.parts(batch):
        meter = metric.meter(torch.zeros(at.stop - at.start, dtype=capture.task.precision, device=capture.task.device))
        values = capture.each(capture.task.batch(rows, at), of, meter.take)
        total = meter.total()
        norms.append(torch.where(values.isfinite() & total.isfinite(), total, torch.nan))
    return torch.cat(norms)


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
            sum(numbers(b) for b in blocks.values()),
            sum(sum(b.sizes) for b in blocks.values()),
            sum(numbers(b) if isinstance(b, Factors) and b.positions == 1 else sum(b.sizes) for b in blocks.values()),
        )

    def batch(self) -> int:
        """Examples captured at once."""
        one = 4 * max(1, self.factors)
        return max(1, min(2560, max(CACHED // one, min(FEW, MEMORY // one))))

    def queries(self, vectors: int) -> int:
        """Queries prepared at once, each of which holds some multiple of its gradient; 0 for factors where it has any."""
        return max(1, QUERY_MEMORY // (4 * (vectors * self.gradient or self.ghost)))
