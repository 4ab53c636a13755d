"""How far an approximate refit can be from the exact one, from what was measured at the approximation.

Norms are |v|_A² = vᵀA v. Notation as in `removal.py`: Δ_k an iterate, Δ_{k+1} = Δ_k + D the next, ν = |D|_A the norm of the
residual in A⁻¹, ρ the largest move of a training row's logits under Δ_k, κ the most that a unit step can move one, R the
loss's self-concordance.

1. Existence. Along any step the curvature of the remaining rows is at least e^(−Rρ) A at Δ_k, and shrinks by at most
   e^(−Rκ|e|) more on the way to Δ*. Integrating eᵀ∇²F e along e = Δ* − Δ_k against the residual gives
   |e|_A ≤ −log(1 − b)/(Rκ), b = e^(Rρ) R κ ν, whenever b < 1 (Bach 2010, affine-invariant form).
2. Contraction. Δ* − Δ_{k+1} = −A⁻¹Xᵀ(γ(Δ*) − γ(Δ_k)), and γ' is the change of curvature from Θ̂, at most
   (e^(Rρ + Rκ|e|) − 1) times A. So |Δ* − Δ_{k+1}|_A ≤ (e^(Rρ + Rκ|e|) − 1) |e|_A, and never more than |e|_A + ν.
3. Where the curvature jumps (squared hinge) only the penalty's strong convexity is left: |e|_Λ ≤ |residual|_{Λ⁻¹}.

Source: Bach, Self-concordant analysis for logistic regression, EJS 2010; Koh & Liang, ICML 2017; Wilson, Kasy & Mackey,
Approximate cross-validation, AISTATS 2020.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def distance_after_step(nu: Array, moved: Array, reach: Array, concordance: float) -> Array:
    """A bound on |Δ* − Δ_{k+1}|_A, infinite where none follows.

    Args:
        nu: (b,) ν.
        moved: (b,) ρ.
        reach: (b,) κ.
        concordance: R; 0 means the step was exact.
    """
    if concordance == 0.0:
        return np.zeros_like(nu)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        b = np.exp(concordance * moved) * concordance * reach * nu
        log_term = -np.log1p(-np.minimum(b, 1.0 - 1e-12))
        before = np.where(reach > 0, log_term / np.maximum(concordance * reach, 1e-300), nu)
        shrink = np.expm1(concordance * moved + log_term)
        return np.where(b < 1.0, np.minimum(shrink * before, before + nu), np.where(nu == 0.0, 0.0, np.inf))


def distance_at_optimum(nu: Array, reach: Array, concordance: float) -> Array:
    """A bound on |Δ* − Δ|_A where A is the curvature at Δ itself (then ρ = 0 and no step is taken)."""
    if concordance == 0.0:
        return nu
    b = concordance * reach * nu
    with np.errstate(divide="ignore", invalid="ignore"):
        far = -np.log1p(-np.minimum(b, 1.0 - 1e-12)) / np.maximum(concordance * reach, 1e-300)
    return np.where(b < 1.0, np.maximum(far, nu), np.inf)


def distance_by_strong_convexity(residual: Array, penalty: Array, stiffness: float) -> Array:
    """A bound on |Δ* − Δ_{k+1}|_A from the penalty alone, infinite where a feature has none.

    Args:
        residual: (c·d, b) the gradient of the remaining rows' objective at Δ_k.
        penalty: (c·d,) λ.
        stiffness: the largest eigenvalue of A relative to the penalty, so that |e|_A ≤ √stiffness |e|_Λ.
    """
    if not (penalty > 0).all():
        return np.where(np.abs(residual).max(axis=0) == 0.0, 0.0, np.inf)
    # Δ_{k+1} − Δ_k = −A⁻¹·residual is at most |residual|_{Λ⁻¹} long in Λ, since A ⪰ Λ: hence the 2.
    dual = np.sqrt((residual**2 / penalty[:, None]).sum(axis=0))
    return np.asarray(2.0 * np.sqrt(stiffness) * dual)
