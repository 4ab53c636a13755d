"""One model of TRAK: ϕ_q (ΦᵀΦ + λ)⁻¹ ϕ_i, through whichever Gram matrix of its features is at hand.

    ϕ_q (ΦᵀΦ + λ)⁻¹ Φᵀ = ϕ_q Φᵀ (ΦΦᵀ + λ)⁻¹

The left side wants the features, (k, k); the right side only their products, (n, n), which whole gradients have too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from proponent.capture.blocks import Block
from proponent.capture.gradients import Capture
from proponent.capture.products import times
from proponent.curvature.metric import Identity
from proponent.curvature.projection import Sketch
from proponent.curvature.ridge import Ridge, gram_of
from proponent.methods.score import Sizes, prepare, stream
from proponent.rows import Rows
from proponent.task import Task

STRIPS = 4
"""Chunks of the training examples as queries of themselves; each meets those from its own first one on."""


@dataclass(frozen=True)
class Margin:
    """The margin, in the place of a loss: its gradients are what TRAK regresses on.

    Args:
        task: that measures it.
    """

    task: Task

    def __call__(self, net: Any, batch: Any) -> Tensor:
        return self.task.measurements(batch, net)


def margins_of(task: Task, rows: Rows) -> tuple[Capture, Sizes]:
    """How the margins' gradients are taken, and what one takes.

    Raises:
        InputError: the task's loss has no margin.
    """
    own = replace(task, loss=Margin(replace(task, measurement="margin")), measurement="loss")
    with own.watching():
        capture = Capture.of(own, rows)
        return capture, Sizes.of(capture, rows)


class Fitted(Protocol):
    """A model that is ready to score.

    Args:
        ridge: (Gram matrix + λ)⁻¹.
        width: numbers that a query takes.
        dimension: k, or None where gradients are not projected.
    """

    @property
    def dimension(self) -> int | None: ...

    @property
    def ridge(self) -> Ridge: ...

    @property
    def width(self) -> int: ...

    def scores(self, query: Rows, parts: Sequence[slice]) -> Iterator[tuple[slice, Tensor]]:
        """ϕ_q (ΦᵀΦ + λ)⁻¹ ϕ_i, (q, b), by parts of the training examples; NaN where a gradient is not finite."""
        ...

    def leverages(self) -> Tensor:
        """(n,) ϕ_i (ΦᵀΦ + λ)⁻¹ ϕ_i."""
        ...


@dataclass(frozen=True)
class Products:
    """Inner products of whole gradients.

    Args:
        capture: of a task whose losses are the margins.
        train: the training examples.
        batch: of these at once.
        sizes: what one takes.
    """

    capture: Capture
    train: Rows
    batch: int
    sizes: Sizes

    def __call__(self, query: Rows) -> Tensor:
        """(q, n); rows and columns of what is not finite are NaN."""
        return torch.cat([self._among(query[at], self.train) for at in query.parts(self.sizes.queries(0))])

    def gram(self) -> Tensor:
        """(n, n) of the training examples among each other, one half of it computed."""
        n = len(self.train)
        out = torch.empty(n, n, dtype=self.capture.task.precision, device=self.capture.task.device)
        for at in self.train.parts(min(self.sizes.queries(0), -(-n // STRIPS))):
            made = self._among(self.train[at], self.train[at.start :])
            out[at, at.start :], out[at.start :, at] = made, made.T
        return out

    def _among(self, query: Rows, train: Rows) -> Tensor:
        task = self.capture.task
        out = torch.empty(len(query), len(train), dtype=task.precision, device=task.device)
        with task.watching():
            prepared = prepare(self.capture, Identity(), query, self.batch)
            for at, made in stream(self.capture, prepared, train, train.parts(self.batch), 1.0):
                out[:, at] = made
        return out


@dataclass(frozen=True)
class Features:
    """Projected gradients.

    Args:
        capture: of a task whose losses are the margins.
        sketch: P.
        batch: examples at once.
    """

    capture: Capture
    sketch: Sketch
    batch: int

    def of(self, rows: Rows, parts: Sequence[slice] | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the rows with their features (b, k); NaN where a gradient is not finite."""
        task = self.capture.task
        with task.watching():
            for at in rows.parts(self.batch) if parts is None else parts:
                out = torch.zeros(at.stop - at.start, self.sketch.dimension, dtype=task.precision, device=task.device)

                def meet(name: str, block: Block, out: Tensor = out) -> None:
                    self.sketch.add(name, block, out)

                values = self.capture.each(task.batch(rows, at), task.losses, meet)
                out[~(values.isfinite() & out.sum(1).isfinite())] = torch.nan
                yield at, out

    def together(self, rows: Rows) -> Tensor:
        """(b, k) of all rows."""
        return torch.cat([made for _, made in self.of(rows)])


