"""Queries multiplied by an inverse curvature, ready to meet training examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.capture.blocks import CHUNK, Block, Factors
from proponent.capture.products import times
from proponent.curvature.expansion import Expansion
from proponent.curvature.kronecker import Basis, layer_factors


@dataclass(frozen=True)
class PreparedRows:
    """(q, P) rows for each part of the block."""

    rows: Sequence[Tensor]

    def add(self, block: Block, out: Tensor) -> None:
        block.against(self.rows, out)


@dataclass(frozen=True)
class Terms:
    """Σ_r (G_r g) (A_r a + constant_r), for layers with one position.

    Args:
        outputs: R times (q, O).
        inputs: R times (q, I).
        constants: R times (q, 1): what the bias's input of 1 adds.
    """

    outputs: Sequence[Tensor]
    inputs: Sequence[Tensor]
    constants: Sequence[Tensor] | None

    @classmethod
    def of(cls, query: Factors, basis: Basis, expansion: Expansion) -> Terms:
        """Everything is turned back into the layer's own coordinates: training examples are met as they are."""
        g, a = basis.outputs_of(query)[:, 0], basis.inputs_of(query)[:, 0]
        outputs = [(g * u) @ basis.outputs.T for u in expansion.outputs]
        inputs = [(a * v) @ basis.inputs.T for v in expansion.inputs]
        if not query.bias:
            return cls(outputs, inputs, None)
        return cls(outputs, [x[:, :-1].contiguous() for x in inputs], [x[:, -1:].contiguous() for x in inputs])

    def add(self, block: Block, out: Tensor) -> None:
        assert isinstance(block, Factors) and block.positions == 1
        a, g = block.a[:, 0].T, block.g[:, 0].T
        for r, (left, right) in enumerate(zip(self.outputs, self.inputs, strict=True)):
            aa = times(right, a)
            out.addcmul_(aa if self.constants is None else aa.add_(self.constants[r]), times(left, g))


@dataclass(frozen=True)
class LowRank:
    """Preconditioned gradients of rank k, Σ_k left_k right_kᵀ.

    Args:
        left: (q, k, O).
        right: (q, k, I′).
        error: √ of the share of the squared norm that is left out.
    """

    left: Tensor
    right: Tensor
    error: float

    @classmethod
    def of(cls, matrices: Tensor, rank: int) -> LowRank:
        """The closest of (q, O, I′)."""
        u, s, v = torch.linalg.svd(matrices, full_matrices=False)
        whole = float(s.square().sum())
        error = (float(s[:, rank:].square().sum()) / whole) ** 0.5 if whole else 0.0
        return cls((u[:, :, :rank] * s[:, None, :rank]).mT.contiguous(), v[:, :rank].contiguous(), error)

    def add(self, block: Block, out: Tensor) -> None:
        factors = layer_factors(block)
        assert factors is not None
        (q, k, _), t, width = self.left.shape, factors.positions, factors.a.shape[2]
        left, right = self.left.flatten(0, 1), self.right.flatten(0, 1)
        step = max(1, CHUNK // (q * k * t))
        for at in range(0, len(block), step):
            part = factors[at : at + step]
            products = times(right[:, :width], part.a.flatten(0, 1).T)
            if factors.bias:
                products += right[:, width:]
            products *= times(left, part.g.flatten(0, 1).T)
            out[:, at : at + step] += products.view(q, k, len(part), t).sum((1, 3))
