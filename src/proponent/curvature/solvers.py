"""Ways to solve (A + λ) u = g for many g at once. They see vectors and functions, never a model.

Rows are vectors: `rhs` is (q, P), and a product is a function (q, P) → (q, P) that applies the matrix to every row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.errors import NotConverged
from proponent.progress import track

Product = Callable[[Tensor], Tensor]

STAGNANT = 3
"""Times that conjugate gradients begin again from the true residual, where rounding has carried them off."""

ROUNDINGS = 10
"""Units in the last place within which directions of a block count as dependent."""

DIVERGED = 1e8
"""Times the length of the right-hand side, above which an iteration has run away."""


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Args:
        x: (q, P).
        residual: (q,) ‖(A + λ) x − g‖ / ‖g‖; NaN where the solver does not know.
        passes: over the training examples.
    """

    x: Tensor
    residual: Tensor
    passes: float


def conjugate_gradients(
    times: Product, rhs: Tensor, precondition: Product, tolerance: float, most: int, start: Tensor | None = None
) -> Solution:
    """Preconditioned block conjugate gradients: every solution is sought in the space that all right-hand sides' directions
    span, which takes far fewer passes than each alone. What has converged leaves the block.

    The residual that is returned is computed anew from the solution, so it is right also where rounding has spoilt the
    recurrence.

    Args:
        times: of A + λ, symmetric and positive definite.
        rhs: (q, P).
        precondition: an approximation of the inverse, symmetric and positive definite.
        tolerance: of the relative residual.
        most: iterations.
        start: (q, P); zero by default.

    Raises:
        NotConverged: a direction of negative curvature.

    Source: O'Leary, The block conjugate gradient algorithm and related methods, Linear Algebra and its Applications 1980.
    """
    size = rhs.norm(dim=1).clamp(min=torch.finfo(rhs.dtype).tiny)
    x = torch.zeros_like(rhs) if start is None else start.clone()
    r, passes = (rhs.clone(), 0) if start is None else (rhs - times(x), 1)
    residual = r.norm(dim=1) / size
    for _ in range(STAGNANT):
        used = _descend(times, precondition, x, r, size, tolerance, most - passes)
        passes += used + 1
        r = rhs - times(x)
        residual = r.norm(dim=1) / size
        if bool((residual <= tolerance).all()) or passes >= most or not used:
            break
    return Solution(x, residual, passes)


def _descend(
    times: Product, precondition: Product, x: Tensor, r: Tensor, size: Tensor, tolerance: float, most: int
) -> int:
    """Iterations that were used; x is changed in place."""
    live = (r.norm(dim=1) > tolerance * size).nonzero().flatten()
    if not len(live):
        return 0
    r = r[live]
    p = _basis(precondition(r), size[live] / r.norm(dim=1))
    for used in range(1, max(1, most) + 1):
        ap = times(p)
        inverse = _inverse(p @ ap.T)
        along = (r @ p.T) @ inverse
        x[live] += along @ p
        r = r - along @ ap
        open_ = r.norm(dim=1) > tolerance * size[live]
        if not bool(open_.any()):
            return used
        if not bool(open_.all()):
            live, r = live[open_], r[open_]
        z = precondition(r)
        p = _basis(z - ((z @ ap.T) @ inverse) @ p, size[live] / r.norm(dim=1))
    return used


def _basis(rows: Tensor, grown: Tensor) -> Tensor:
    """Orthonormal rows that span these, but for directions that rounding has made up where they depend on each other.

    Args:
        grown: (q,) how much rounding has grown in them, as what they began from is over what is left.
    """
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    q, r = torch.linalg.qr(rows.T)
    turn, sizes, _ = torch.linalg.svd(r.double())
    kept = sizes > ROUNDINGS * torch.finfo(rows.dtype).eps * float(grown.max())
    kept[0] = True
    return turn[:, kept].T.to(rows) @ q.T


