"""Losses of linear models for many subsets at once: values, slopes and curvatures of whole stacks of logits.

Index letters: s subsets, c outputs, j training rows. Logits f have shape (s, c, j) and weights (s, j); a subset's rows
outside it have weight 0. Curvature ∂²ℓ/∂f_k∂f_l is kept for the pairs k ≤ l, in the order of `np.triu_indices(c)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST = 700.0
"""The largest number whose exponential is finite, about."""


class StackedLoss(Protocol):
    """ℓ(f; y) of one row, for all rows of all subsets. `coupled`: whether curvature mixes the outputs."""

    coupled: bool

    @property
    def outputs(self) -> int: ...

    def at(self, f: Array, weight: Array) -> tuple[Array, Array]:
        """Σ_j w_sj ℓ, shape (s,), and the slopes w_sj ∂ℓ/∂f, shape (s, c, j)."""
        ...

    def curvature(self, f: Array, weight: Array) -> Array:
        """w_sj ∂²ℓ/∂f_k∂f_l, shape (s, pairs, j); where outputs are not coupled they share one, shape (s, 1, j)."""
        ...

    def at_rows(self, rows: Array) -> StackedLoss:
        """The same loss of one training row per subset, the only row of that subset."""
        ...


@dataclass(frozen=True)
class Squares:
    """ℓ = ½ Σ_c (f_c − y_c)².

    Args:
        y: (c, j) targets; (s, c, 1) where each subset has a row of its own.
    """

    y: Array
    coupled = False

    @property
    def outputs(self) -> int:
        return int(self.y.shape[-2])

    def at(self, f: Array, weight: Array) -> tuple[Array, Array]:
        off = f - self.y
        slope = off * weight[:, None, :]
        return 0.5 * np.einsum("scj,scj->s", off, slope), slope

    def curvature(self, f: Array, weight: Array) -> Array:
        return weight[:, None, :]

    def at_rows(self, rows: Array) -> Squares:
        return Squares(self.y.T[rows][:, :, None])


@dataclass(frozen=True)
class TwoClasses:
    """ℓ = log(1 + exp(−y f)).

    Args:
        y: (j,) −1 or +1; (s, 1) where each subset has a row of its own.
    """

    y: Array
    coupled = True
    outputs = 1

    def at(self, f: Array, weight: Array) -> tuple[Array, Array]:
        z = f[:, 0] * self.y
        np.minimum(z, LARGEST, out=z)
        wrong = np.exp(z)
        wrong += 1.0
        np.divide(1.0, wrong, out=wrong)  # 1 − σ(z), to the last digit
        z += np.log(wrong)  # log σ(z), to the last digit of z, which is enough for a sum that is compared with others
        value = -np.einsum("sj,sj->s", z, weight)
        wrong *= weight
        wrong *= -self.y
        return value, wrong[:, None, :]

    def curvature(self, f: Array, weight: Array) -> Array:
        small = np.exp(-np.abs(f))
        small /= np.square(1.0 + small)
        small *= weight[:, None, :]
        return small

    def at_rows(self, rows: Array) -> TwoClasses:
        return TwoClasses(self.y[rows][:, None])


@dataclass(frozen=True)
class ManyClasses:
    """ℓ = log Σ_c exp f_c − f_y, over the classes that the subset has: the logits of others are −inf.

    Args:
        y: (j,) class codes; (s, 1) where each subset has a row of its own.
        outputs: how many classes.
    """

    y: Array
    outputs: int
    coupled = True

    def at(self, f: Array, weight: Array) -> tuple[Array, Array]:
        p, total, top = _shares(f)
        y = np.broadcast_to(self.y, weight.shape)[:, None, :]
        own = np.take_along_axis(f, y, axis=1)[:, 0]
        # A row outside the subset may be of a class that the subset lacks.
        value = np.where(weight > 0, top + np.log(total) - own, 0.0)
        p *= weight[:, None, :]
        np.put_along_axis(p, y, np.take_along_axis(p, y, axis=1) - weight[:, None, :], axis=1)
        return np.einsum("sj,sj->s", value, weight), p

    def curvature(self, f: Array, weight: Array) -> Array:
        p, _, _ = _shares(f)
        left, right = np.triu_indices(self.outputs)
        out = p[:, left] * p[:, right]
        np.negative(out, out=out)
        out[:, left == right] += p
        out *= weight[:, None, :]
        return out

    def at_rows(self, rows: Array) -> ManyClasses:
        return ManyClasses(self.y[rows][:, None], self.outputs)


def _shares(f: Array) -> tuple[Array, Array, Array]:
    """The classes' probabilities (s, c, j), their unnormalised total (s, j) and the largest logit (s, j)."""
    top = f.max(axis=1)
    p = f - top[:, None, :]
    np.exp(p, out=p)
    total = p.sum(axis=1)
    p /= total[:, None, :]
    return p, total, top
