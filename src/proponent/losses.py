"""Training losses, one number per example, as named objects.

A batch is what the model was trained on: a tuple whose last entry is the target, or a mapping with the target under
"labels". A loss splits it, calls the model, and gives one loss per example, never averaged over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from proponent.errors import InputError, did_you_mean


@runtime_checkable
class Loss(Protocol):
    """Losses that know their model's output: `output` calls the model, `per_example` turns its output into (b,)."""

    def output(self, model: Any, batch: Any) -> Tensor: ...

    def per_example(self, output: Tensor, batch: Any) -> Tensor: ...


def split(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """A batch as (positional inputs, named inputs, target)."""
    if isinstance(batch, Mapping):
        return (), {k: v for k, v in batch.items() if k != "labels"}, batch.get("labels")
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    raise InputError(
        f"a batch of type {type(batch).__name__}",
        "a tuple (inputs …, target) or a mapping with 'labels'",
        "pass loss=fn(model, batch) for any other form",
    )


def call(model: Any, batch: Any) -> Any:
    """The model's output on a batch's inputs; `.logits` where it returns a Hugging Face output."""
    args, named, _ = split(batch)
    out = model(*args, **named)
    return out.logits if hasattr(out, "logits") else out


@dataclass(frozen=True)
class CrossEntropy:
    """−log p(target) of a softmax over classes, summed over the positions of an example.

    Args:
        ignore_index: targets that carry no loss.
        label_smoothing: share of the target spread evenly over the classes.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0

    def output(self, model: Any, batch: Any) -> Tensor:
        return call(model, batch)

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        target = split(batch)[2]
        require_classes(target, output.shape[-1], self.ignore_index)
        flat = F.cross_entropy(
            output.reshape(-1, output.shape[-1]),
            target.reshape(-1),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return flat.reshape(len(output), -1).sum(dim=1)

    def sample(self, output: Tensor, batch: Any, generator: torch.Generator | None) -> Any:
        """The batch with targets drawn from the model's own predictions, where it has targets."""
        inputs, named, target = split(batch)
        p = output.detach().reshape(-1, output.shape[-1]).float().softmax(-1)
        drawn = torch.multinomial(p, 1, generator=generator).reshape(target.shape)
        drawn = torch.where(target == self.ignore_index, target, drawn)
        return {**named, "labels": drawn} if named else (*inputs, drawn)


@dataclass(frozen=True)
class CausalLM:
    """−Σ_t log p(token t+1 | tokens ≤ t) of one sequence; targets equal to ignore_index carry no loss.

    The target is the sequence itself (or "labels"), shifted here by one position.
    """

    ignore_index: int = -100

    def output(self, model: Any, batch: Any) -> Tensor:
        return call(model, batch)

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        return CrossEntropy(self.ignore_index).per_example(output[:, :-1], ((), split(batch)[2][:, 1:]))

    def sample(self, output: Tensor, batch: Any, generator: torch.Generator | None) -> Any:
        inputs, named, target = split(batch)
        shifted = CrossEntropy(self.ignore_index).sample(output[:, :-1], ((), target[:, 1:]), generator)[-1]
        drawn = torch.cat([target[:, :1], shifted], dim=1)
        return {**named, "labels": drawn} if named else (*inputs, drawn)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """−log p(target) of independent sigmoids with targets in [0, 1], summed over an example's outputs."""

    def output(self, model: Any, batch: Any) -> Tensor:
        return call(model, batch)

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        target = same_shape(output, split(batch)[2])
        if bool(((target < 0) | (target > 1)).any()):
            raise InputError(
                f"binary targets from {target.min():g} to {target.max():g}", "targets in [0, 1]", "recode them"
            )
        return F.binary_cross_entropy_with_logits(output, target, reduction="none").reshape(len(output), -1).sum(1)

    def sample(self, output: Tensor, batch: Any, generator: torch.Generator | None) -> Any:
        inputs, named, target = split(batch)
        drawn = torch.bernoulli(output.detach().sigmoid(), generator=generator).reshape(target.shape).to(target.dtype)
        return {**named, "labels": drawn} if named else (*inputs, drawn)


@dataclass(frozen=True)
class SquaredError:
    """‖output − target‖², the sum over an example's outputs."""

    def output(self, model: Any, batch: Any) -> Tensor:
        return call(model, batch)

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        return (output - same_shape(output, split(batch)[2])).square().reshape(len(output), -1).sum(1)

    def sample(self, output: Tensor, batch: Any, generator: torch.Generator | None) -> Any:
        """Gaussian targets whose negative log-likelihood is (f − y)²: variance 1/2."""
        inputs, named, target = split(batch)
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        drawn = (output.detach() + 0.5**0.5 * noise).reshape(target.shape)
        return {**named, "labels": drawn} if named else (*inputs, drawn)


@dataclass(frozen=True)
class Poisson:
    """exp(f) − y f of counts y with log-rate f, summed over an example's outputs."""

    def output(self, model: Any, batch: Any) -> Tensor:
        return call(model, batch)

    def per_example(self, output: Tensor, batch: Any) -> Tensor:
        target = same_shape(output, split(batch)[2])
        return F.poisson_nll_loss(output, target, log_input=True, reduction="none").reshape(len(output), -1).sum(1)

    def sample(self, output: Tensor, batch: Any, generator: torch.Generator | None) -> Any:
        inputs, named, target = split(batch)
        drawn = torch.poisson(output.detach().exp(), generator=generator).reshape(target.shape).to(target.dtype)
        return {**named, "labels": drawn} if named else (*inputs, drawn)


LOSSES: dict[str, Callable[[], Any]] = {
    "cross_entropy": CrossEntropy,
    "causal_lm": CausalLM,
    "binary_cross_entropy": BinaryCrossEntropy,
    "squared_error": SquaredError,
    "poisson": Poisson,
}


def named_loss(loss: Any) -> Any:
    """A loss object or function, by name or as it is."""
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise InputError(f"loss {loss!r}", f"one of {', '.join(LOSSES)}, or a function", did_you_mean(loss, LOSSES))
    return LOSSES[loss]()


def require_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse targets that are not classes of the model, before the loss indexes with them."""
    if target.is_floating_point():
        raise InputError(f"targets of dtype {target.dtype}", "integer classes", "convert them with .long()")
    bad = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bool(bad.any()):
        raise InputError(
            f"labels out of range, such as {int(target[bad][0])}",
            f"classes 0 … {classes - 1}, the model's outputs",
            "recode the labels, or give the model as many outputs as classes",
        )


def same_shape(output: Tensor, target: Tensor) -> Tensor:
    """The target in the output's shape and dtype."""
    if target.numel() != output.numel():
        raise InputError(
            f"targets of shape {tuple(target.shape)} for outputs of shape {tuple(output.shape)}",
            "as many numbers as outputs",
            "reshape the targets",
        )
    return target.reshape(output.shape).to(output.dtype)