def _inverse(curvatures: Tensor) -> Tensor:
    """Of the block's own curvatures, without the directions that are rounding alone.

    Raises:
        NotConverged: a direction of negative curvature.
    """
    wide = curvatures.double()
    values, vectors = torch.linalg.eigh((wide + wide.T) / 2)
    noise = float(values.abs().max()) * ROUNDINGS * torch.finfo(curvatures.dtype).eps
    if float(values.min()) < -noise:
        raise NotConverged(
            "a direction of negative curvature",
            "a curvature that is positive definite with its damping",
            "raise the damping above minus the least eigenvalue, or use curvature='ggn'",
        )
    kept = values > noise
    return ((vectors[:, kept] / values[kept]) @ vectors[:, kept].T).to(curvatures)


def lissa(times: Callable[[Tensor, int], Tensor], rhs: Tensor, scale: float, depth: int, repeats: int) -> Tensor:
    """The stochastic Neumann series: v ← g + v − (A_t + λ) v / scale, from v = g; the solution is v / scale.

    Stopped after J steps it damps by about scale/J more.

    Args:
        times: of a random batch's A + λ: (vectors, number of the batch) → products.
        rhs: (q, P).
        scale: above the largest eigenvalue of any batch.
        depth: steps J.
        repeats: independent runs that are averaged.

    Raises:
        NotConverged: the series diverges.

    Source: Agarwal, Bullins & Hazan, Second-order stochastic optimization for machine learning in linear time, JMLR 2017.
    """
    total = torch.zeros_like(rhs)
    longest = _runaway(rhs)
    for repeat in range(repeats):
        v = rhs.clone()
        for step in track(range(depth), f"LiSSA, run {repeat + 1} of {repeats}", total=depth):
            v = rhs + v - times(v, repeat * depth + step) / scale
            if step % 10 == 9 and bool((v.abs().amax(1) > longest).any()):
                raise NotConverged(
                    f"a Neumann series that diverges at step {step + 1} with scale {scale:.3g}",
                    "a scale above the largest eigenvalue of every batch",
                    "raise scale, or the batch size, or use solver='cg'",
                )
        total += v / scale
    return total / repeats


@dataclass(frozen=True)
class LowRank:
    """U diag(values) Uᵀ, an approximation of a matrix.

    Args:
        vectors: (P, r) with orthonormal columns.
        values: (r,).
    """

    vectors: Tensor
    values: Tensor

    def solve(self, rhs: Tensor, damping: float) -> Tensor:
        """(U diag(values) Uᵀ + λ)⁻¹ of each row."""
        inside = rhs @ self.vectors
        return rhs / damping + (inside * (1 / (self.values + damping) - 1 / damping)) @ self.vectors.T

    def solve_inside(self, rhs: Tensor, damping: float) -> Tensor:
        """U (diag(values) + λ)⁻¹ Uᵀ of each row: what lies outside the space is dropped."""
        return ((rhs @ self.vectors) / (self.values + damping)) @ self.vectors.T

    def precondition(self, rhs: Tensor, damping: float) -> Tensor:
        """As `solve`, outside the space as if its curvature were that of the least value inside."""
        inside, least = rhs @ self.vectors, float(self.values.min()) + damping
        return rhs / least + (inside * (1 / (self.values + damping) - 1 / least)) @ self.vectors.T


def arnoldi(times: Product, start: Tensor, steps: int, rank: int) -> LowRank:
    """The largest eigenvalues and their vectors from a Krylov space, fully orthogonalised.

    Args:
        times: of A, without damping.
        start: (P,) not zero.
        steps: dimension of the Krylov space, a product each.
        rank: eigenvectors of largest absolute value that are kept.

    Source: Schioppa et al., Scaling up influence functions, AAAI 2022.
    """
    steps = min(steps, len(start))
    basis = start.new_zeros(steps, len(start))
    basis[0] = start / start.norm()
    products = torch.zeros_like(basis)
    used = steps
    for k in track(range(steps), "curvature: Krylov space", total=steps):
        products[k] = times(basis[k : k + 1])[0]
        v = products[k].clone()
        for _ in range(2):  # once is not enough in floating point
            v -= (basis[: k + 1] @ v) @ basis[: k + 1]
        if float(v.norm()) <= 1e-12 * float(products[k].norm().clamp(min=1e-300)) or k + 1 == steps:
            used = k + 1
            break
        basis[k + 1] = v / v.norm()
    small = basis[:used] @ products[:used].T
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    kept = values.abs().argsort(descending=True)[: min(rank, used)]
    return LowRank((vectors[:, kept].T @ basis[:used]).T.contiguous(), values[kept])


