"""Recipes for torch models, many of which are trained at once as one stacked model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proponent.errors import InputError, NotConverged, did_you_mean
from proponent.examples import Examples
from proponent.losses import named_loss
from proponent.retrain.recipe import MEASUREMENTS, Failure
from proponent.retrain.stacked.making import FittedModule, made, named_tensors, randomness_kept
from proponent.retrain.stacked.measuring import Measuring
from proponent.retrain.stacked.optimizers import SGD as SGD
from proponent.retrain.stacked.optimizers import Adam as Adam
from proponent.retrain.stacked.optimizers import AdamW as AdamW
from proponent.retrain.stacked.optimizers import Optimizer, named_optimizer
from proponent.retrain.stacked.schedule import Schedule as Schedule
from proponent.retrain.stacked.schedule import named_schedule
from proponent.retrain.stacked.training import Training, data_for
from proponent.store.fingerprint import fingerprint

Array = np.ndarray[Any, np.dtype[Any]]

STACK_BYTES = {"cpu": 2**23}
"""Memory of a stack's parameters, gradients and moments: on a CPU about what its caches hold; elsewhere `OTHERWISE`."""
OTHERWISE = 2**30
MOST_AT_ONCE = 128


@dataclass(frozen=True)
class TorchRecipe:
    """A torch model, trained from scratch by gradient descent on the mean loss of batches.

    w ← step of the optimiser on  (1/b) Σ_{i in batch} weight_i · loss_i(w),  over `epochs` passes in random order

    >>> recipe = TorchRecipe(lambda: nn.Linear(1, 2), epochs=30, batch_size=4, optimizer=SGD(lr=0.5))
    >>> train = Examples.of((np.arange(-4.0, 4.0)[:, None], [0, 0, 0, 0, 1, 1, 1, 1]))
    >>> models = recipe.fit_many(train, np.array([[1] * 8, [0, 0, 1, 1, 1, 1, 1, 1]]), np.array([0, 1]))
    >>> bool((recipe.measure_many(models, train)[:, [0, 7]] > np.log(0.9)).all())
    True

    What a model becomes depends on its subset and its seed alone, to rounding: the seed gives its first weights and,
    apart from them, the order of its batches. A subset that holds an example twice trains on it twice an epoch; from an
    empty subset the model stays as it was made. Models that diverge are Failures, without harm to the others.

    `fit_many` trains models as one stack: plain perceptrons (Sequential of Flatten, Linear and activations) by written-out
    batched products, any other model that torch.func can vectorise by `vmap`, and the rest, such as models with BatchNorm
    or active dropout, one by one, which a ProponentWarning says.

    Args:
        make_model: a function that builds a fresh nn.Module; called with the seed where it asks for an argument. Torch's
            random numbers are seeded around it. The model's device and precision are those of the training.
        loss: a name such as "cross_entropy" or "squared_error", a loss object, or a function (model, batch) -> (b,); see
            `Task`. Classes are labels 0, 1, ….
        optimizer: SGD(…), Adam(…), AdamW(…), or one of their names.
        schedule: of the learning rate: "constant", "cosine", "linear", "step", a Schedule(…), or a function of the step, or
            of the step and all steps, that gives a factor.
        epochs: passes over the subset.
        batch_size: examples of a step; the last of an epoch has what is left.
        measurement: what is measured of a query: "loss" (minus its loss), "margin" (log-odds of its label), "probability"
            (of its label), "correct" (1 where the predicted label is its label), "prediction" (the predicted value, or the
            predicted class's margin), or a function (model, batch) -> (b,).
        lr: the learning rate where `optimizer` is a name.
        at_once: models in a stack; by default as many as a CPU's caches hold.

    Raises:
        InputError: an unknown name, or numbers out of range.
    """

    make_model: Callable[..., nn.Module]
    loss: Any = "cross_entropy"
    optimizer: Optimizer | str = "adamw"
    schedule: Schedule | str | Callable[..., float] = "cosine"
    epochs: int = 20
    batch_size: int = 64
    measurement: str | Callable[[Any, Any], Tensor] = "loss"
    lr: float | None = None
    at_once: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.make_model) or isinstance(self.make_model, nn.Module):
            raise InputError(
                f"make_model of type {type(self.make_model).__name__}",
                "a function that builds a fresh model",
                "pass a function, such as lambda: nn.Linear(64, 10)",
            )
        for name in ("epochs", "batch_size", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}", "at least 1", f"pass a larger {name}")
        if not (callable(self.measurement) or self.measurement in MEASUREMENTS):
            raise InputError(
                f"measurement={self.measurement!r}",
                f"a function or one of {MEASUREMENTS}",
                did_you_mean(str(self.measurement), MEASUREMENTS),
            )
        self._training()

    @property
    def batch(self) -> int:
        """How many models are trained at once."""
        if self.at_once is not None:
            return self.at_once
        with randomness_kept():
            own = list(named_tensors(made(self.make_model, 0)).values())
        one = 3 * sum(t.numel() * t.element_size() for t in own)
        return max(1, min(MOST_AT_ONCE, STACK_BYTES.get(own[0].device.type, OTHERWISE) // one))

    def fit(self, examples: Examples, seed: int | None = None) -> FittedModule:
        """One model trained on these examples, alone and by the plain loop; without a seed, as of seed 0.

        Raises:
            InputError: inputs, labels or a model that do not fit together.
            NotConverged: its parameters are not finite in the end.
        """
        data = data_for(self.make_model, examples)
        model = self._training().one(data, torch.arange(len(examples)), 0 if seed is None else seed)
        if isinstance(model, Failure):
            raise NotConverged("parameters that are not finite after training", "a finite optimum", model.reason)
        return model

    def fit_many(self, train: Examples, included: Array, seeds: Array) -> list[FittedModule | Failure]:
        """A model, or a Failure, for each subset: as `fit` would make them, to rounding, but many at once.

        Args:
            train: the examples that subsets are of.
            included: (m, n) how often each subset holds each example.
            seeds: (m,) of each model.
        """
        data = data_for(self.make_model, train)
        every = np.arange(len(train))
        rows = [torch.from_numpy(np.repeat(every, row)) for row in np.asarray(included, np.int64)]
        return self._training().many(data, rows, [int(s) for s in seeds], self.batch)

    def measure(self, model: FittedModule | nn.Module, query: Examples) -> Array:
        """(q,) the measurement of each query.

        Raises:
            InputError: labels missing, or a measurement that this loss does not have.
        """
        module = model.module() if isinstance(model, FittedModule) else model.eval()
        return self._measuring().by_one(module, query)

    def measure_many(self, models: Sequence[FittedModule], query: Examples) -> Array:
        """(m, q) the measurement of each query by each model, all in one call where torch.func can."""
        return self._measuring().by_many(models, query)

    def pack(self, model: FittedModule) -> dict[str, Array]:
        """A model as plain arrays by name."""
        return dict(model.arrays)

    def unpack(self, arrays: Mapping[str, Array]) -> FittedModule:
        """The model of `pack`'s arrays."""
        return FittedModule(self.make_model, dict(arrays))

    def fingerprint(self) -> str:
        """A hash of the architecture, of how it is made and trained, and of the measurement."""
        with randomness_kept():
            model = made(self.make_model, 0)
        training = self._training()
        return fingerprint(
            {
                "model": repr(model),
                "tensors": {name: [list(t.shape), str(t.dtype)] for name, t in named_tensors(model).items()},
                "make_model": _shown(self.make_model),
                "loss": _shown(training.loss),
                "optimizer": repr(training.optimizer),
                "schedule": Schedule(self.schedule) if isinstance(self.schedule, str) else _shown(self.schedule),
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "measurement": _shown(self.measurement),
            }
        )

    def _training(self) -> Training:
        return Training(
            self.make_model,
            named_loss(self.loss),
            named_optimizer(self.optimizer, self.lr),
            named_schedule(self.schedule),
            self.epochs,
            self.batch_size,
        )

    def _measuring(self) -> Measuring:
        return Measuring(named_loss(self.loss), self.measurement)


def _shown(value: Any) -> str:
    """A value in words that do not change from run to run: a function by its code, not its address."""
    code = getattr(value, "__code__", None)
    if code is not None:
        return f"{value.__module__}.{value.__qualname__} {hashlib.blake2b(_code(code), digest_size=8).hexdigest()}"
    inner = getattr(value, "func", None)  # functools.partial
    if inner is not None:
        return f"{_shown(inner)} {value.args} {sorted(value.keywords.items())}"
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else repr(value)


def _code(code: CodeType) -> bytes:
    """What a function does, with the functions inside it."""
    constants = [_code(c) if isinstance(c, CodeType) else repr(c).encode() for c in code.co_consts]
    return b"\0".join([code.co_code, repr(code.co_names).encode(), *constants])
