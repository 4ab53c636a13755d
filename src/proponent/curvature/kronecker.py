"""Kronecker-factored curvature of a layer: A ⊗ S, its eigenbasis, and the eigenvalues in that basis.

A layer's gradient is G = Σ_t g_t ã_tᵀ, of shape (O, I′), with ã = [a, 1] where it has a bias.

    A = E[mean_t ã ãᵀ],  S = E[Σ_t g gᵀ],  A = Q_A diag(α) Q_Aᵀ,  S = Q_S diag(σ) Q_Sᵀ
    K-FAC:  Λ_jk = σ_j α_k        EK-FAC:  Λ_jk = E[(Q_Sᵀ G Q_A)²_jk]

Expectations are means over training examples, so this is the curvature of the mean loss.

Sources: Martens & Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, ICML 2015; George et
al., Fast approximate natural gradient descent in a Kronecker-factored eigenbasis, NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proponent.capture.blocks import Block, Factors
from proponent.capture.convolution import Convolution

TURNED = 2**21
"""Numbers of gradients that are turned at once: 8 MiB in single precision."""


@dataclass(frozen=True)
class Covariance:
    """Sums over examples; sums of shards add up.

    Args:
        inputs: Σ ã ãᵀ, (I′, I′).
        outputs: Σ g gᵀ, (O, O).
        positions: how many ã were summed.
        transposed: the layer stores its weight as (I, O).
    """

    inputs: Tensor
    outputs: Tensor
    positions: float
    transposed: bool = False

    @classmethod
    def of(cls, block: Factors, share: float = 1.0) -> Covariance:
        """Of a batch. Positions without any gradient at a sequence's layer, such as padding, are not counted.

        Args:
            share: of the layer's positions that the block has.
        """
        a, g = block.a.flatten(0, 1), block.g.flatten(0, 1)
        count = float(len(a))
        if block.positions > 1 and not bool((live := (g != 0).any(1)).all()):
            a, g, count = a[live], g[live], float(live.sum())
        return cls(_homogeneous(a.T @ a, a.sum(0), count, block.bias), g.T @ g / share, count, block.transposed)

    def merge(self, other: Covariance) -> Covariance:
        """The sums over both shards."""
        inputs, outputs = self.inputs + other.inputs, self.outputs + other.outputs
        return replace(self, inputs=inputs, outputs=outputs, positions=self.positions + other.positions)

    def again(self, block: Factors, share: float = 1.0) -> Covariance:
        """With the output gradients of another target for inputs that are already counted."""
        g = block.g.flatten(0, 1)
        return replace(self, outputs=self.outputs + g.T @ g / share)


def _homogeneous(square: Tensor, total: Tensor, count: float, bias: bool) -> Tensor:
    """Σ ã ãᵀ from Σ a aᵀ and Σ a."""
    if not bias:
        return square
    corner = torch.full((1, 1), count, dtype=square.dtype, device=square.device)
    return torch.cat([torch.cat([square, total[:, None]], 1), torch.cat([total[None], corner], 1)])


@dataclass(frozen=True)
class Basis:
    """The eigenbasis of one layer.

    Args:
        inputs: Q_A, (I′, I′).
        outputs: Q_S, (O, O).
        alpha: (I′,) eigenvalues of A.
        sigma: (O,) eigenvalues of S.
        transposed: the layer stores its weight as (I, O).
    """

    inputs: Tensor
    outputs: Tensor
    alpha: Tensor
    sigma: Tensor
    transposed: bool = False

    @classmethod
    def of(cls, covariance: Covariance, examples: float) -> Basis:
        """From the sums over a number of examples."""
        alpha, inputs = _eigh(covariance.inputs / max(1.0, covariance.positions))
        sigma, outputs = _eigh(covariance.outputs / max(1.0, examples))
        return cls(inputs, outputs, alpha, sigma, covariance.transposed)

    @property
    def products(self) -> Tensor:
        """σ_j α_k, (O, I′): the eigenvalues of A ⊗ S."""
        return self.sigma[:, None] * self.alpha[None]

    def inputs_of(self, block: Factors) -> Tensor:
        """(b, T, I′): ã Q_A."""
        a = block.a @ self.inputs[: block.a.shape[2]]
        return a + self.inputs[-1] if block.bias else a

    def outputs_of(self, block: Factors) -> Tensor:
        """(b, T, O): g Q_S."""
        return block.g @ self.outputs

    def back(self, rotated: Tensor) -> Tensor:
        """Q_S V Q_Aᵀ of (q, O, I′)."""
        return self.outputs @ rotated @ self.inputs.T

    def matrices(self, rows: Sequence[Tensor]) -> Tensor:
        """Rows (q, P) of the layer's weight and bias as (q, O, I′)."""
        o = len(self.sigma)
        weight = rows[0].view(len(rows[0]), -1, o).mT if self.transposed else rows[0].view(len(rows[0]), o, -1)
        return torch.cat([weight, rows[1][:, :, None]], 2) if len(rows) > 1 else weight

    def rows(self, matrices: Tensor, bias: bool) -> tuple[Tensor, ...]:
        """The inverse of `matrices`."""
        weight = matrices[:, :, :-1] if bias else matrices
        flat = (weight.mT if self.transposed else weight).flatten(1)
        return (flat, matrices[:, :, -1]) if bias else (flat,)

    def rotated(self, block: Block) -> Iterator[tuple[slice, Tensor]]:
        """Q_Sᵀ G Q_A of a few examples at a time, (b, O, I′): the factors are turned, or the gradients, if that is cheaper."""
        step = max(1, TURNED // (len(self.sigma) * len(self.alpha)))
        for at in range(0, len(block), step):
            part = slice(at, at + step)
            few = block[part]
            if isinstance(few, Factors) and self._turn_factors(few):
                yield part, torch.bmm(self.outputs_of(few).mT, self.inputs_of(few))
            else:
                yield part, self.outputs.T @ self.matrices(few.rows()) @ self.inputs

    def _turn_factors(self, block: Factors) -> bool:
        """T (I² + O²) against O I (O + I) operations an example; windows of convolutions would have to be copied first."""
        i, o = len(self.alpha), len(self.sigma)
        return block.positions * (i * i + o * o) <= o * i * (o + i)

    def squares(self, block: Block) -> Tensor:
        """Σ_examples (Q_Sᵀ G Q_A)², (O, I′)."""
        if isinstance(block, Factors) and block.positions == 1:
            return self.outputs_of(block)[:, 0].square().T @ self.inputs_of(block)[:, 0].square()
        total = torch.zeros_like(self.products)
        for _, turned in self.rotated(block):
            total += turned.square_().sum(0)
        return total

    def weighted_norms(self, block: Block, weight: Tensor) -> Tensor:
        """Σ_jk weight_jk (Q_Sᵀ G Q_A)²_jk of each example, (b,)."""
        if isinstance(block, Factors) and block.positions == 1:
            a, g = self.inputs_of(block)[:, 0], self.outputs_of(block)[:, 0]
            return ((g.square() @ weight) * a.square()).sum(1)
        return torch.cat([turned.square_().flatten(1) @ weight.flatten() for _, turned in self.rotated(block)])


def layer_factors(block: Block) -> Factors | None:
    """A block's inputs and output gradients, where it has both a weight and them."""
    if isinstance(block, Convolution):
        return block.factors() if block.weight else None
    return block if isinstance(block, Factors) and block.weight else None


def some_positions(block: Factors | Convolution, wanted: float, turn: int) -> tuple[Factors, float]:
    """About `wanted` positions an example of a layer that has more, others in every turn; and their share."""
    spatial = block.g.shape[2:] if isinstance(block, Convolution) else block.g.shape[1:2]
    step = max(1, int((block.positions / max(wanted, 1e-9)) ** (1 / len(spatial))))
    step = min(step, *spatial)
    offset = turn % step
    if isinstance(block, Convolution):
        few = block.factors(step, offset)
    else:
        few = block if step == 1 else replace(block, a=block.a[:, offset::step], g=block.g[:, offset::step])
    return few, few.positions / block.positions


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below zero, and eigenvectors, computed in float64: small eigenvalues decide the inverse."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp(min=0).to(matrix.dtype), vectors.to(matrix.dtype)
