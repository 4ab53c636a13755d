"""The exact dual: a curvature of r gradients is inverted through their inner products, and no gradient is ever formed.

    A = BᵀB / n,  rows of B: gradients whose outer products make the curvature (of the terms of the loss's Hessian)
    gᵀ (A + λ)⁻¹ g′ = (1/λ) [ g·g′ − (B g)ᵀ (B Bᵀ + nλ)⁻¹ (B g′) ]

Rows are kept by their length until `most` are held; the share of the squared length that is left out is the error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from proponent.capture.blocks import Block, Factors, concatenate, numbers
from proponent.capture.gradients import Capture
from proponent.curvature.kinds import Kind, targets
from proponent.curvature.metric import Identity
from proponent.curvature.operators import weighted
from proponent.curvature.queries import Beside, FewAtOnce, Meter, Mixed, Prepared, Queries, by_parameter
from proponent.errors import InputError, UnsupportedModel
from proponent.progress import track
from proponent.rows import Rows

MEMORY = 2**32
"""Bytes that the rows and their products may take."""

REFINED, REFINEMENTS = 1e-8, 8
"""Relative residual of solutions on the damping path, and the steps after which a factor in double precision is made."""


@dataclass(frozen=True)
class Kept:
    """The longest rows of B.

    Args:
        blocks: r gradients by block.
        count: r.
        examples: n.
        left_out: share of Σ ‖row‖² in the rows that were left out.
        trace: Σ ‖row‖² / n of all rows, the sum of the eigenvalues of A.
    """

    blocks: Mapping[str, Block]
    count: int
    examples: int
    left_out: float
    trace: float

    @classmethod
    def of(cls, kind: Kind, capture: Capture, rows: Rows, batch: int, most: int) -> Kept:
        """Two passes over the training examples: lengths, then the rows that are kept.

        Raises:
            InputError: the rows do not fit in memory.
        """
        norms = torch.cat([norm for _, norm in _norms(kind, capture, rows, batch)], 1)  # (terms, n)
        chosen = torch.zeros(norms.numel(), dtype=torch.bool)
        chosen[norms.flatten().argsort(descending=True)[:most]] = True
        chosen = chosen.view_as(norms) & (norms > 0)
        _require_room(capture, rows, int(chosen.sum()))
        parts = [few for few in _chosen(kind, capture, rows, batch, chosen) if few]
        names = {frozenset(few) for few in parts}
        if len(names) != 1:
            raise UnsupportedModel(
                "layers that some examples use and others do not", "the same layers for all", "use solver='cg'"
            )
        blocks = {name: concatenate([few[name] for few in parts]) for name in parts[0]}
        total = float(norms.sum())
        return cls(blocks, int(chosen.sum()), len(rows), 1 - float(norms[chosen].sum()) / total, total / len(rows))

    @cached_property
    def prepared(self) -> dict[str, Prepared]:
        """Ready to meet other gradients."""
        return {name: _ready(name, block) for name, block in self.blocks.items()}

    @cached_property
    def gram(self) -> Tensor:
        """B Bᵀ, (r, r), in float64."""
        first = next(iter(self.blocks.values()))
        out = first.rows()[0].new_zeros(self.count, self.count) if self.count else torch.zeros(0, 0)
        for name, block in self.blocks.items():
            self.prepared[name].add(block, out)
        wide = out.double()
        return (wide + wide.T) / 2

    def against(self, blocks: Mapping[str, Block], count: int, like: Tensor) -> Tensor:
        """B gᵀ of other gradients, (r, count)."""
        out = like.new_zeros(self.count, count)
        for name, block in blocks.items():
            if name in self.prepared:
                self.prepared[name].add(block, out)
        return out


@dataclass(frozen=True)
class DualMetric:
    """gᵀ (A + λ)⁻¹ g′.

    Args:
        rows: B.
        damping: λ, positive, with the weight decay.
    """

    rows: Kept
    damping: float
    vectors: int = 0

    @cached_property
    def lower(self) -> Tensor:
        """The Cholesky factor of B Bᵀ + nλ."""
        shifted = self.rows.gram.clone()
        shifted.diagonal().add_(self.rows.examples * self.damping)
        return torch.linalg.cholesky(shifted)

    def queries(self, blocks: Mapping[str, Block], count: int, finite: Tensor, layers: tuple[str, ...] = ()) -> Queries:
        both, met = _beside(self.rows, blocks, count, finite)
        return Mixed(both, count, finite, layers, None, self.mix(met))

    def directions(self, blocks: Mapping[str, Block]) -> tuple[dict[str, Tensor], None]:
        made, _ = Identity().directions(blocks)
        first = next(iter(made.values()))
        met = self.rows.against(blocks, len(first), first)
        weights = torch.cholesky_solve(met.double(), self.lower).T.to(first)
        for name, drawn in by_parameter(self.rows.blocks, lambda _, block: weighted(block, weights)).items():
            made[name] = made[name] - drawn if name in made else -drawn
        return {name: rows / self.damping for name, rows in made.items()}, None

    def meter(self, zeros: Tensor) -> Meter:
        return DualNorms(self, zeros, zeros.new_zeros(self.rows.count, len(zeros)))

    def mix(self, met: Tensor) -> Tensor:
        """(q, q + r): how a score is combined from products with the queries and with the rows.

        Args:
            met: (r, q) B g of the queries.
        """
        weights = torch.cholesky_solve(met.double(), self.lower).T
        own = torch.eye(met.shape[1], dtype=torch.float64, device=met.device)
        return (torch.cat([own, -weights], 1) / self.damping).to(met)


@dataclass(frozen=True)
class DualPath:
    """Several dampings at once: sums of scores, damping by damping, from the same products.

    Args:
        rows: B.
        dampings: λ of each. A factor of B Bᵀ + nλ is made when it is needed, and not kept.
    """

    rows: Kept
    dampings: Sequence[float]
    vectors: int = 0

    def queries(self, blocks: Mapping[str, Block], count: int, finite: Tensor, layers: tuple[str, ...] = ()) -> Queries:
        both, met = _beside(self.rows, blocks, count, finite)
        return OnPath(both, count, finite, layers, path=self, met=met)

    def directions(self, blocks: Mapping[str, Block]) -> tuple[dict[str, Tensor], None]:
        raise InputError("directions at several dampings", "one damping", "choose one")

    def meter(self, zeros: Tensor) -> Meter:
        raise InputError("squared norms at several dampings", "one damping", "choose one")


@dataclass(frozen=True)
class OnPath(Queries):
    """q queries beside r rows, whose products become scores at every damping once they are summed over training examples.

    Args:
        path: rows and dampings.
        met: (r, q) B g of the queries.
    """

    path: DualPath = field(kw_only=True)
    met: Tensor = field(kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count + self.path.rows.count,)

    def finish(self, out: Tensor) -> Tensor:
        """(L q, s) from products summed with s weights; it makes a factor for each damping, so is not for every batch."""
        own, through = out[: self.count].double(), out[self.count :].double()
        rows, met = self.path.rows, self.met.double().T
        each = ((own - met @ solve(rows.gram, rows.examples * d, through)) / d for d in self.path.dampings)
        return torch.cat(list(each)).to(out)


def solve(gram: Tensor, shift: float, rhs: Tensor) -> Tensor:
    """(K + shift)⁻¹ rhs of few columns in float64, by a factor in single precision, which takes half the time, and
    refinement; by one in double precision where that does not get to the bottom.

    Args:
        gram: (r, r) K.
        rhs: (r, s).
    """

    def shifted(kind: torch.dtype) -> Tensor:
        made = gram.to(kind, copy=True)
        made.diagonal().add_(shift)
        return made

    lower, info = torch.linalg.cholesky_ex(shifted(torch.float32))
    if not int(info):
        x, sizes = torch.zeros_like(rhs), rhs.norm(dim=0)
        for _ in range(REFINEMENTS):
            left = rhs - torch.addmm(shift * x, gram, x)
            if bool((left.norm(dim=0) <= REFINED * sizes).all()):
                return x
            x = x + torch.cholesky_solve(left.float(), lower).double()
    return torch.cholesky_solve(rhs, torch.linalg.cholesky(shifted(torch.float64)))


def _beside(rows: Kept, blocks: Mapping[str, Block], count: int, finite: Tensor) -> tuple[dict[str, Prepared], Tensor]:
    """Queries' own gradients above the rows, block by block; and B g of the queries, (r, q)."""
    own = Identity().queries(blocks, count, finite).blocks
    both: dict[str, Prepared] = {
        name: Beside(((own.get(name), count), (rows.prepared.get(name), rows.count)))
        for name in {**own, **rows.prepared}
    }
    return both, rows.against(blocks, count, next(iter(blocks.values())).rows()[0][:0])


