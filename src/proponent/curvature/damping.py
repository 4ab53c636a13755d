"""Damping: what is added to a curvature's spectrum before it is inverted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from proponent.errors import InputError

FRACTION = 0.1
"""Of the mean eigenvalue of a layer, where nothing is known about the training run."""

SHARE = 1e-3
"""Of the sum of all eigenvalues, for a curvature of all parameters together: most of these directions have none."""


@dataclass(frozen=True)
class Damping:
    """λ in (curvature + λ)⁻¹.

    >>> import torch
    >>> Damping(0.1, scale="mean").of(torch.tensor([1.0, 3.0]))
    0.2

    Args:
        value: positive; 0 only where the curvature is invertible by itself.
        scale: "absolute" adds the value; "mean" adds value × the mean eigenvalue of each block, so that layers of very
            different scale are damped alike; "trace" adds value × the sum of the eigenvalues.
    """

    value: float
    scale: Literal["absolute", "mean", "trace"] = "absolute"

    def __post_init__(self) -> None:
        if not self.value >= 0 or self.scale not in ("absolute", "mean", "trace"):
            raise InputError(
                f"damping {self.value!r} on the scale {self.scale!r}",
                "a number ≥ 0 on the scale 'absolute', 'mean' or 'trace'",
                "pass Damping(0.1, scale='mean')",
            )

    def of(self, eigenvalues: Tensor) -> float:
        """λ for a block with these eigenvalues."""
        own = self.of_trace(float(eigenvalues.double().sum()), eigenvalues.numel())
        if own == 0 and float(eigenvalues.min()) <= 0:
            raise InputError(
                "no damping for a curvature with eigenvalues of zero",
                "a positive damping",
                "pass damping='auto', or Damping(0.1, scale='mean')",
            )
        return own

    def of_trace(self, trace: float, size: int) -> float:
        """λ for a block of which only the sum of its eigenvalues is known, and how many there are."""
        return self.value * {"absolute": 1.0, "mean": trace / size, "trace": trace}[self.scale]


@dataclass(frozen=True)
class AutoDamping:
    """Damping that chooses itself: by a few retrained models, by the length of the training run, or by the spectrum.

    With a ledger of models retrained on subsets, or a recipe that makes one, the damping is that whose scores best predict
    what the retrained models measure of held-out queries. How much the subsets leave out matters: the larger the part, the
    larger the damping that predicts its removal. These subsets and queries must not be those that judge the scores later.

        λ = argmax_λ  mean over queries of Spearman over subsets S of ( Σ_{i in S} score_λ[q, i],  measured[S, q] )

    With neither, λ = (1 − momentum)/(rate · steps) where the training run is described: gradient descent of that length has
    moved little along directions of lower curvature. With nothing at all, a tenth of each layer's mean eigenvalue, or a
    thousandth of the trace of a curvature of all parameters together.

    >>> AutoDamping(rate=0.1, steps=500).by_run().value
    0.02

    Args:
        ledger: models retrained on subsets, that measured `queries`.
        recipe: makes the ledger, where none is given: `subsets` random subsets.
        queries: held-out examples, as for `score`.
        subsets: models that are retrained.
        fraction: of the training examples that each subset holds.
        seed: of the subsets and of the training.
        rate: learning rate of the training run.
        steps: of the training run.
        momentum: of its optimiser.

    Raises:
        InputError: a ledger or a recipe without queries.

    Source: Bae et al., Training data attribution via approximate unrolled differentiation, NeurIPS 2024, for the run's
    length; the choice by retrained models is ours.
    """

    ledger: Any = None
    recipe: Any = None
    queries: Any = None
    subsets: int = 50
    fraction: float = 0.5
    seed: int = 0
    rate: float | None = None
    steps: int | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.retrained and self.queries is None:
            raise InputError(
                "a ledger or a recipe to choose the damping by, without queries",
                "held-out examples that the retrained models measure",
                "pass queries=…",
            )

    @property
    def retrained(self) -> bool:
        """Whether there are, or will be, retrained models to choose by."""
        return self.ledger is not None or self.recipe is not None

    def by_run(self) -> Damping | None:
        """1/(ηT) of the training run, where it is described."""
        if self.rate is None or self.steps is None:
            return None
        return Damping((1 - self.momentum) / (self.rate * self.steps))


def damping_of(wish: Any) -> Damping | AutoDamping:
    """A Damping from a number (absolute), "auto" or itself."""
    if isinstance(wish, Damping | AutoDamping):
        return wish
    if wish == "auto":
        return AutoDamping()
    if isinstance(wish, str):
        raise InputError(f"damping {wish!r}", "'auto', a number or a Damping", "pass damping='auto'")
    return Damping(float(wish))


def of_layers(wish: Any) -> Damping:
    """As `damping_of`, of a method that inverts layer by layer and chooses by the spectrum at most."""
    found = damping_of(wish)
    return found if isinstance(found, Damping) else found.by_run() or Damping(FRACTION, scale="mean")
