"""Many weighted problems over the same training rows, and the curvatures of all of them.

    F_s(Θ) = Σ_j w_sj ℓ(Θ x_j; y_j) + ½ Σ_cp λ_sp Θ_cp²

Index letters: s subsets, c outputs, p features (the constant column last), j training rows. Parameters have shape
(s, c, p). The curvature of a subset is one matrix of k × k, k = c·p where the loss couples its outputs; where it does not,
the outputs share a matrix with k = p.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from proponent.retrain.newton_losses import StackedLoss

Array = np.ndarray[Any, np.dtype[Any]]

TRUSTED = 2.0
"""By how much a row's own logits may move in one step before what its curvature says there is worth nothing."""

PRODUCTS = 2**24
"""Up to so many numbers, the products x_jp x_jr of features are kept, and all curvatures are one matrix product."""


@dataclass(frozen=True)
class Design:
    """The training rows, which all subsets share.

    Args:
        x: (n, p) features.
    """

    x: Array

    @cached_property
    def products(self) -> Array | None:
        """(n, p(p+1)/2) products of pairs of features, or None where they would take too much memory."""
        n, p = self.x.shape
        if n * p * (p + 1) // 2 > PRODUCTS:
            return None
        left, right = np.triu_indices(p)
        return self.x[:, left] * self.x[:, right]

    @cached_property
    def unpacked(self) -> Array:
        """(p, p) where in a row of `products` the pair of two features stands."""
        p = self.x.shape[1]
        at = np.empty((p, p), dtype=np.int64)
        left, right = np.triu_indices(p)
        at[left, right] = at[right, left] = np.arange(len(left))
        return at

    def grams(self, weight: Array) -> Array:
        """Σ_j w_j x_j x_jᵀ for weights (…, n), shape (…, p, p)."""
        if self.products is not None:
            p = self.x.shape[1]
            flat = weight.reshape(-1, weight.shape[-1]) @ self.products
            return np.take(flat, self.unpacked.ravel(), axis=1).reshape(*weight.shape[:-1], p, p)
        out = np.empty((*weight.shape[:-1], self.x.shape[1], self.x.shape[1]))
        for at in np.ndindex(weight.shape[:-1]):
            rows = np.flatnonzero(weight[at])
            held = self.x[rows]
            out[at] = held.T @ (held * weight[at][rows, None])
        return out


