"""Models made from a seed: fresh ones, and ones that hold given numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
MakeModel = Callable[..., nn.Module]


@contextmanager
def randomness_kept() -> Iterator[None]:
    """torch's global generators are afterwards as they were before."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def made(make_model: MakeModel, seed: int) -> nn.Module:
    """A fresh model; torch's global generators are left where making it brought them.

    Raises:
        InputError: what was made is no nn.Module, or has nothing to train.
    """
    torch.manual_seed(seed)
    model = make_model(seed) if takes_seed(make_model) else make_model()
    if not isinstance(model, nn.Module):
        raise InputError(
            f"make_model() that returns a {type(model).__name__}",
            "a fresh nn.Module",
            "pass a function that builds the model, such as lambda: nn.Linear(64, 10)",
        )
    if not any(p.requires_grad and p.is_floating_point() for p in model.parameters()):
        raise InputError("a model with nothing to train", "parameters that require gradients", "unfreeze some")
    return model


def takes_seed(make_model: MakeModel) -> bool:
    """Whether the function has to be given the seed."""
    try:
        taken = inspect.signature(make_model).parameters.values()
    except (TypeError, ValueError):  # a class of a compiled extension
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.default is p.empty and p.kind in positional for p in taken)


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a model is, and its precision: those of its first parameter of floating point."""
    first = next(p for p in model.parameters() if p.is_floating_point())
    return first.device, first.dtype


@dataclass(frozen=True, eq=False)
class FittedModule:
    """A trained model as plain arrays, and the function that builds its architecture.

    Args:
        make_model: as in the recipe.
        arrays: parameters and buffers by name.
    """

    make_model: MakeModel
    arrays: Mapping[str, Array]

    @classmethod
    def of(cls, make_model: MakeModel, tensors: Mapping[str, Tensor]) -> FittedModule:
        """Of a model's parameters and buffers."""
        return cls(make_model, {name: _array(t) for name, t in tensors.items()})

    def module(self) -> nn.Module:
        """As an nn.Module of its own, in eval mode."""
        with randomness_kept():
            return filled(made(self.make_model, 0), self.arrays).eval()


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers by name, tied ones once."""
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}


def filled(model: nn.Module, arrays: Mapping[str, Array]) -> nn.Module:
    """The model with these numbers.

    Raises:
        InputError: they are of another architecture.
    """
    own = named_tensors(model)
    differing = own.keys() ^ arrays.keys() or {k for k, t in own.items() if tuple(t.shape) != arrays[k].shape}
    if differing:
        raise InputError(
            f"arrays of another architecture (they differ in {', '.join(sorted(differing)[:3])})",
            f"the parameters and buffers of {type(model).__name__}",
            "use the recipe that trained the model",
        )
    for name, tensor in own.items():
        tensor.copy_(torch.tensor(arrays[name]))
    return model


def _array(tensor: Tensor) -> Array:
    kept = tensor.detach().cpu()
    return np.array((kept.float() if kept.dtype == torch.bfloat16 else kept).numpy())
