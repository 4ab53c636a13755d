"""Queries measured by trained models: by a module, or by a stack of them in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proponent.batches import call
from proponent.errors import InputError
from proponent.examples import Examples
from proponent.retrain.stacked.data import Data
from proponent.retrain.stacked.making import FittedModule, filled, made, place, randomness_kept
from proponent.retrain.stacked.measurements import measured
from proponent.retrain.stacked.outputs import OF_OUTPUTS
from proponent.retrain.stacked.vmapped import SEQUENCES, stacked_outputs

Array = np.ndarray[Any, np.dtype[Any]]

ROWS = 2**15
"""Queries times models that are measured at once."""


@dataclass(frozen=True)
class Measuring:
    """What is measured of queries.

    Args:
        loss: of the recipe: an object with `per_example`, or a function (model, batch) -> (b,).
        what: a measurement's name, or a function (model, batch) -> (b,).
    """

    loss: Any
    what: str | Callable[[Any, Any], Tensor]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def by_one(self, model: nn.Module, query: Examples) -> Array:
        """(q,) measurements by a module in eval mode."""
        data = self._data(model, query)
        return _numbers([self._of_module(model, data.batch(part)) for part in _parts(len(data), ROWS)])

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def by_many(self, models: Sequence[FittedModule], query: Examples) -> Array:
        """(m, q) measurements by models of one architecture."""
        if not self._of_stack:
            return np.stack([self.by_one(model.module(), query) for model in models])
        with randomness_kept():
            skeleton = made(models[0].make_model, 0).eval()
        data, outputs = self._data(skeleton, query), stacked_outputs(skeleton, shared=True)
        try:
            return np.concatenate([self._part(outputs, skeleton, data, list(part)) for part in _groups(models)])
        except (RuntimeError, NotImplementedError, TypeError):  # what torch.func cannot vectorise
            return np.stack([self.by_one(filled(skeleton, model.arrays), query) for model in models])

    @property
    def _of_stack(self) -> bool:
        return isinstance(self.what, str) and type(self.loss) in OF_OUTPUTS + SEQUENCES

    def _part(self, outputs: Any, skeleton: nn.Module, data: Data, models: list[FittedModule]) -> Array:
        tensors = {
            name: torch.as_tensor(np.stack([m.arrays[name] for m in models])).to(t)
            for name, t in (*skeleton.named_parameters(), *skeleton.named_buffers())
        }
        made_of = []
        for part in _parts(len(data), max(1, ROWS // len(models))):
            inputs, targets = data.batch(part)
            output = outputs(tensors, inputs).flatten(0, 1)
            again = None if targets is None else targets.repeat(len(models), *[1] * (targets.ndim - 1))
            made_of.append(measured(str(self.what), self.loss, output, (inputs, again)).view(len(models), -1))
        return _numbers(made_of)

    def _of_module(self, model: nn.Module, batch: Any) -> Tensor:
        if callable(self.what):
            return self.what(model, batch)
        if hasattr(self.loss, "per_example"):
            output = self.loss.output(model, batch) if batch[1] is not None else call(model, batch)
            return measured(self.what, self.loss, output, batch)
        if self.what == "loss":
            return -self.loss(model, batch)
        raise InputError(
            f"measurement {self.what!r} of a loss that is a function",
            "a named loss, whose outputs are known",
            "pass measurement=fn(model, batch)",
        )

    def _data(self, model: nn.Module, query: Examples) -> Data:
        if query.labels is None and isinstance(self.what, str) and self.what != "prediction":
            raise InputError("queries without labels", f"labels, which {self.what!r} needs", "measure 'prediction'")
        return Data.of(query, *place(model))


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(at, at + size) for at in range(0, n, size))


def _groups(models: Sequence[FittedModule]) -> Iterator[Sequence[FittedModule]]:
    """At most 128 models at once, whose copy is small beside the models themselves."""
    return (models[at : at + 128] for at in range(0, len(models), 128))


def _numbers(parts: Sequence[Tensor]) -> Array:
    return np.asarray(torch.cat(list(parts), dim=-1).double().cpu().numpy())
