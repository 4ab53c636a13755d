"""Models trained on subsets of the same examples: stacked where they can be, else one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proponent.errors import ProponentWarning
from proponent.retrain.recipe import Failure
from proponent.retrain.stacked.batches import Batches, Order
from proponent.retrain.stacked.choice import plain_layers, why_one_by_one
from proponent.retrain.stacked.data import Data
from proponent.retrain.stacked.layers import Dense
from proponent.retrain.stacked.loop import Network, descend
from proponent.retrain.stacked.making import FittedModule, MakeModel, made, named_tensors, place, randomness_kept
from proponent.retrain.stacked.mlp import StackedMLP
from proponent.retrain.stacked.one_by_one import OneModel
from proponent.retrain.stacked.optimizers import Optimizer
from proponent.retrain.stacked.outputs import output_gradient
from proponent.retrain.stacked.vmapped import VmappedStack

DIVERGED = "the parameters are not finite after training: lower the learning rate"


@dataclass(frozen=True)
class Training:
    """How each model is trained; see `TorchRecipe`."""

    make_model: MakeModel
    loss: Any
    optimizer: Optimizer
    schedule: Callable[[int, int], float]
    epochs: int
    batch_size: int

    def one(self, data: Data, rows: Tensor, seed: int) -> FittedModule | Failure:
        """A model trained alone, by the plain loop."""
        with randomness_kept():
            model = made(self.make_model, seed).train()
            descend(
                OneModel(model, data, self.loss), self.optimizer, self.schedule, self._batches(data, [rows], [seed])
            )
            return self._finished(named_tensors(model))

    def many(self, data: Data, rows: Sequence[Tensor], seeds: Sequence[int], at_once: int) -> list[Any]:
        """A model, or a Failure, for each subset, in the subsets' order.

        Args:
            rows: positions of each subset in the training data; one that counts twice is there twice.
            at_once: models in a stack.
        """
        train = self._trainer(data)
        largest_first = sorted(range(len(rows)), key=lambda s: -len(rows[s]))
        models: list[Any] = [None] * len(rows)
        for first in range(0, len(rows), at_once):
            some = largest_first[first : first + at_once]
            for s, model in zip(some, train(data, [rows[s] for s in some], [seeds[s] for s in some]), strict=True):
                models[s] = model
        return models

    def _trainer(self, data: Data) -> Callable[[Data, list[Tensor], list[int]], list[Any]]:
        """The quickest way to train these models, chosen before any is trained."""
        with randomness_kept():
            layers = plain_layers(made(self.make_model, 0), data, self.loss)
            if layers is not None:
                return lambda *subsets: self._perceptrons(layers, *subsets)
            reason = why_one_by_one(self.make_model, data, self.loss)
        if reason is None:
            return self._vmapped
        warnings.warn(f"models are trained one by one, not as a stack: {reason}", ProponentWarning, stacklevel=4)
        return self._one_by_one

    def _perceptrons(self, layers: Sequence[Dense], data: Data, rows: list[Tensor], seeds: list[int]) -> list[Any]:
        assert data.targets is not None
        gradient = output_gradient(self.loss, data.targets, layers[-1].outputs, data.inputs)
        batch = max(1, min(self.batch_size, len(rows[0])))
        network = StackedMLP(layers, len(seeds), data, gradient, batch)
        return self._stacked(network, network.tensors, data, rows, seeds)

    def _vmapped(self, data: Data, rows: list[Tensor], seeds: list[int]) -> list[Any]:
        with randomness_kept():
            model = made(self.make_model, seeds[0]).train()
        tensors = {name: t.new_empty(len(seeds), *t.shape) for name, t in named_tensors(model).items()}
        return self._stacked(VmappedStack(model, tensors, data, self.loss), tensors, data, rows, seeds)

    def _stacked(
        self, network: Network, tensors: Mapping[str, Tensor], data: Data, rows: list[Tensor], seeds: list[int]
    ) -> list[Any]:
        with randomness_kept():
            for m, seed in enumerate(seeds):
                for name, tensor in named_tensors(made(self.make_model, seed)).items():
                    tensors[name][m].copy_(tensor)
        descend(network, self.optimizer, self.schedule, self._batches(data, rows, seeds))
        return [self._finished({name: t[m] for name, t in tensors.items()}) for m in range(len(seeds))]

    def _one_by_one(self, data: Data, rows: list[Tensor], seeds: list[int]) -> list[Any]:
        def attempt(own: Tensor, seed: int) -> FittedModule | Failure:
            try:
                return self.one(data, own, seed)
            except Exception as error:  # whatever the user's model raises is a fact about this subset
                return Failure(f"{type(error).__name__}: {error}")

        return [attempt(own, seed) for own, seed in zip(rows, seeds, strict=True)]

    def _batches(self, data: Data, rows: Sequence[Tensor], seeds: Sequence[int]) -> Batches:
        orders = [Order(own, seed, self.batch_size) for own, seed in zip(rows, seeds, strict=True)]
        dtype = data.inputs.dtype if data.inputs.is_floating_point() else torch.get_default_dtype()
        return Batches(orders, self.epochs, data.weights, dtype, data.inputs.device)

    def _finished(self, tensors: Mapping[str, Tensor]) -> FittedModule | Failure:
        finite = all(bool(t.isfinite().all()) for t in tensors.values())
        return FittedModule.of(self.make_model, tensors) if finite else Failure(DIVERGED)


def data_for(make_model: MakeModel, examples: Any) -> Data:
    """Examples where a recipe's models are, and in their precision."""
    with randomness_kept():
        return Data.of(examples, *place(made(make_model, 0)))
