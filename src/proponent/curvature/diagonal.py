"""The diagonal of the Fisher matrix: the mean square of every parameter's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from proponent.capture.blocks import CHUNK, Block, Factors, Lookup


def squares(block: Block) -> tuple[Tensor, ...]:
    """Σ_examples G², (P,) for each part."""
    if isinstance(block, Factors) and block.positions == 1:
        return _one_position(block)
    if isinstance(block, Lookup):
        return (_looked_up(block),)
    totals = [torch.zeros(()) for _ in block.sizes]
    for part in _chunks(block):
        totals = [total + rows.square().sum(0) for total, rows in zip(totals, part.rows(), strict=True)]
    return tuple(totals)


def weighted_norms(block: Block, weights: tuple[Tensor, ...]) -> Tensor:
    """Σ weight G² of each example, (b,)."""
    return torch.cat(
        [
            torch.stack([rows.square() @ w for rows, w in zip(part.rows(), weights, strict=True)]).sum(0)
            for part in _chunks(block)
        ]
    )


def _chunks(block: Block) -> list[Block]:
    step = max(1, CHUNK // max(1, sum(block.sizes)))
    return [block[at : at + step] for at in range(0, len(block), step)]


def _one_position(block: Factors) -> tuple[Tensor, ...]:
    a, g = block.a[:, 0].square(), block.g[:, 0].square()
    weight = ((a.T @ g if block.transposed else g.T @ a).flatten(),) if block.weight else ()
    return weight + ((g.sum(0),) if block.bias else ())


def _looked_up(block: Lookup) -> Tensor:
    """Repeated tokens of an example are summed before they are squared; only rows that are looked up are touched."""
    b, _t, d = block.g.shape
    keys = torch.arange(b, device=block.g.device)[:, None] * block.vocabulary + block.tokens
    live = block.tokens >= 0
    own, at = keys[live].unique(return_inverse=True)
    summed = block.g.new_zeros(len(own), d).index_add_(0, at, block.g[live])
    total = block.g.new_zeros(block.vocabulary, d)
    return total.index_add_(0, own % block.vocabulary, summed.square_()).flatten()
