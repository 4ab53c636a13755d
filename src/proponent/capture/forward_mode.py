"""Directional derivatives of losses in forward mode: no backward pass, no hooks, any architecture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from proponent.errors import UnsupportedModel
from proponent.task import Task


def along(task: Task, direction: Mapping[str, Tensor], batch: Any) -> Tensor:
    """d/dε ℓ_i(θ + ε u) at ε = 0 for each example of a batch, which is ⟨∇ℓ_i, u⟩: (b,).

    Args:
        task: whose losses are differentiated; inside `task.watching()`.
        direction: u, by parameter name.
        batch: b examples.

    Raises:
        UnsupportedModel: an operation of the model has no forward derivative.
    """
    held = task.selected()
    point = {name: held[name].detach() for name in direction}

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        return task.losses(batch, net=lambda *a, **k: functional_call(task.net, parameters, a, k))

    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of PyTorch's own decompositions
            made: Tensor = jvp(losses, (point,), ({k: u.view_as(point[k]) for k, u in direction.items()},))[1]
    except (RuntimeError, NotImplementedError) as e:
        raise UnsupportedModel(
            f"a model without forward derivatives ({str(e).splitlines()[0]})",
            "operations that PyTorch differentiates in forward mode",
            "leave engine='factors', which needs the backward pass only",
        ) from e
    return made
