"""How far an example moves the parameters: metrics whose norm is ‖P g‖, where that of the given one is √(gᵀ P g)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proponent.curvature.fisher import InverseFisher
from proponent.curvature.gram import DualMetric, DualNorms
from proponent.curvature.metric import Identity, Metric
from proponent.curvature.queries import Meter
from proponent.curvature.whole import Gathered, Solved
from proponent.errors import UnsupportedModel


def squared(metric: Metric) -> Metric:
    """Its meter gives ‖P g‖²; it is for that alone."""
    if isinstance(metric, Identity):
        return metric
    if isinstance(metric, InverseFisher):
        return replace(metric.exact(), inverse={n: tuple(x.square() for x in p) for n, p in metric.inverse.items()})
    if isinstance(metric, Solved):
        return SolvedTwice(metric.coordinates, metric.precision, metric.solve, metric.vectors)
    if isinstance(metric, DualMetric):
        return DualTwice(metric.rows, metric.damping)
    raise UnsupportedModel(
        f"the length of H⁻¹∇ℓ for {type(metric).__name__}",
        "a curvature in eigenbases, or one of all parameters together by another solver",
        "pass curvature='ekfac', a solver such as 'cg', or measure by the loss instead",
    )


@dataclass(frozen=True)
class SolvedTwice(Solved):
    """By a solver."""

    def meter(self, zeros: Tensor) -> Meter:
        return SolvedLengths(self, zeros)


@dataclass
class SolvedLengths(Gathered):
    """Solves for every example of a batch."""

    def measured(self, rows: Tensor) -> Tensor:
        return self.metric.solve(rows).x.square().sum(1)


@dataclass(frozen=True)
class DualTwice(DualMetric):
    """Through inner products."""

    def meter(self, zeros: Tensor) -> Meter:
        return DualLengths(self, zeros, zeros.new_zeros(self.rows.count, len(zeros)))


@dataclass
class DualLengths(DualNorms):
    """‖g − Bᵀu‖² / λ² with u = (B Bᵀ + nλ)⁻¹ B g."""

    def total(self) -> Tensor:
        met = self.met.double()
        u = torch.cholesky_solve(met, self.metric.lower)
        inside = (u * (self.metric.rows.gram.to(u) @ u - 2 * met)).sum(0)
        return ((self.own + inside) / self.metric.damping**2).to(self.own)
