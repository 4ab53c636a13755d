"""Task: model, loss and measurement: all that gradients need to know of the user's world."""

from __future__ import annotations

import fnmatch
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from proponent.draws import Generator
from proponent.errors import InputError, UnsupportedModel, did_you_mean
from proponent.losses import Terms, named_loss
from proponent.rows import Rows, length

MEASUREMENTS = ("loss", "log_probability", "probability", "margin", "logit", "entropy")

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""In the name of a function, and another in every process."""

NO_PARAMETERS: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "that are not initialised yet",
        lambda p: isinstance(p, nn.parameter.UninitializedParameter),
        "call the model once on a batch, and load its trained weights",
    ),
    (
        "on the meta device, without values",
        lambda p: p.is_meta,
        "move the model with .to_empty(device=…) and load its weights",
    ),
    (
        "made under torch.inference_mode, which cannot be differentiated",
        lambda p: p.is_inference(),
        "build and load the model outside of it",
    ),
]
"""What a model's parameters may not be: a name for it, a test, and what to do."""


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
        loss: "cross_entropy", "causal_lm", "masked_lm", "contrastive", "triplet", "binary_cross_entropy",
            "squared_error", "poisson", a loss object, or a function (model, batch) → (b,) losses, one per example.
        measurement: "loss" (minus it), "log_probability", "probability", "margin" (log p/(1 − p)), "logit", "entropy", or a
            function (model, batch) → (b,). Those of several positions are summed or averaged as the loss is, without the
            ignored; probabilities are averaged.
        parameters: which to differentiate: names or patterns ("layers.3.*"), types of modules (nn.Linear: all that is
            inside such modules), or a list of these; all by default, frozen ones too.

    Raises:
        InputError: an unknown loss or measurement, or a pattern or type that names no parameter.
        UnsupportedModel: the model has no parameters, or some without values, or its BatchNorm keeps no running
            statistics.
    """

    model: nn.Module
    loss: Any = "cross_entropy"
    measurement: str | Callable[[Any, Any], Tensor] = "loss"
    parameters: Sequence[str | type[nn.Module]] | str | type[nn.Module] | None = None
    _loss: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_loss", named_loss(self.loss))
        if self.measurement not in MEASUREMENTS and not callable(self.measurement):
            raise InputError(
                f"measurement {self.measurement!r}",
                f"one of {', '.join(MEASUREMENTS)}, or a function",
                did_you_mean(str(self.measurement), MEASUREMENTS),
            )
        self._check_model()

    @property
    def net(self) -> nn.Module:
        """The model beneath DistributedDataParallel and torch.compile: the same parameters, with all hooks heard."""
        model: Any = self.model
        while isinstance(model, DistributedDataParallel | DataParallel) or hasattr(model, "_orig_mod"):
            model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        return model

    def selected(self) -> dict[str, nn.Parameter]:
        """The parameters that are differentiated, each once."""
        named = dict(self.net.named_parameters())
        if self.parameters is None:
            return named
        wanted = set().union(*(self._matching(chosen) for chosen in _several(self.parameters)))
        return {k: v for k, v in named.items() if v in wanted}

    def _matching(self, chosen: Any) -> set[nn.Parameter]:
        """The parameters of a name, a pattern or a type of module; a tied one goes by any of its names."""
        if isinstance(chosen, type):
            inside: list[Any] = [m for m in self.net.modules() if isinstance(m, chosen)]
            found = {p for m in inside for p in m.parameters()}
            known = {type(m).__name__ for m in self.net.modules() if any(True for _ in m.parameters())}
            asked, wanted = chosen.__name__, "a type of module with parameters"
        elif isinstance(chosen, str):
            every = dict(self.net.named_parameters(remove_duplicate=False))
            found = {every[name] for name in fnmatch.filter(every, chosen)}
            known, asked, wanted = set(every), repr(chosen), "a name or a pattern"
        else:
            raise InputError(
                f"parameters chosen by {chosen!r}", "names, patterns or types of modules", "pass 'head.*' or nn.Linear"
            )
        if not found:
            raise InputError(f"no parameter matches {asked}", wanted, did_you_mean(asked.strip("'"), sorted(known)))
        return found

    def batch(self, rows: Rows, at: slice) -> Any:
        """Some examples on the model's device, floating inputs in its precision."""
        if len(rows) == 0:
            raise InputError("0 examples", "at least one", "check how the data were read or filtered")
        first = next(p for p in self.net.parameters() if p.is_floating_point())
        return rows.batch(at, first.device, first.dtype)

    def settings(self) -> dict[str, Any]:
        """What defines the task, for the record."""
        given = self.parameters
        names = given if given is None or isinstance(given, str) else list(map(_name, _several(given)))
        measured = (
            self.measurement if isinstance(self.measurement, str) else getattr(self.measurement, "__name__", "function")
        )
        return {
            "model": type(self.net).__name__,
            "loss": self.loss if isinstance(self.loss, str) else ADDRESS.sub("", repr(self._loss)),
            "measurement": measured,
            "parameters": names,
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
        output = self._loss.output(net, batch)
        return _per_example(_measure(self.measurement, self._loss, output, batch), batch, "measurement")

    def signed_outputs(self, batch: Any, generator: Generator) -> Tensor:
        """(b,) sums of the outputs with random weights: their gradients' second moment is the true Fisher.

        That is the generalised Gauss-Newton matrix of `losses`, in which label smoothing has no part.

        Args:
            batch: b examples.
            generator: a torch.Generator, or `draws.Draws`, with which no sign depends on the rest of the batch.
        """
        own = self._loss
        if not hasattr(own, "signed"):
            raise UnsupportedModel(
                "a loss that does not know its Hessian in the model's output",
                "a named loss",
                "use fisher='empirical', or give the loss a `signed`",
            )
        return _per_example(own.signed(own.output(self.net, batch), batch, generator), batch, "signed outputs")

    def expected_losses(self, batch: Any) -> Terms:
        """Pairs of weights (b,) and losses (b,) with Σ weight · ∇loss ∇lossᵀ = the true Fisher of `losses`, exactly.

        One forward pass gives them all, so that each backward pass but the last has to retain the graph. For a softmax
        they are p_c and −log p_c of each class.

        Raises:
            UnsupportedModel: the loss does not know its Hessian, or it has so many terms that a random sum is as good.
        """
        own = self._loss
        if not hasattr(own, "terms"):
            raise UnsupportedModel(
                "a loss that does not know its Hessian in the model's output",
                "a named loss",
                "use fisher='empirical', or give the loss `terms`",
            )
        return own.terms(own.output(self.net, batch), batch)

    @property
    def precision(self) -> torch.dtype:
        """Of scores: float64 for a model in float64, float32 for any other."""
        wide = any(p.dtype == torch.float64 for p in self.net.parameters())
        return torch.float64 if wide else torch.float32

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The model in eval mode, without gradients of its own; everything as it was afterwards, also after an error."""
        with _uncompiled(), torch.inference_mode(False), _randomness(self.device), _slow_attention():
            modules = {m: m.training for m in self.model.modules()}
            wanted = {p: p.requires_grad for p in self.model.parameters()}
            buffers = [(m, dict(m._buffers)) for m in modules if m._buffers]
            held = {
                b: (b._version, b.clone())
                for _, own in buffers
                for b in own.values()
                if b is not None and not b.is_inference()
            }
            try:
                for m in modules:
                    m.training = False
                for p in wanted:
                    p.requires_grad_(False)
                yield
            finally:
                for m, training in modules.items():
                    m.training = training
                for p, flag in wanted.items():
                    p.requires_grad_(flag)
                for m, own in buffers:
                    m._buffers.update(own)
                for b, (version, content) in held.items():
                    if b._version != version:
                        with torch.no_grad():
                            b.copy_(content)

    def _check_model(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise InputError(
                f"a model of type {type(self.model).__name__}",
                "a trained nn.Module",
                "pass the module itself; a scikit-learn model goes to pp.SklearnRecipe",
            )
        for what, is_so, do in NO_PARAMETERS:
            named = [k for k, p in self.net.named_parameters() if is_so(p)]
            if named:
                raise UnsupportedModel(f"parameters {what} ({_listed(named)})", "a trained nn.Module", do)
        selected = self.selected()
        if not selected:
            raise UnsupportedModel(
                "a model without parameters", "a trained nn.Module", "pass the model that was trained"
            )
        whole = [f"{k} of {p.dtype}" for k, p in selected.items() if not p.is_floating_point()]
        if whole:
            raise UnsupportedModel(
                f"parameters that have no gradient ({_listed(whole)})",
                "parameters of floating point",
                "choose with parameters=…, or pass the model before it was quantised",
            )
        mixing = [
            name
            for name, m in self.net.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None
        ]
        if mixing:
            raise UnsupportedModel(
                f"BatchNorm without running statistics ({_listed(mixing)})",
                "layers that treat examples one by one in eval mode",
                "train with track_running_stats=True: otherwise no example has a gradient of its own",
            )


def _several(chosen: Any) -> list[Any]:
    return [chosen] if isinstance(chosen, str | type) else list(chosen)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if names[5:] else "")


def _name(chosen: Any) -> str:
    return chosen.__name__ if isinstance(chosen, type) else str(chosen)


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled functions and modules run as they were written: compiled code hears no hooks."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _randomness(device: torch.device) -> Iterator[None]:
    """The state of every global generator that a model may draw from, put back."""
    place = torch.get_device_module(device) if device.type != "cpu" else None
    args = (device,) if device.type == "cuda" else ()
    own, cpu = place.get_rng_state(*args) if place else None, torch.get_rng_state()
    plain, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if place:
            place.set_rng_state(own, *args)
        random.setstate(plain)
        np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def _slow_attention() -> Iterator[None]:
    """The fused path of MultiheadAttention off: it calls no modules, and so no hooks."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


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
    if hasattr(loss, "measure"):
        return loss.measure(what, output, batch)
    if what == "log_probability":
        return -loss.per_example(output, batch)
    raise InputError(
        f"measurement {what!r} of {type(loss).__name__}, which predicts no classes",
        "a loss over classes",
        "pass measurement='log_probability', 'loss', or a function (model, batch) → (b,)",
    )
