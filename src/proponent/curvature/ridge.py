"""(G + λ)⁻¹ of a Gram matrix G, and how many of its directions λ leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.capture.products import times

STRIPS = 8
"""Of a symmetric product, of which only those on and above the diagonal are computed."""

PROBES = 64
"""Random vectors that a trace is estimated with."""


@dataclass(frozen=True)
class Ridge:
    """The Cholesky factor of G + λ.

    >>> Ridge.of(torch.eye(2), 1.0).solve(torch.ones(2, 1)).flatten().tolist()
    [0.5, 0.5]

    Args:
        factor: (m, m), lower.
        strength: λ.
    """

    factor: Tensor
    strength: float

    @classmethod
    def of(cls, gram: Tensor, strength: float) -> Ridge:
        """λ is added to `gram` in place. Where single precision does not do, the factor is made in double."""
        gram.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed):
            factor = torch.linalg.cholesky(gram.double())
        return cls(factor, strength)

    def solve(self, columns: Tensor) -> Tensor:
        """(m, c): (G + λ)⁻¹ columns."""
        solved: Tensor = torch.cholesky_solve(columns.to(self.factor), self.factor)
        return solved.to(columns)

    def halved(self, columns: Tensor) -> Tensor:
        """(m, c): L⁻¹ columns, with L Lᵀ = G + λ; its squared lengths are cᵀ (G + λ)⁻¹ c."""
        solved: Tensor = torch.linalg.solve_triangular(self.factor, columns.to(self.factor), upper=False)
        return solved.to(columns)

    def effective_dimension(self, seed: int) -> float:
        """d_λ = tr G(G + λ)⁻¹ = m − λ tr (G + λ)⁻¹, the trace by random signs where m is large."""
        m = len(self.factor)
        if m <= 4 * PROBES:
            return m - self.strength * float(self.halved(torch.eye(m).to(self.factor)).square().sum())
        source = torch.Generator().manual_seed(seed)
        probes = torch.randint(2, (m, PROBES), generator=source).to(self.factor).mul_(2).sub_(1)
        return m - self.strength * float(self.halved(probes).square().sum()) / PROBES


def gram_of(rows: Tensor) -> Tensor:
    """rows rowsᵀ, one half of it computed.

    >>> gram_of(torch.tensor([[1.0, 2.0], [0.0, 1.0]])).tolist()
    [[5.0, 2.0], [2.0, 1.0]]
    """
    m = len(rows)
    out = rows.new_empty(m, m)
    step = max(1, -(-m // STRIPS))
    for at in range(0, m, step):
        strip = slice(at, at + step)
        made = times(rows[strip], rows[at:].T)
        out[strip, at:], out[at:, strip] = made, made.T
    return out
