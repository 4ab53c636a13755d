"""Damping: what is added to a curvature's spectrum before it is inverted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from proponent.errors import InputError

FRACTION = 0.1
"""Of the mean eigenvalue, where nothing is known about the training run."""


@dataclass(frozen=True)
class Damping:
    """λ in (curvature + λ)⁻¹.

    >>> import torch
    >>> Damping(0.1, scale="mean").of(torch.tensor([1.0, 3.0]))
    0.2

    Args:
        value: positive; 0 only where the curvature is invertible by itself.
        scale: "absolute" adds the value; "mean" adds value × the mean eigenvalue of each block, so that layers of very
            different scale are damped alike.
    """

    value: float
    scale: Literal["absolute", "mean"] = "absolute"

    def __post_init__(self) -> None:
        if not self.value >= 0 or self.scale not in ("absolute", "mean"):
            raise InputError(
                f"damping {self.value!r} on the scale {self.scale!r}",
                "a number ≥ 0 on the scale 'absolute' or 'mean'",
                "pass Damping(0.1, scale='mean')",
            )

    def of(self, eigenvalues: Tensor) -> float:
        """λ for a block with these eigenvalues."""
        own = self.value if self.scale == "absolute" else self.value * float(eigenvalues.double().mean())
        if own == 0 and float(eigenvalues.min()) <= 0:
            raise InputError(
                "no damping for a curvature with eigenvalues of zero",
                "a positive damping",
                "pass damping='auto', or Damping(0.1, scale='mean')",
            )
        return own


def damping_of(wish: float | str | Damping) -> Damping:
    """A Damping from a number (absolute), "auto" (a tenth of each block's mean eigenvalue) or itself."""
    if isinstance(wish, Damping):
        return wish
    if wish == "auto":
        return Damping(FRACTION, scale="mean")
    if isinstance(wish, str):
        raise InputError(f"damping {wish!r}", "'auto', a number or a Damping", "pass damping='auto'")
    return Damping(float(wish))