@dataclass(frozen=True)
class Stack:
    """Problems of some subsets.

    Args:
        design: the training rows.
        loss: ℓ.
        weight: (s, n) w.
        penalty: (s, p) λ.
        absent: (s, c) classes that a subset lacks, whose parameters stay zero; None where there is nothing to lack.
    """

    design: Design
    loss: StackedLoss
    weight: Array
    penalty: Array
    absent: Array | None = None

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def order(self) -> int:
        """k, of a curvature (k, k)."""
        return self.design.x.shape[1] * (self.loss.outputs if self.loss.coupled else 1)

    def take(self, at: Array) -> Stack:
        """The problems at these positions."""
        absent = None if self.absent is None else self.absent[at]
        return replace(self, weight=self.weight[at], penalty=self.penalty[at], absent=absent)

    def logits(self, theta: Array) -> Array:
        """(s, c, n)."""
        s, c, p = theta.shape
        f = (theta.reshape(-1, p) @ self.design.x.T).reshape(s, c, -1)
        if self.absent is not None:
            f[self.absent] = -np.inf
        return f

    def at(self, theta: Array) -> tuple[Array, Array]:
        """Values (s,) and gradients (s, c, p)."""
        s, c, p = theta.shape
        value, slope = self.loss.at(self.logits(theta), self.weight)
        shrunk = self.penalty[:, None, :] * theta
        gradient = (slope.reshape(s * c, -1) @ self.design.x).reshape(s, c, p)
        gradient += shrunk
        return value + 0.5 * np.einsum("scp,scp->s", shrunk, theta), gradient

    def curvatures(self, theta: Array) -> Array:
        """(s, k, k)."""
        blocks = self.design.grams(self.loss.curvature(self.logits(theta), self.weight))
        p, coupled = self.design.x.shape[1], self.loss.coupled
        c = self.loss.outputs if coupled else 1
        out = np.empty((len(self), c, p, c, p))
        for pair, (k, l) in enumerate(zip(*np.triu_indices(c), strict=True)):
            out[:, k, :, l, :] = out[:, l, :, k, :] = blocks[:, pair]
        every, feature = np.arange(c)[:, None], np.arange(p)[None, :]
        out[:, every, feature, every, feature] += self.penalty[:, None, :]
        if c > 1:
            self._pin(out)
        return out.reshape(len(self), c * p, c * p)

    def _pin(self, curvature: Array) -> None:
        """Give curvature to the directions in which a softmax is flat and no gradient ever points.

        They are a constant added to all classes' weights where there is no penalty, and the parameters of absent classes.
        """
        assert self.absent is not None
        present = (~self.absent).astype(np.float64)
        size = np.maximum(np.einsum("scpcp->sp", curvature) / self.loss.outputs, 1e-8)
        free = np.where(self.penalty == 0, size, 0.0)
        shared = np.einsum("sc,sd,sp->spcd", present, present, free / present.sum(axis=1, keepdims=True))
        shared += np.einsum("sc,cd,sp->spcd", 1.0 - present, np.eye(self.loss.outputs), free)
        p = np.arange(curvature.shape[2])
        curvature[:, :, p, :, p] += shared.transpose(1, 0, 2, 3)

    def followed(self, inverse: Array, theta: Array, rows: Array, by: Array, grown: Array) -> Array:
        """Parameters (s, c, p) after the weight of one row of each subset changed: one Newton step from their optimum.

        At the old optimum the new gradient is that of the change alone. Far steps are cut short: the row's own logits move
        by `TRUSTED` at most.

        Args:
            inverse: (s, k, k) after the change.
            theta: (s, c, p) the optimum before.
            rows, by: (s,) which row, and how much its weight grew.
            grown: (s, p) how much the penalty grew.
        """
        x = self.design.x[rows]
        slope = self.loss.at_rows(rows).at(self._logits_of(theta, x)[:, :, None], by[:, None])[1]
        gradient = slope * x[:, None, :] + grown[:, None, :] * theta
        step = (gradient.reshape(len(x), -1, self.order) @ inverse).reshape(theta.shape)
        if self.absent is not None:
            step[self.absent] = 0.0
        far = np.abs(np.einsum("scp,sp->sc", step, x)).max(axis=1)
        return np.asarray(theta - step * np.minimum(1.0, TRUSTED / np.maximum(far, 1e-300))[:, None, None])

    def _logits_of(self, theta: Array, x: Array) -> Array:
        """(s, c) of one row of each subset."""
        f = np.einsum("scp,sp->sc", theta, x)
        if self.absent is not None:
            f[self.absent] = -np.inf
        return f

    def changed(self, inverse: Array, theta: Array, rows: Array, by: Array) -> Array:
        """Inverse curvatures (s, k, k) after the weight of one row of each subset changed, by Woodbury's formula.

        With U = H⁻¹ (I ⊗ x) and V = (I ⊗ x)ᵀ U, (H + (I ⊗ x) K (I ⊗ x)ᵀ)⁻¹ = H⁻¹ − U K (I + V K)⁻¹ Uᵀ.

        Args:
            inverse: (s, k, k) before.
            theta: (s, c, p) where the row's curvature K is taken.
            rows: (s,) which row.
            by: (s,) how much its weight grew.
        """
        x = self.design.x[rows]
        f = self._logits_of(theta, x)
        packed = self.loss.at_rows(rows).curvature(f[:, :, None], by[:, None])[:, :, 0]
        c, p = (self.loss.outputs if self.loss.coupled else 1), x.shape[1]
        left, right = np.triu_indices(c)
        bend = np.empty((len(x), c, c))
        bend[:, left, right] = bend[:, right, left] = packed
        u = np.matmul(inverse.reshape(-1, c * p * c, p), x[:, :, None]).reshape(-1, c * p, c)
        v = np.einsum("scpd,sp->scd", u.reshape(-1, c, p, c), x)
        lift = np.eye(c) + v @ bend
        # Taking away a row that alone holds up some direction leaves nothing to divide by: the old inverse stays.
        stays = np.linalg.det(lift) < 0.1
        lift[stays], bend[stays] = np.eye(c), 0.0
        return inverse - (u @ (bend @ np.linalg.inv(lift))) @ u.transpose(0, 2, 1)
