"""Losses of linear models as functions of the logits: gradient, curvature, and how fast the curvature can change.

Index letters: j training rows, c outputs, b columns (one perturbed model each).
Logits f have shape (j, c); a perturbation of them d has shape (j, c, b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Loss(Protocol):
    """The loss ℓ(f; y) of one example.

    `self_concordance` is the smallest R with |D³ℓ[u, u, v]| ≤ R·spread(v)·D²ℓ[u, u], which bounds the change of
    curvature along a step d: e^(−R·spread(d)) ∇²ℓ(f) ⪯ ∇²ℓ(f + d) ⪯ e^(R·spread(d)) ∇²ℓ(f). It is 0 for a quadratic
    and infinite where the curvature jumps.
    """

    @property
    def self_concordance(self) -> float: ...

    def outputs(self, y: Array) -> int: ...

    def value(self, f: Array, y: Array) -> Array: ...

    def gradient(self, f: Array, y: Array) -> Array: ...

    def hessian(self, f: Array, y: Array) -> Array: ...

    def remainder(self, f: Array, d: Array, y: Array) -> Array:
        """∇ℓ(f + d) − ∇ℓ(f) − ∇²ℓ(f) d, shape (j, c, b)."""
        ...

    def spread(self, d: Array) -> Array:
        """The size of a step in logits that moves the loss, shape (j, b)."""
        ...


@dataclass(frozen=True)
class Squared:
    """ℓ = ½ (f − y)²."""

    self_concordance: float = 0.0

    def outputs(self, y: Array) -> int:
        return 1

    def value(self, f: Array, y: Array) -> Array:
        return 0.5 * (f[:, 0] - y) ** 2

    def gradient(self, f: Array, y: Array) -> Array:
        return f - y[:, None]

    def hessian(self, f: Array, y: Array) -> Array:
        return np.ones((len(f), 1, 1))

    def remainder(self, f: Array, d: Array, y: Array) -> Array:
        return np.zeros_like(d)

    def spread(self, d: Array) -> Array:
        return np.abs(d[:, 0])


@dataclass(frozen=True)
class Logistic:
    """ℓ = t log(1 + exp((a − y f)/t)) with y ∈ {−1, +1}: the logistic loss (a = 0, t = 1) and Koh & Liang's smooth hinge (a = 1).

    ℓ''' = ℓ''·(1 − 2σ)/t up to sign, so |ℓ'''| ≤ ℓ''/t.
    """

    offset: float = 0.0
    temperature: float = 1.0

    @property
    def self_concordance(self) -> float:
        return 1.0 / self.temperature

    def outputs(self, y: Array) -> int:
        return 1

    def _z(self, f: Array, y: Array) -> Array:
        return (self.offset - y * f[:, 0]) / self.temperature

    def value(self, f: Array, y: Array) -> Array:
        z = self._z(f, y)
        return self.temperature * (np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))))

    def gradient(self, f: Array, y: Array) -> Array:
        return (-y * _sigmoid(self._z(f, y)))[:, None]

    def hessian(self, f: Array, y: Array) -> Array:
        z = self._z(f, y)
        return (_sigmoid(z) * _sigmoid(-z) / self.temperature)[:, None, None]

    def remainder(self, f: Array, d: Array, y: Array) -> Array:
        z = self._z(f, y)
        p = _sigmoid(z)[:, None, None]
        # With u = −y d/t: σ(z + u) − σ(z) − σ'(z) u, the sign −y put back at the end. Where e^(−z−u) is inf, 1/inf is right.
        u = d * (-y / self.temperature)[:, None, None]
        out = np.negative(u)
        out -= z[:, None, None]
        with np.errstate(over="ignore"):
            np.exp(out, out=out)
        out += 1.0
        np.reciprocal(out, out=out)
        out -= p
        u *= p * (1.0 - p)
        out -= u
        out *= (-y)[:, None, None]
        return out

    def spread(self, d: Array) -> Array:
        return np.abs(d[:, 0])


@dataclass(frozen=True)
class SquaredHinge:
    """ℓ = max(0, 1 − y f)² with y ∈ {−1, +1}: piecewise quadratic, its curvature jumps at y f = 1."""

    self_concordance: float = float("inf")

    def outputs(self, y: Array) -> int:
        return 1

    def value(self, f: Array, y: Array) -> Array:
        return np.maximum(0.0, 1.0 - y * f[:, 0]) ** 2

    def gradient(self, f: Array, y: Array) -> Array:
        return (-2.0 * y * np.maximum(0.0, 1.0 - y * f[:, 0]))[:, None]

    def hessian(self, f: Array, y: Array) -> Array:
        return 2.0 * (y * f[:, 0] < 1.0)[:, None, None]

    def remainder(self, f: Array, d: Array, y: Array) -> Array:
        slack = (1.0 - y * f[:, 0])[:, None, None]
        moved = slack - y[:, None, None] * d
        return -2.0 * y[:, None, None] * (np.maximum(moved, 0.0) - np.where(slack > 0, moved, 0.0))

    def spread(self, d: Array) -> Array:
        return np.abs(d[:, 0])


@dataclass(frozen=True)
class Softmax:
    """ℓ = log Σ_c exp f_c − f_y with y ∈ {0, …, C−1}.

    D³ℓ[u, u, v] is the third cumulant E[(u−Eu)²(v−Ev)] under the predicted classes, so R = 1 with spread(v) = max v − min v.
    """

    classes: int
    self_concordance: float = 1.0

    def outputs(self, y: Array) -> int:
        return self.classes

    def value(self, f: Array, y: Array) -> Array:
        top = f.max(axis=1)
        return top + np.log(np.exp(f - top[:, None]).sum(axis=1)) - f[np.arange(len(f)), y.astype(int)]

    def gradient(self, f: Array, y: Array) -> Array:
        p = _softmax(f)
        p[np.arange(len(f)), y.astype(int)] -= 1.0
        return p

    def hessian(self, f: Array, y: Array) -> Array:
        p = _softmax(f)
        return np.asarray(p[:, :, None] * (np.eye(f.shape[1]) - p[:, None, :]))

    def remainder(self, f: Array, d: Array, y: Array) -> Array:
        p = _softmax(f)[:, :, None]
        # ∇ℓ(f + d) = p e^d / Σ p e^d, shifted by max d so that nothing overflows.
        moved = p * np.exp(d - d.max(axis=1, keepdims=True))
        moved /= moved.sum(axis=1, keepdims=True)
        return np.asarray(moved - p - p * (d - (p * d).sum(axis=1, keepdims=True)))

    def spread(self, d: Array) -> Array:
        return np.asarray(d.max(axis=1) - d.min(axis=1))


def _sigmoid(z: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-z)))


def _softmax(f: Array) -> Array:
    e = np.exp(f - f.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
