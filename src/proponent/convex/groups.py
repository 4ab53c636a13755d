"""Whole groups removed at once: the group's own Newton step, a second one, and the same certificate as for single rows.

With S the removed rows, A = H' − X_Sᵀ W_S X_S. Small groups go through Woodbury in the k·c rows that are removed,

    A⁻¹v = H'⁻¹v + H'⁻¹X_Sᵀ (I − W_S K_S)⁻¹ W_S X_S H'⁻¹v,   K_S = X_S H'⁻¹ X_Sᵀ,

large ones through a factor of A itself.

Source: Koh, Ang, Teo & Liang, On the accuracy of influence functions for measuring group effects, NeurIPS 2019; Basu, You &
Feizi, On second-order group influence functions, ICML 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import linalg

from proponent.convex.certificate import distance_after_step
from proponent.convex.curvature import factorise
from proponent.convex.problem import Problem, dense
from proponent.convex.removal import Neighbourhood, Removals, refit
from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


def remove_groups(home: Neighbourhood, groups: Sequence[Array], *, tolerance: float = 1e-2) -> Removals:
    """Remove each group of rows at once.

    Args:
        home: the optimum's neighbourhood.
        groups: positions of each group's rows.
        tolerance: groups whose bound exceeds this share of their step are refitted by Newton's method.
    """
    made = [_remove(home, np.asarray(rows), tolerance) for rows in groups]
    delta, size, distance, stretch = (np.stack(column, axis=-1) for column in zip(*made, strict=True))
    return Removals(np.arange(len(groups)), delta, size, distance, stretch)


def _remove(home: Neighbourhood, rows: Array, tolerance: float) -> tuple[Array, Array, Array, Array]:
    problem, optimum = home.problem, home.optimum
    if len(rows) == problem.rows:
        raise InputError("a group of all training rows", "something left to train on", "leave that group out")
    rest = np.delete(np.arange(problem.rows), rows)
    penalty = problem.penalty - len(rows) * problem.penalty_shrinks * (problem.penalty > 0)
    without = replace(problem.keep(rest), penalty=penalty, penalty_shrinks=0.0)
    pull = problem.keep(rows).pull_back(optimum.gradient[rows][:, :, None])[:, 0]
    pull = pull + ((problem.penalty - penalty) * optimum.theta).ravel()
    solve, stretch = _inverse(home, without, rows)
    first = solve(pull)
    size = np.sqrt(max(float(first @ pull), 0.0))
    delta, distance = _second_step(home, without, rest, first, solve, stretch)
    distance += float(home.rounding(np.array([size]), np.array([stretch]))[0])
    if not distance <= tolerance * size:
        refitted = refit(home, without, first)
        delta, distance, stretch = refitted or (np.full_like(first, np.nan), float("inf"), float("inf"))
    return delta, np.asarray(size), np.asarray(distance), np.asarray(stretch)


def _second_step(
    home: Neighbourhood, without: Problem, rest: Array, first: Array, solve: Callable[[Array], Array], stretch: float
) -> tuple[Array, float]:
    loss = without.loss
    d = without.logits_of_columns(first[:, None])
    gamma = loss.remainder(home.optimum.logits[rest], d, without.y) * without.weight[:, None, None]
    residual = without.pull_back(gamma)[:, 0]
    step = solve(residual)
    nu = np.array([np.sqrt(max(float(step @ residual), 0.0))])
    if not np.isfinite(loss.self_concordance):
        return first - step, 0.0 if not residual.any() else float("inf")
    moved = loss.spread(d).max(axis=0, initial=0.0)
    distance = distance_after_step(nu, moved, np.array([home.reach[0] * stretch]), loss.self_concordance)
    return first - step, float(distance[0])


def _inverse(home: Neighbourhood, without: Problem, rows: Array) -> tuple[Callable[[Array], Array], float]:
    """A⁻¹, and how much longer its norm can be than H'⁻¹'s."""
    problem = home.problem
    k, c = len(rows), problem.outputs
    shrunk = bool(np.any(problem.penalty_without_one() != without.penalty))
    if k * c >= problem.parameters or shrunk:
        factor = factorise(without.hessian(np.delete(home.optimum.curvature, rows, axis=0), without.penalty))
        return lambda v: factor.solve(v[:, None])[:, 0], home.stretch_of(factor)
    u = np.einsum("kp,cm->cpkm", dense(problem.x[rows]), np.eye(c)).reshape(c * problem.features, k * c)
    w = linalg.block_diag(*home.optimum.curvature[rows])
    z = home.factor.solve(u)
    wk = w @ (u.T @ z)
    taken = float(np.linalg.eigvals(wk).real.max())
    if taken >= 1.0 - 1e-12:
        return lambda v: np.full_like(v, np.nan), float("inf")
    middle = np.linalg.solve(np.eye(k * c) - wk, w)

    def solve(v: Array) -> Array:
        base = home.factor.solve(v[:, None])[:, 0]
        return np.asarray(base + z @ (middle @ (u.T @ base)))

    return solve, 1.0 / np.sqrt(1.0 - max(taken, 0.0))
