"""Directional derivatives of losses in forward mode: no backward pass, no hooks, any architecture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from proponent.errors import UnsupportedModel
from proponent.task import Task


def along(task: Task, direction: Mapping[str, Tensor], batch: Any) -> Tensor:
    """d/dε ℓ_i(θ + ε u) at ε = 0 for each example of a batch, which is ⟨∇ℓ_i, u⟩: (b,). As `with_losses`."""
    return with_losses(task, direction, batch)[1]


def with_losses(task: Task, direction: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
    """(b,) losses ℓ_i, and their derivatives ⟨∇ℓ_i, u⟩ along one direction, from one forward pass.

    An embedding's padding row, which backward passes leave without a gradient, moves along u like any other.

    Args:
        task: whose losses are differentiated; inside `task.watching()`.
        direction: u, by parameter name.
        batch: b examples.

    Raises:
        UnsupportedModel: an operation of the model has no forward derivative.
    """
    return _derived(task, direction, lambda net: task.losses(batch, net=net))


def outputs_along(
    task: Task, direction: Mapping[str, Tensor], batch: Any, output: Callable[[Any, Any], Tensor]
) -> Tensor:
    """d/dε output_i(θ + ε u) at ε = 0 of each example, which is J_i u.

    Args:
        task, direction, batch: as for `with_losses`.
        output: (model, batch) → (b, …).
    """
    return _derived(task, direction, lambda net: output(net, batch))[1]


def _derived(task: Task, direction: Mapping[str, Tensor], of: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
    """What comes of a stand-in for the model, and its derivative."""
    held = task.selected()
    point = {name: held[name].detach() for name in direction}

    def moved(parameters: dict[str, Tensor]) -> Tensor:
        return of(lambda *a, **k: functional_call(task.net, parameters, a, k))

    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of PyTorch's own decompositions
            tangent = {k: u.to(point[k].dtype).view_as(point[k]) for k, u in direction.items()}
            made: tuple[Tensor, Tensor] = jvp(moved, (point,), (tangent,))
    except (RuntimeError, NotImplementedError) as e:
        raise UnsupportedModel(
            f"a model without forward derivatives ({str(e).splitlines()[0]})",
            "operations that PyTorch differentiates in forward mode",
            "leave engine='factors', which needs the backward pass only",
        ) from e
    return made
