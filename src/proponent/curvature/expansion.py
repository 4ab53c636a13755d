"""1/(Λ + λ) as a short sum of products, so that layers with one position are scored from factors.

    Σ_jk gq_j aq_k D_jk g_j a_k  ≈  Σ_r (Σ_j u_rj gq_j g_j) (Σ_k v_rk aq_k a_k),   D_jk = 1/(Λ_jk + λ)

With D as it is, every pair of examples costs O·I′ operations; with R terms R (O + I′). The sum is best where the gradients
are: entry (j, k) of a gradient has the variance Λ_jk ≈ σ_j α_k, so an error E of D gives scores the variance Σ (E Λ)²,
and the R terms that make Σ (E σ α)² smallest are the first of the singular value decomposition of σ D α. (Without the
weights the decomposition is accurate where the gradients are small, and of no use.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-4
"""Of the mean eigenvalue: directions below count as much, so that no term is scaled up without end."""


@dataclass(frozen=True)
class Expansion:
    """Σ_r u_r v_rᵀ.

    Args:
        outputs: u, (R, O).
        inputs: v, (R, I′).
        error: √(Σ (E Λ)² / Σ (D Λ)²): the expected relative error of the scores.
    """

    outputs: Tensor
    inputs: Tensor
    error: float

    @classmethod
    def of(
        cls, inverse: Tensor, eigenvalues: Tensor, sigma: Tensor, alpha: Tensor, tolerance: float
    ) -> Expansion | None:
        """The shortest sum within the tolerance; None where D as it is costs no more."""
        o, i = inverse.shape
        d, scale = inverse.double(), eigenvalues.double()
        s, a = _floored(sigma.double()), _floored(alpha.double())
        u, values, v = torch.linalg.svd(s[:, None] * d * a, full_matrices=False)
        u, v = (u * values.sqrt() / s[:, None]).T, v * values.sqrt()[:, None] / a
        size, rest = (d * scale).norm(), d
        for terms in range(1, min(len(values), o * i // (o + i)) + 1):
            rest = rest - u[terms - 1][:, None] * v[terms - 1]
            error = float((rest * scale).norm() / size)
            if error <= tolerance:
                return cls(u[:terms].to(inverse.dtype), v[:terms].to(inverse.dtype), error)
        return None


def _floored(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.clamp(min=FLOOR * float(eigenvalues.mean()) or 1.0)
