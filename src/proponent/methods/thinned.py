"""Many models from one: each with some of its hidden units dropped, for ensembles that cost no training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from proponent.errors import InputError, UnsupportedModel
from proponent.task import Task

WIDE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose inputs are hidden units, but for the first of them."""


def thinned(task: Task, count: int = 10, rate: float = 0.1, seed: int = 0) -> list[Task]:
    """Tasks of the same model with a random share of its hidden units set to zero, the same units for every example.

    unit ← unit · mask / (1 − rate),  mask ~ Bernoulli(1 − rate), drawn once for each task

    The mean of their scores is an ensemble that needs one trained model only; feed them to `Ensemble`. Whether it predicts
    retraining better than the model itself depends on the case (benchmarks/static_estimators.py): choose by a ledger.

    >>> import torch, proponent as pp
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> train = torch.randn(6, 3), torch.randint(2, (6,))
    >>> tasks = thinned(pp.Task(net), count=4)
    >>> pp.Ensemble(pp.GradDot()).fit(tasks, train).score(train).shape
    (6, 6)

    Args:
        task: of one trained model; it stays as it is.
        count: tasks.
        rate: share of the units that is dropped: of the inputs of every linear layer and convolution (whole channels) but
            the first. Where the model was trained with dropout, its rate is a good one.
        seed: of the masks.

    Raises:
        InputError: a rate outside (0, 1).
        UnsupportedModel: fewer than two linear layers or convolutions.

    Source: Deng et al., Efficient ensembles improve training data attribution, 2024.
    """
    if not 0 < rate < 1:
        raise InputError(f"rate={rate!r}", "a share of hidden units between 0 and 1", "pass rate=0.1")
    if sum(isinstance(m, WIDE) for m in task.net.modules()) < 2:
        raise UnsupportedModel(
            "a model with fewer than two linear layers or convolutions",
            "one with hidden units to drop",
            "use models that were trained under different seeds",
        )
    return [replace(task, model=_thinned(task.net, rate, seed, k)) for k in range(count)]


def _thinned(net: nn.Module, rate: float, seed: int, number: int) -> nn.Module:
    made = copy.deepcopy(net)
    generator = torch.Generator().manual_seed((seed << 20) + number)
    hidden = [m for m in made.modules() if isinstance(m, WIDE)][1:]
    for layer in hidden:
        linear = isinstance(layer, nn.Linear)
        width = layer.in_features if linear else layer.in_channels
        mask = (torch.rand(width, generator=generator) >= rate).to(layer.weight) / (1 - rate)
        mask = mask if linear else mask.view(-1, *(1,) * len(layer.kernel_size))
        layer.register_forward_pre_hook(_times(mask))
    return made


def _times(mask: Tensor) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, args: (args[0] * mask, *args[1:])
