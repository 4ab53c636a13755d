"""Task: model, loss and measurement: all that gradients need to know of the user's world."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from proponent.errors import InputError, UnsupportedModel, did_you_mean
from proponent.losses import named_loss, split
from proponent.rows import Rows, length

MEASUREMENTS = ("loss", "log_probability", "margin", "logit", "entropy")


@dataclass(frozen=True)
class Task:
    """A trained model, the loss it was trained with, and what is measured of a query.

    Δm_q = m_q(with the example) − m_q(without it); by default m_q = −loss of the query.

    >>> import torch
    >>> task = Task(torch.nn.Linear(3, 2), loss="cross_entropy")
    >>> task.losses((torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))).shape
    torch.Size([4])

    Args:
        model: any nn.Module. It is put in eval mode while it is looked at, and is exactly as it was afterwards.
        loss: "cross_entropy", "causal_lm", "binary_cross_entropy", "squared_error", "poisson", a loss object, or a
            function (model, batch) → (b,) losses, one per example.
        measurement: "loss" (minus it), "log_probability", "margin" (log p/(1 − p)), "logit", "entropy", or a function
            (model, batch) → (b,).
        parameters: names or patterns ("layers.3.*") of the parameters to differentiate; all by default, frozen ones too.

    Raises:
        InputError: an unknown loss or measurement, or a pattern that names no parameter.
        UnsupportedModel: the model has no parameters, or its BatchNorm keeps no running statistics.
    """

    model: nn.Module
    loss: Any = "cross_entropy"
    measurement: str | Callable[[Any, Any], Tensor] = "loss"
    parameters: Sequence[str] | str | None = None
    _loss: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_loss", named_loss(self.loss))
        if isinstance(self.measurement, str) and self.measurement not in MEASUREMENTS:
            raise InputError(
                f"measurement {self.measurement!r}",
                f"one of {', '.join(MEASUREMENTS)}, or a function",
                did_you_mean(self.measurement, MEASUREMENTS),
            )
        self._check_model()

    @property
    def net(self) -> nn.Module:
        """The model beneath DistributedDataParallel and torch.compile: the same parameters, with all hooks heard."""
        model = self.model
        while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
            model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
        return model

    def selected(self) -> dict[str, nn.Parameter]:
        """The parameters that are differentiated, each once."""
        named = dict(self.net.named_parameters())
        if self.parameters is None:
            return named
        patterns = [self.parameters] if isinstance(self.parameters, str) else list(self.parameters)
        for p in patterns:
            if not fnmatch.filter(named, p):
                raise InputError(f"no parameter matches {p!r}", "a name or a pattern", did_you_mean(p, named))
        return {k: v for k, v in named.items() if any(fnmatch.fnmatch(k, p) for p in patterns)}

    def batch(self, rows: Rows, at: slice) -> Any:
        """Some examples on the model's device, floating inputs in its precision."""
        first = next(self.net.parameters())
        return rows.batch(at, first.device, first.dtype)

    def settings(self) -> dict[str, Any]:
        """What defines the task, for the record."""
        chosen = (
            self.parameters if self.parameters is None or isinstance(self.parameters, str) else list(self.parameters)
        )
        measured = (
            self.measurement if isinstance(self.measurement, str) else getattr(self.measurement, "__name__", "function")
        )
        return {
            "model": type(self.net).__name__,
            "loss": self.loss if isinstance(self.loss, str) else repr(self._loss),
            "measurement": measured,
            "parameters": chosen,
        }

    def losses(self, batch: Any, net: Any = None) -> Tensor:
        """(b,) training losses, of the model or of what stands in for it."""
        own, net = self._loss, self.net if net is None else net
        made = own.per_example(own.output(net, batch), batch) if hasattr(own, "per_example") else own(net, batch)
        return _per_example(made, batch, "loss")

    def measurements(self, batch: Any, net: Any = None) -> Tensor:
        """(b,) what is measured of each query."""
        net = self.net if net is None else net
        if callable(self.measurement):
            return _per_example(self.measurement(net, batch), batch, "measurement")
        if self.measurement == "loss":
            return -self.losses(batch, net)
        if not hasattr(self._loss, "per_example"):
            raise InputError(
                f"measurement {self.measurement!r} of a loss that is a function",
                "a named loss, whose outputs are known",
                "pass measurement=fn(model, batch)",
            )
        return _measure(self.measurement, self._loss, self._loss.output(net, batch), batch)

    def sampled_losses(self, batch: Any, generator: torch.Generator | None) -> Tensor:
        """(b,) losses at targets drawn from the model: their gradients' second moment is the true Fisher."""
        own = self._loss
        if not hasattr(own, "sample"):
            raise UnsupportedModel(
                "a loss that cannot draw targets", "a named loss", "use fisher='empirical', or give the loss a `sample`"
            )
        output = own.output(self.net, batch)
        return _per_example(own.per_example(output, own.sample(output, batch, generator)), batch, "loss")

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The model in eval mode, without gradients of its own; everything as it was afterwards, also after an error."""
        modules = {m: m.training for m in self.model.modules()}
        wanted = {p: p.requires_grad for p in self.model.parameters()}
        state = torch.get_rng_state()
        fast = torch.backends.mha.get_fastpath_enabled()
        try:
            for m in modules:
                m.training = False
            for p in wanted:
                p.requires_grad_(False)
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for m, training in modules.items():
                m.training = training
            for p, flag in wanted.items():
                p.requires_grad_(flag)
            torch.set_rng_state(state)

    def _check_model(self) -> None:
        if not self.selected():
            raise UnsupportedModel(
                "a model without parameters", "a trained nn.Module", "pass the model that was trained"
            )
        mixing = [
            name
            for name, m in self.net.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None
        ]
        if mixing:
            raise UnsupportedModel(
                f"BatchNorm without running statistics ({', '.join(mixing)})",
                "layers that treat examples one by one in eval mode",
                "train with track_running_stats=True: otherwise no example has a gradient of its own",
            )


def _per_example(made: Any, batch: Any, what: str) -> Tensor:
    if not isinstance(made, Tensor) or made.ndim != 1 or len(made) != length(batch):
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise InputError(
            f"a {what} of shape {shape} for {length(batch)} examples",
            f"({length(batch)},), one {what} per example",
            "use reduction='none' and sum over all dimensions but the first; never average over the batch",
        )
    return made


def _measure(what: str, loss: Any, output: Tensor, batch: Any) -> Tensor:
    if what == "log_probability":
        return -loss.per_example(output, batch)
    logp = output.log_softmax(-1)
    if what == "entropy":
        return -(logp.exp() * logp).sum(-1).reshape(len(output), -1).sum(1)
    own = split(batch)[2].unsqueeze(-1)
    if own.shape[:-1] != output.shape[:-1]:
        raise InputError(f"measurement {what!r} of this output", "one class per output", "pass a function")
    if what == "logit":
        return output.gather(-1, own).reshape(len(output), -1).sum(1)
    others = output.scatter(-1, own, -torch.inf).logsumexp(-1)
    return (output.gather(-1, own).squeeze(-1) - others).reshape(len(output), -1).sum(1)
