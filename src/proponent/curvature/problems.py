"""Curvatures of all parameters together, and what solvers may ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from proponent.capture.blocks import Dense
from proponent.capture.gradients import Capture
from proponent.curvature.coordinates import Coordinates
from proponent.curvature.damping import Damping
from proponent.curvature.fisher import InverseFisher
from proponent.curvature.gram import Kept
from proponent.curvature.kinds import EKFAC, Kind, covariances, decomposed, eigenvalues
from proponent.curvature.operators import Linearised, Moment
from proponent.curvature.solvers import LowRank, Product, Solution, nystrom
from proponent.curvature.spectrum import Spectrum
from proponent.curvature.whole import Solved
from proponent.errors import InputError, UnsupportedModel
from proponent.rows import Rows

MOST_EXPLICIT = 12_000
"""Parameters of which the whole matrix is formed."""

STRETCHES = 8
"""That a random batch is made of: examples are read in contiguous stretches."""

SKETCH = 2**29
"""Bytes that the directions of a preconditioner's sketch may take."""

AT_ONCE = 512
"""Examples captured at once where each has several gradients."""


@dataclass(frozen=True)
class Problem:
    """A curvature of all parameters together, and what solvers may ask of it.

    Args:
        operator: v ↦ A v.
        capture, rows: of the model and its training examples.
        batch: examples captured at once.
        kind: which gradients A is made of; None where it is not made of any.
        kept: its longest gradients, by how many were asked for.
        sketches: its low-rank approximations, by rank.
    """

    operator: Moment | Linearised
    capture: Capture
    rows: Rows
    batch: int
    kind: Kind | None
    kept: dict[int, Kept] = field(default_factory=dict, repr=False)
    sketches: dict[int, LowRank] = field(default_factory=dict, repr=False)

    @property
    def coordinates(self) -> Coordinates:
        return self.operator.coordinates

    @property
    def positive(self) -> bool:
        """Whether no eigenvalue can be negative."""
        return not (isinstance(self.operator, Linearised) and self.operator.second == "hessian")

    @cached_property
    def like(self) -> Tensor:
        """An empty tensor of the precision and on the device that vectors have."""
        task = self.capture.task
        return torch.zeros(0, self.coordinates.size, dtype=task.precision, device=task.device)

    @cached_property
    def trace(self) -> float:
        """The sum of A's eigenvalues."""
        return self.operator.trace()

    @cached_property
    def matrix(self) -> Tensor:
        """A, (P, P)."""
        size = self.coordinates.size
        if size > MOST_EXPLICIT:
            raise InputError(
                f"a curvature of {size:,} × {size:,}",
                f"at most {MOST_EXPLICIT:,} parameters for solver='explicit'",
                "use solver='dual' or 'cg', or choose parameters=… of the task",
            )
        made = torch.empty(size, size, dtype=self.like.dtype, device=self.like.device)
        for at in range(0, size, 1024):
            part = torch.zeros(min(1024, size - at), size).to(self.like)
            part[:, at:].fill_diagonal_(1.0)
            made[at : at + 1024] = self.operator.times(part)
        return made

    def times(self, damping: float) -> Product:
        """v ↦ (A + λ) v, in one pass over the training examples."""
        return lambda v: self.operator.times(v).add_(v, alpha=damping)

    def random_times(self, damping: float, size: int, seed: int) -> Callable[[Tensor, int], Tensor]:
        """v ↦ (A_t + λ) v of random batch number t."""
        if size >= len(self.rows):
            whole = self.times(damping)
            return lambda v, turn: whole(v)
        task, stretches = self.capture.task, self.rows.parts(max(1, size // STRETCHES))
        count = max(1, size // (stretches[0].stop - stretches[0].start))

        def times(v: Tensor, turn: int) -> Tensor:
            chosen = np.random.default_rng((seed, turn)).choice(
                len(stretches), min(len(stretches), count), replace=False
            )
            parts = [task.batch(self.rows, stretches[k]) for k in sorted(chosen)]
            batch = tree_map(lambda *x: torch.cat(x) if isinstance(x[0], Tensor) else x[0], *parts)
            return self.operator.times_of(v, batch, int(chosen[0])).add_(v, alpha=damping)

        return times

    @cached_property
    def spectrum(self) -> Spectrum:
        """EK-FAC of the same model, as a preconditioner."""
        kind = EKFAC(fisher="sampled" if hasattr(self.capture.task._loss, "signed") else "empirical")
        sums, _ = covariances(kind, self.capture, self.rows, self.batch)
        return eigenvalues(kind, self.capture, self.rows, self.batch, decomposed(kind, sums))[0]

    @cached_property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The parameters of each block."""
        task = self.capture.task
        _, blocks = self.capture.gradients(task.batch(self.rows, slice(0, 1)), task.losses)
        return {key: block.names for key, block in blocks.items()}

    def by_ekfac(self, damping: float) -> Product:
        """EK-FAC's inverse of each row."""
        metric = InverseFisher.of(self.spectrum, Damping(damping), 0.0, frozenset(), 0.0, None)

        def precondition(v: Tensor) -> Tensor:
            own = self.coordinates.split(v)
            made, _ = metric.directions(
                {k: Dense(names, tuple(own[n] for n in names)) for k, names in self.names.items()}
            )
            return self.coordinates.join({n: rows / damping for n, rows in own.items()} | made, v)

        return precondition

    def longest(self, most: int) -> Kept:
        """The longest of the gradients that A is made of, found once."""
        if self.kind is None:
            raise UnsupportedModel(
                "a curvature that is not made of gradients",
                "a loss whose Hessian has few terms, or a Fisher matrix",
                "use solver='cg', or curvature='fisher'",
            )
        if most not in self.kept:
            self.kept[most] = Kept.of(self.kind, self.capture, self.rows, self.batch, most)
        return self.kept[most]

    def sketch(self, rank: int, seed: int = 0) -> LowRank:
        """A Nyström approximation of as many directions as SKETCH bytes hold; one of more, if it is there already."""
        size = self.coordinates.size
        rank = max(1, min(rank, size, SKETCH // (4 * size)))
        best = max(self.sketches, default=0)
        if best < rank:
            best = rank
            self.sketches[rank] = nystrom(self.operator.times, size, rank, self.like, seed)
        return self.sketches[best]

    def solved(self, solve: Callable[[Tensor], Solution]) -> Solved:
        """A metric of this problem."""
        return Solved(self.coordinates, self.like.dtype, solve)

    def checked(self, damping: float, solve: Product, passes: float) -> Solved:
        """A metric whose solutions are put to the test by one more pass."""
        times = self.times(damping)

        def both(rhs: Tensor) -> Solution:
            x = solve(rhs)
            size = rhs.norm(dim=1).clamp(min=torch.finfo(rhs.dtype).tiny)
            return Solution(x, (rhs - times(x)).norm(dim=1) / size, passes + 1)

        return self.solved(both)


@dataclass(frozen=True)
class GGN:
    """The Gauss-Newton matrix of the mean loss: its Hessian for a model that is linear around its parameters.

    G = (1/n) Σ_i J_iᵀ H_i J_i,  J: the output's derivative in the parameters, H: the loss's Hessian in the output

    Args:
        per_layer: the blocks on the diagonal only.
    """

    per_layer: bool = False
    name: ClassVar[str] = "ggn"

    def problem(self, capture: Capture, rows: Rows, batch: int) -> Problem:
        """Term by term of the loss's Hessian where they are few, by differentiating twice otherwise."""
        task, few = capture.task, min(batch, AT_ONCE)
        try:
            next(task.expected_losses(task.batch(rows, slice(0, 1))))
        except UnsupportedModel:
            _refuse_layers(self.per_layer, "a Gauss-Newton matrix of many terms")
            return Problem(Linearised(capture, rows, "ggn", few), capture, rows, few, None)
        kind = Kind(fisher="exact")
        return Problem(Moment(capture, rows, kind, few, self.per_layer), capture, rows, few, kind)


@dataclass(frozen=True)
class Hessian:
    """The exact Hessian of the mean loss; it has negative eigenvalues where the loss is not convex.

    H = (1/n) Σ_i ∇²ℓ_i
    """

    name: ClassVar[str] = "hessian"

    def problem(self, capture: Capture, rows: Rows, batch: int) -> Problem:
        few = min(batch, AT_ONCE)
        return Problem(Linearised(capture, rows, "hessian", few), capture, rows, few, None)


@dataclass(frozen=True)
class Fisher:
    """The true Fisher matrix from one random sum of each example's outputs: a cheap estimate of the Gauss-Newton matrix.

    F = (1/n) Σ_i g_i g_iᵀ,  g_i = ∇(f_i · L_i s_i): L_i L_iᵀ is the loss's Hessian in the outputs f_i, and s_i are random signs

    Args:
        seed: of the signs.
        per_layer: the blocks on the diagonal only.
    """

    seed: int = 0
    per_layer: bool = False
    name: ClassVar[str] = "fisher"

    def problem(self, capture: Capture, rows: Rows, batch: int) -> Problem:
        kind = Kind(fisher="sampled", seed=self.seed)
        return Problem(Moment(capture, rows, kind, batch, self.per_layer), capture, rows, batch, kind)


@dataclass(frozen=True)
class EmpiricalFisher:
    """The second moment of the training examples' own gradients: not a Hessian, but any loss has it.

    F = (1/n) Σ_i ∇ℓ_i ∇ℓ_iᵀ

    Args:
        per_layer: the blocks on the diagonal only.
    """

    per_layer: bool = False
    name: ClassVar[str] = "empirical_fisher"

    def problem(self, capture: Capture, rows: Rows, batch: int) -> Problem:
        kind = Kind(fisher="empirical")
        return Problem(Moment(capture, rows, kind, batch, self.per_layer), capture, rows, batch, kind)


def _refuse_layers(per_layer: bool, what: str) -> None:
    if per_layer:
        raise UnsupportedModel(f"{what}, layer by layer", "all parameters together", "leave per_layer out")


Matrix = GGN | Hessian | Fisher | EmpiricalFisher
MATRICES: dict[str, Callable[[], Matrix]] = {m.name: m for m in (GGN, Hessian, Fisher, EmpiricalFisher)}