@dataclass
class DualNorms:
    """(‖g‖² − ‖L⁻¹ B g‖²) / λ of each example."""

    metric: DualMetric
    own: Tensor
    met: Tensor

    def take(self, name: str, block: Block) -> None:
        self.own += block.norm2()
        if name in self.metric.rows.prepared:
            self.metric.rows.prepared[name].add(block, self.met)

    def total(self) -> Tensor:
        inside = torch.linalg.solve_triangular(self.metric.lower, self.met.double(), upper=False)
        return ((self.own - inside.square().sum(0)) / self.metric.damping).to(self.own)


def _ready(name: str, block: Block) -> Prepared:
    """Layers with one position meet from their factors; other gradients are formed a few at a time."""
    one = isinstance(block, Factors) and block.positions == 1
    return Identity().prepare(name, block) if one else FewAtOnce(block)


def _norms(kind: Kind, capture: Capture, rows: Rows, batch: int) -> Iterator[tuple[slice, Tensor]]:
    """(terms, b) squared lengths, batch by batch."""
    for at in track(rows.parts(batch), "curvature: lengths of rows", total=len(rows.parts(batch))):
        examples = capture.task.batch(rows, at)
        made = [
            torch.stack([block.norm2() for block in blocks.values()]).sum(0)
            for blocks in targets(kind, capture, examples, at.start)
        ]
        yield at, torch.stack(made).double().cpu()


def _chosen(kind: Kind, capture: Capture, rows: Rows, batch: int, chosen: Tensor) -> Iterator[dict[str, Any]]:
    """Blocks of the chosen gradients, batch by batch and term by term."""
    for at in track(rows.parts(batch), "curvature: rows", total=len(rows.parts(batch))):
        if not bool(chosen[:, at].any()):
            continue
        examples = capture.task.batch(rows, at)
        for k, blocks in enumerate(targets(kind, capture, examples, at.start)):
            here = chosen[k, at].nonzero().flatten().to(capture.task.device)
            if len(here):
                yield {name: block[here] for name, block in blocks.items()}


def _require_room(capture: Capture, rows: Rows, count: int) -> None:
    _, blocks = capture.gradients(capture.task.batch(rows, slice(0, 1)), capture.task.losses)
    needed = count * (4 * sum(numbers(b) for b in blocks.values()) + 24 * count)
    if needed > MEMORY:
        raise InputError(
            f"{count:,} rows of the dual, which take about {needed / 2**30:.1f} GiB",
            f"at most {MEMORY / 2**30:.0f} GiB",
            "pass solver=Dual(rows=…) with fewer, or solver='cg'",
        )
