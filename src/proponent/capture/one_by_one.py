"""Gradients of a few examples, one after another by plain autograd: always right, never fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from proponent.rows import length
from proponent.task import Task


def one_by_one(task: Task, names: Iterable[str], batch: Any, of: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """∂ of(example)/∂parameter, (b, P) for each name, through the whole model: `alone` without the values."""
    return alone(task, names, batch, of)[1]


def alone(
    task: Task, names: Iterable[str], batch: Any, of: Callable[[Any], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """of(example), (b,), each by itself, and ∂ of(example)/∂parameter, (b, P) for each name, through the whole model.

    Args:
        task: whose model is differentiated; its parameters' requires_grad is put back afterwards.
        names: of the task's selected parameters.
        batch: b examples.
        of: a batch → (b,) losses or measurements.
    """
    chosen = {name: task.selected()[name] for name in names}
    flags = {p: p.requires_grad for p in chosen.values()}
    rows: dict[str, list[Tensor]] = {name: [] for name in chosen}
    values = []
    try:
        for p in flags:
            p.requires_grad_(True)
        for i in range(length(batch)):
            with torch.enable_grad():
                value = of(one(batch, i)).sum()
                grads = _grads(value, list(chosen.values()))
            values.append(value.detach())
            for name, grad in zip(chosen, grads, strict=True):
                rows[name].append(grad.flatten())
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
    return torch.stack(values), {name: torch.stack(parts) for name, parts in rows.items()}


def gradient_sum(task: Task, batches: Iterable[Any], of: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """∂ Σ of(example)/∂parameter over all batches, by name: plain backward passes.

    Args:
        task: whose model is differentiated; inside `task.watching()`.
        batches: of examples.
        of: a batch → (b,) losses or measurements.
    """
    chosen = task.selected()
    flags = {p: p.requires_grad for p in chosen.values()}
    total = {name: torch.zeros_like(p) for name, p in chosen.items()}
    try:
        for p in flags:
            p.requires_grad_(True)
        for batch in batches:
            with torch.enable_grad():
                grads = _grads(of(batch).sum(), list(chosen.values()))
            for held, grad in zip(total.values(), grads, strict=True):
                held += grad
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
    return total


def one(batch: Any, i: int) -> Any:
    """The i-th example of a batch, as a batch of one."""
    b = length(batch)
    return tree_map(lambda x: x[i : i + 1] if isinstance(x, Tensor) and x.ndim and len(x) == b else x, batch)


def _grads(value: Tensor, parameters: list[Any]) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    made = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(made, parameters, strict=True)]
