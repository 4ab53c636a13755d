"""Whether models can be trained as one stack, and which kind of stack; decided before the loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from proponent.retrain.stacked.data import Data
from proponent.retrain.stacked.layers import Dense, dense_layers
from proponent.retrain.stacked.making import MakeModel, made, named_tensors
from proponent.retrain.stacked.outputs import OF_OUTPUTS
from proponent.retrain.stacked.vmapped import single_losses, stacked, stacked_losses

PROBED = 3
"""Examples on which a stack of two models is compared with the two models."""


def plain_layers(model: nn.Module, data: Data, loss: Any) -> list[Dense] | None:
    """The layers of a plain perceptron under a loss of its outputs; None where there is more to it."""
    simple = type(loss) in OF_OUTPUTS and data.targets is not None and data.inputs.is_floating_point()
    if not simple or any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters()):
        return None
    return dense_layers(model, data.inputs.shape[1:])


def why_one_by_one(make_model: MakeModel, data: Data, loss: Any) -> str | None:
    """Why models cannot be trained as one stack, in words; None where they can.

    Two models are called as a stack and one by one, on batches of which one has an example less than the other: that finds
    models whose examples depend on each other, draw random numbers, or change what they hold.
    """
    models = [made(make_model, seed).train() for seed in (0, 1)]
    mixing = [name for name, m in models[0].named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if mixing:
        return f"BatchNorm ({', '.join(mixing[:3])}) keeps statistics over the examples of a batch"
    tensors = [named_tensors(m) for m in models]
    before = stacked(tensors)
    rows = torch.zeros(2, PROBED, dtype=torch.long, device=data.inputs.device)
    rows[0] = torch.arange(PROBED) % len(data)
    rows[1, : PROBED - 1] = rows[0, 1:]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*batching rule.*")
            together = stacked_losses(models[0], loss)({k: t.clone() for k, t in before.items()}, *data.batch(rows))
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError, UserWarning) as error:
        return f"torch.func cannot vectorise it ({_first_line(error)})"
    apart = [single_losses(m, loss, data.batch(rows[at, : PROBED - at])) for at, m in enumerate(models)]
    if any(not torch.equal(t, stacked(tensors)[name]) for name, t in before.items()):
        return "it changes its buffers while it is trained"
    if not _agree(together, apart):
        return "its losses in a stack are not those of one model alone"
    return None


def _agree(together: Tensor, apart: Sequence[Tensor]) -> bool:
    tolerance = 100 * torch.finfo(together.dtype).eps ** 0.75
    return all(
        torch.allclose(together[m, : len(own)], own, rtol=tolerance, atol=tolerance) for m, own in enumerate(apart)
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
