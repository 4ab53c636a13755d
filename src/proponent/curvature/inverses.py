"""How the curvature of all parameters together is inverted: each way makes a metric of an operator and a damping.

explicit     the matrix, formed and factorised                        up to some thousand parameters
dual         through inner products of the gradients it is made of     up to some thousand of these
cg           conjugate gradients, preconditioned, all queries at once  any size; the residual is known
nystrom      from products with random directions                      a low-rank approximation
arnoldi      in the span of the largest eigenvalues' vectors           a low-rank approximation; the rest is dropped
lissa        a stochastic Neumann series                               the classic; many steps
refinement   stochastic descent from EK-FAC's solution                 ASTRA
datainf      layer by layer, mean and inverse swapped                  one pass; close to gradient dot products
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from proponent.curvature import solvers
from proponent.curvature.datainf import HarmonicMean
from proponent.curvature.gram import DualMetric
from proponent.curvature.metric import Metric
from proponent.curvature.operators import Moment
from proponent.curvature.problems import STRETCHES, Problem
from proponent.curvature.solvers import LowRank, Product, Solution
from proponent.errors import InputError, ProponentWarning

Facts = dict[str, Any]


@dataclass(frozen=True)
class Explicit:
    """The whole matrix by its Cholesky factor in float64: exact, up to some thousand parameters."""

    name: ClassVar[str] = "explicit"

    def metric(self, problem: Problem, damping: float) -> tuple[Metric, Facts]:
        solve = solvers.explicit(problem.matrix, damping)
        nothing = problem.like.new_zeros(())
        return problem.solved(lambda rhs: Solution(solve(rhs), nothing.expand(len(rhs)), 0)), {}


EACH, MOST = 5, 300
"""Rank of a Nyström preconditioner for each vector that is solved for, and at most."""


@dataclass(frozen=True)
class CG:
    """Block conjugate gradients: all queries' solutions are sought in the space that their directions span together.

    Args:
        tolerance: of ‖(A + λ) u − g‖ / ‖g‖; what was reached is in the result as `residual`.
        most: iterations, a pass over the training examples each.
        preconditioner: "nystrom" (products with random directions, one pass for all), "ekfac" or "none"; by default "nystrom",
            of a Hessian, whose negative eigenvalues that cannot be, "none".
        rank: of the Nyström preconditioner; by default five for every query solved together, at most 300, so that it costs no
            more than a few passes do. Less where so many directions do not fit in half a gibibyte.
    """

    tolerance: float = 1e-4
    most: int = 200
    preconditioner: str = "auto"
    rank: int | None = None
    name: ClassVar[str] = "cg"

    def __post_init__(self) -> None:
        if self.preconditioner not in ("auto", "ekfac", "nystrom", "none"):
            raise InputError(f"preconditioner {self.preconditioner!r}", "'nystrom', 'ekfac' or 'none'", "choose one")

    def metric(self, problem: Problem, damping: float) -> tuple[Metric, Facts]:
        times = problem.times(damping)
        facts: Facts = {"passes": []}

        def solve(rhs: Tensor) -> Solution:
            precondition = self._preconditioner(problem, damping, len(rhs))
            found = solvers.conjugate_gradients(times, rhs, precondition, self.tolerance, self.most)
            facts["passes"].append(found.passes)
            worst = float(torch.nan_to_num(found.residual, nan=0.0).max())
            if worst > self.tolerance:
                warnings.warn(
                    f"conjugate gradients stopped after {found.passes} passes at a relative residual of {worst:.2g}, where "
                    f"{self.tolerance:.2g} was asked for; raise the damping or CG(most=…)",
                    ProponentWarning,
                    stacklevel=2,
                )
            return found

        return problem.solved(solve), facts

    def _preconditioner(self, problem: Problem, damping: float, vectors: int) -> Product:
        if self.preconditioner == "ekfac":
            return problem.by_ekfac(damping)
        if self.preconditioner == "none" or (self.preconditioner == "auto" and not problem.positive):
            return lambda v: v.clone()
        found = problem.sketch(self.rank or min(EACH * vectors, MOST))
        return lambda v: found.precondition(v, damping)


@dataclass(frozen=True)
class Nystrom:
    """A low-rank approximation from products with random directions, inverted exactly.

    Args:
        rank: of the approximation; with as many as parameters it is exact.
        seed: of the directions.
    """

    rank: int = 500
    seed: int = 0
    name: ClassVar[str] = "nystrom"

    def metric(self, problem: Problem, damping: float) -> tuple[Metric, Facts]:
        size = problem.coordinates.size
        found = solvers.nystrom(problem.operator.times, size, self.rank, problem.like, self.seed)
        share = float(found.values.sum()) / problem.trace if problem.trace else 1.0
        return problem.checked(damping, lambda rhs: found.solve(rhs, damping), 1), {"trace_kept": round(share, 4)}


@dataclass(frozen=True)
class Arnoldi:
    """Only in the span of the eigenvectors of largest eigenvalue, from a Krylov space.

    Args:
        steps: dimension of the Krylov space.
        rank: eigenvectors that are kept; with as many as parameters it is exact.
        seed: of the first direction.

    Source: Schioppa et al., Scaling up influence functions, AAAI 2022.
    """

    steps: int = 100
    rank: int = 100
    seed: int = 0
    name: ClassVar[str] = "arnoldi"

    def metric(self, problem: Problem, damping: float) -> tuple[Metric, Facts]:
        generator = torch.Generator().manual_seed(self.seed)
        start = torch.randn(problem.coordinates.size, generator=generator, dtype=torch.float64).to(problem.like)
        found: LowRank = solvers.arnoldi(problem.operator.times, start, self.steps, self.rank)
        return problem.checked(damping, lambda rhs: found.solve_inside(rhs, damping), len(found.values)), {}


@dataclass(frozen=True)
class LiSSA:
    """The stochastic Neumann series of Koh & Liang's first implementation, in units without surprises: λ is not scaled.

    Args:
        scale: above the largest eigenvalue of a batch's curvature; by default 1.5 times that of the whole, found by the power
            method, times the spread that batches of this size have.
        depth: steps. Stopping after J of them damps by about scale/J more.
        repeats: runs that are averaged.
        batch: random examples a step.
        seed: of the batches.
    """

    scale: float | None = None
    depth: int = 1000
    repeats: int = 1
    batch: int = 64
    seed: int = 0
    name: ClassVar[str] = "lissa"

    def metric(self, problem: Problem, damping: float) -> tuple[Metric, Facts]:
        scale = self.scale or self._scale(problem, damping)
        times = problem.random_times(damping, self.batch, self.seed)
        passes = self.depth * self.repeats * self.batch / len(problem.rows)
        made = problem.checked(damping, lambda rhs: solvers.lissa(times, rhs, scale, self.depth, self.repeats), passes)
        return made, {"scale": scale, "passes": passes, "damping_of_stopping": scale / self.depth}

    def _scale(self, problem: Problem, damping: float) -> float:
        whole = solvers.largest_eigenvalue(problem.operator.times, problem.like)
        return damping + 1.5 * whole * (1 + (STRETCHES / max(1, self.batch)) ** 0.5)


@dataclass(frozen=True)
class Refinement:
    """Stochastic descent on the exact curvature, preconditioned by EK-FAC and started from its solution (ASTRA).

    Args:
        rate: step size at first; it halves every 50 steps.
        steps: batches.
        batch: random examples a step.
        momentum: of the descent.
        seed: of the batches.

    Source: Wang et al., Better training data attribution via better inverse Hessian-vector products, 2025.
    """

    rate: float = 0.03
    steps: int = 200
    batch: int = 256
    momentum: float = 0.9
    seed: int = 0
    name: ClassVar[str] = "refinement"

    def metric(self, problem: Problem, damping: float) -> tuple[Metric, Facts]:
        times, precondition = problem.random_times(damping, self.batch, self.seed), problem.by_ekfac(damping)
        passes = self.steps * self.batch / len(problem.rows)
        made = problem.checked(
            damping,
            lambda rhs: solvers.refine(times, rhs, precondition, self.rate, self.steps, self.momentum),
            passes,
        )
        return made, {"passes": passes}


@dataclass(frozen=True)
class Dual:
    """The exact inverse through the inner products of the gradients that the curvature is made of.

    Args:
        rows: the longest gradients that are kept; all where there are no more. Their share of the squared length that is
            left out is in the result as `left_out`.
    """

    rows: int = 5000
    name: ClassVar[str] = "dual"

    def metric(self, problem: Problem, damping: float) -> tuple[Metric, Facts]:
        kept = problem.longest(self.rows)
        return DualMetric(kept, damping), {"rows": kept.count, "left_out": round(kept.left_out, 6)}


@dataclass(frozen=True)
class DataInf:
    """The mean of the inverses of single examples' curvatures in place of the inverse of their mean, layer by layer.

    (1/n) Σ_i (g_i g_iᵀ + λ)⁻¹ = (1/λ) [1 − (1/n) Σ_i g_i g_iᵀ / (λ + ‖g_i‖²)]

    Source: Kwon et al., DataInf: efficiently estimating data influence in LoRA-tuned LLMs and diffusion models, ICLR 2024.
    """

    name: ClassVar[str] = "datainf"

    def metric(self, problem: Problem, damping: float) -> tuple[Metric, Facts]:
        operator = problem.operator
        assert isinstance(operator, Moment)
        return HarmonicMean(operator, damping), {}


Solver = Explicit | CG | Nystrom | Arnoldi | LiSSA | Refinement | Dual | DataInf
SOLVERS: dict[str, Callable[[], Solver]] = {
    s.name: s for s in (Explicit, CG, Nystrom, Arnoldi, LiSSA, Refinement, Dual, DataInf)
}