@dataclass(frozen=True)
class ProjectedProducts:
    """Inner products of projected gradients.

    Args:
        features: of queries.
        kept: (n, k) the training examples' features, without NaN.
    """

    features: Features
    kept: Tensor

    def __call__(self, query: Rows) -> Tensor:
        return times(self.features.together(query), self.kept.T)


@dataclass(frozen=True)
class OverExamples:
    """Through ΦΦᵀ.

    Args:
        products: Φ_q Φᵀ of queries, (q, n).
        ridge: of ΦΦᵀ.
        bad: (n,) training examples whose gradient is not finite.
        dimension: k, or None where gradients are not projected.
    """

    products: Callable[[Rows], Tensor]
    ridge: Ridge
    bad: Tensor
    dimension: int | None = None

    @property
    def width(self) -> int:
        return len(self.bad)

    def scores(self, query: Rows, parts: Sequence[slice]) -> Iterator[tuple[slice, Tensor]]:
        products = self.products(query)
        wrong = products.isnan().all(1)
        solved = self.ridge.solve(products.nan_to_num_(0.0).T).T
        solved[wrong], solved[:, self.bad] = torch.nan, torch.nan
        for at in parts:
            yield at, solved[:, at]

    def leverages(self) -> Tensor:
        """K (K + λ)⁻¹ = 1 − λ (K + λ)⁻¹."""
        inverse = torch.cholesky_inverse(self.ridge.factor).diagonal()
        return torch.where(self.bad, torch.nan, 1 - self.ridge.strength * inverse)


@dataclass(frozen=True)
class OverFeatures:
    """Through ΦᵀΦ.

    Args:
        features: of any examples.
        train: the training examples.
        kept: (n, k) their features, without NaN; or None, where they are taken again for every chunk of queries.
        ridge: of ΦᵀΦ.
        bad: (n,) training examples whose gradient is not finite.
    """

    features: Features
    train: Rows
    kept: Tensor | None
    ridge: Ridge
    bad: Tensor

    @property
    def dimension(self) -> int:
        return self.features.sketch.dimension

    @property
    def width(self) -> int:
        return len(self.ridge.factor)

    def scores(self, query: Rows, parts: Sequence[slice]) -> Iterator[tuple[slice, Tensor]]:
        ours = self.features.together(query)
        wrong = ours.isnan().any(1)
        solved = self.ridge.solve(ours.nan_to_num_(0.0).T).T
        solved[wrong] = torch.nan
        for at, theirs in self._features(parts):
            out = times(solved, theirs.T)
            out[:, self.bad[at]] = torch.nan
            yield at, out

    def leverages(self) -> Tensor:
        found = torch.cat(
            [
                self.ridge.halved(theirs.T).square().sum(0)
                for _, theirs in self._features(self.train.parts(self.features.batch))
            ]
        )
        return torch.where(self.bad, torch.nan, found)

    def _features(self, parts: Sequence[slice]) -> Iterator[tuple[slice, Tensor]]:
        if self.kept is None:
            yield from ((at, made.nan_to_num_(0.0)) for at, made in self.features.of(self.train, parts))
        else:
            yield from ((at, self.kept[at]) for at in parts)


def unprojected(products: Products, strength: Callable[[float], float]) -> OverExamples:
    """From the training examples' products among each other.

    Args:
        strength: λ from the mean of ‖ϕ_i‖².
    """
    return _over_examples(products, products.gram(), strength)


def projected(
    features: Features, train: Rows, strength: Callable[[float], float], keep: bool
) -> OverExamples | OverFeatures:
    """Through the smaller of the two Gram matrices, where the features are kept."""
    k, task = features.sketch.dimension, features.capture.task
    if keep:
        kept = features.together(train)
        bad = kept.isnan().any(1)
        kept.nan_to_num_(0.0)
        if len(train) <= k:
            gram = gram_of(kept)
            gram[bad] = torch.nan
            return _over_examples(ProjectedProducts(features, kept), gram, strength, k)
        gram = gram_of(kept.T.contiguous())
    else:
        kept, gram = None, torch.zeros(k, k, dtype=task.precision, device=task.device)
        wrong = []
        for _, made in features.of(train):
            wrong.append(made.isnan().any(1))
            made.nan_to_num_(0.0)
            gram += gram_of(made.T.contiguous())
        bad = torch.cat(wrong)
    mean = float(gram.diagonal().double().sum()) / max(1, int((~bad).sum()))
    return OverFeatures(features, train, kept, Ridge.of(gram, strength(mean)), bad)


def _over_examples(
    products: Callable[[Rows], Tensor],
    gram: Tensor,
    strength: Callable[[float], float],
    dimension: int | None = None,
) -> OverExamples:
    bad = gram.diagonal().isnan()
    mean = float(gram.diagonal()[~bad].double().mean())
    gram[:, bad] = 0.0
    gram[bad] = 0.0
    return OverExamples(products, Ridge.of(gram, strength(mean)), bad, dimension)