def nystrom(times: Product, size: int, rank: int, like: Tensor, seed: int) -> LowRank:
    """A positive semi-definite matrix from its products with random directions.

    A ≈ (AΩ) (Ωᵀ A Ω)⁺ (AΩ)ᵀ, with a small shift that is taken off again for stability.

    Args:
        times: of A, without damping.
        size: P.
        rank: directions; one pass over the training examples makes all products.
        like: a tensor of the wanted precision and device.
        seed: of the directions.

    Source: Frangella, Tropp & Udell, Randomized Nyström preconditioning, SIMAX 2023.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, min(rank, size), generator=generator, dtype=torch.float64).to(like)
    omega = torch.linalg.qr(drawn).Q
    sketch = times(omega.T.contiguous()).T
    shift = math.sqrt(size) * torch.finfo(sketch.dtype).eps * float(sketch.norm())
    sketch = sketch + shift * omega
    core = (omega.T @ sketch).double()
    lower = _cholesky((core + core.T) / 2, "a sketch that is not positive: the curvature has negative eigenvalues")
    half = torch.linalg.solve_triangular(lower.to(sketch), sketch.T, upper=False).T
    u, s, _ = torch.linalg.svd(half, full_matrices=False)
    return LowRank(u, (s.square() - shift).clamp(min=0))


def refine(
    times: Callable[[Tensor, int], Tensor],
    rhs: Tensor,
    precondition: Product,
    rate: float,
    steps: int,
    momentum: float = 0.9,
    halve_every: int = 50,
) -> Tensor:
    """Stochastic descent to the solution from the preconditioner's own: x ← x − rate · M⁻¹[(A_t + λ) x − g], with momentum.

    Args:
        times: of a random batch's A + λ: (vectors, number of the batch) → products.
        rhs: (q, P).
        precondition: M⁻¹.
        rate: step size, at first.
        steps: batches.
        momentum: of the descent.
        halve_every: steps after which the rate is halved.

    Source: Wang et al., Better training data attribution via better inverse Hessian-vector products (ASTRA), 2025.
    """
    x = precondition(rhs)
    velocity = torch.zeros_like(x)
    longest = _runaway(x)
    for step in track(range(steps), "stochastic refinement", total=steps):
        velocity = momentum * velocity + precondition(times(x, step) - rhs)
        x = x - rate * 0.5 ** (step // halve_every) * velocity
        if bool((x.abs().amax(1) > longest).any()):
            raise NotConverged(
                f"an iteration that diverges at step {step + 1} with rate {rate:.3g}",
                "a rate below 2/(largest preconditioned eigenvalue)",
                "lower rate, or use solver='cg'",
            )
    return x


def explicit(matrix: Tensor, damping: float) -> Product:
    """(A + λ)⁻¹ by a Cholesky factor in float64.

    Raises:
        NotConverged: A + λ is not positive definite.
    """
    wide = matrix.double()
    wide = (wide + wide.T) / 2
    wide.diagonal().add_(damping)
    lower = _cholesky(wide, "a curvature that is not positive definite with its damping")
    return lambda rhs: torch.cholesky_solve(rhs.double().T, lower).T.to(rhs)


def largest_eigenvalue(times: Product, like: Tensor, steps: int = 12, seed: int = 0) -> float:
    """By the power method, from below.

    Args:
        times: of A.
        like: (…, P) of the wanted precision and device.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(1, like.shape[-1], generator=generator, dtype=torch.float64).to(like)
    found = 0.0
    for _ in range(steps):
        v = v / v.norm()
        made = times(v)
        found, v = float((v * made).sum()), made
    return found


def _cholesky(matrix: Tensor, what: str) -> Tensor:
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        least = float(torch.linalg.eigvalsh(matrix)[0])
        raise NotConverged(
            f"{what} (least eigenvalue {least:.3g})",
            "a positive definite matrix",
            f"raise the damping by more than {-min(least, 0.0):.3g}, or use curvature='ggn'",
        )
    return lower


def _runaway(rows: Tensor) -> float:
    """A length that no solution has; rows that are not finite, whose queries are set aside, don't count."""
    return DIVERGED * float(torch.nan_to_num(rows.norm(dim=1), nan=0.0, posinf=0.0).max().clamp(min=1e-30))
