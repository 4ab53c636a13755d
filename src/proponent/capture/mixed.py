"""How examples' gradients change with their inputs: a backward pass through a backward pass, on any architecture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from proponent.errors import InputError, UnsupportedModel, did_you_mean
from proponent.task import Task


def mixed(task: Task, directions: Mapping[str, Tensor], batch: Any, of: str | None = None) -> Tensor:
    """∂⟨u_q, ∇ℓ_i⟩/∂x_i for each direction and each example of a batch: (q, b, *shape of x).

    Examples do not meet, so the derivative of the sum of their losses' gradients is each example's own. The gradient is
    built once, and every direction goes back through it.

    Args:
        task: whose losses are differentiated; inside `task.watching()`.
        directions: u, (q, P) by parameter name.
        batch: b examples.
        of: x is what this module gives out; the batch's first input of floating point where None.

    Raises:
        InputError: there is no such input or module.
        UnsupportedModel: an operation of the model has no second derivative.
    """
    point = task.selected()
    parameters = [point[name] for name in directions]
    with _differentiable(parameters), sdpa_kernel(SDPBackend.MATH), _moved(task, batch, of) as moved:
        try:
            losses = task.losses(moved.batch)
            gradients = torch.autograd.grad(
                losses.sum(), parameters, create_graph=True, allow_unused=True, materialize_grads=True
            )
            made = [_back(gradients, u, moved.inputs()) for u in _each(directions, parameters)]
        except (RuntimeError, NotImplementedError) as e:
            raise UnsupportedModel(
                f"a model without second derivatives ({str(e).splitlines()[0]})",
                "operations whose backward pass PyTorch can differentiate",
                "of an LSTM or a GRU on a GPU: with torch.backends.cudnn.flags(enabled=False); write other operations out",
            ) from e
    return torch.stack(made).masked_fill_(~_beside(losses.detach().isfinite(), made[0]), torch.nan)


def _each(directions: Mapping[str, Tensor], parameters: list[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Direction by direction, in the parameters' own shapes."""
    for rows in zip(*directions.values(), strict=True):
        yield [u.to(p.dtype).view_as(p) for u, p in zip(rows, parameters, strict=True)]


def _back(gradients: tuple[Tensor, ...], direction: list[Tensor], x: Tensor) -> Tensor:
    """∂⟨u, gradient⟩/∂x; zero where no gradient depends on x."""
    along = [(g, u) for g, u in zip(gradients, direction, strict=True) if g.requires_grad]
    if not along:
        return torch.zeros_like(x)
    parts, weights = zip(*along, strict=True)
    (made,) = torch.autograd.grad(
        parts, x, grad_outputs=weights, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return made.detach()


def _beside(flags: Tensor, made: Tensor) -> Tensor:
    """(b,) flags in the shape of (b, …)."""
    return flags.view(-1, *(1,) * (made.ndim - 1))


@contextmanager
def _differentiable(parameters: list[nn.Parameter]) -> Iterator[None]:
    flags = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of PyTorch's own decompositions
            yield
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)


@dataclass
class Moved:
    """A batch whose examples can be moved.

    Args:
        batch: what the model is given.
        heard: what is moved; a module's output is heard of during the forward pass only.
        name: of the module.
    """

    batch: Any
    heard: list[Tensor] = field(default_factory=list)
    name: str = ""

    def inputs(self) -> Tensor:
        if len(self.heard) != 1:
            raise InputError(
                f"a module {self.name!r} that is called {len(self.heard)} times for a batch",
                "one that is called once",
                "name another module, such as what comes after it",
            )
        return self.heard[0]


@contextmanager
def _moved(task: Task, batch: Any, of: str | None) -> Iterator[Moved]:
    """The batch with its input, or its model with the module's output, as something to differentiate in."""
    if of is None:
        x, rebuilt = _floating(task, batch)
        x = x.detach().requires_grad_(True)
        yield Moved(rebuilt(x), [x])
        return
    modules = dict(task.net.named_modules())
    if not of or of not in modules:
        raise InputError(f"no module {of!r}", "the name of one", did_you_mean(of, _embeddings(task) or list(modules)))
    moved = Moved(batch, name=of)

    def shift(module: nn.Module, args: Any, output: Any) -> Tensor:
        """By nothing: the gradient of a table of embeddings stays part of the graph, as it would not of a detached copy."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise InputError(
                f"{type(output).__name__} from module {of!r}", "a tensor of floating point", "name an embedding layer"
            )
        moved.heard.append(torch.zeros_like(output, requires_grad=True))
        return output + moved.heard[-1]

    handle = modules[of].register_forward_hook(shift)
    try:
        yield moved
    finally:
        handle.remove()


def _floating(task: Task, batch: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The first input of floating point, and the batch with another in its place; the target is none."""
    keys = [k for k in batch if k != "labels"] if isinstance(batch, Mapping) else range(max(1, len(batch) - 1))
    for key in keys:
        if isinstance(batch[key], Tensor) and batch[key].is_floating_point():
            return batch[key], partial(_with, batch, key)
    given = ", ".join(sorted({str(batch[k].dtype) for k in keys if isinstance(batch[k], Tensor)})) or "no tensors"
    tables = _embeddings(task)
    raise InputError(
        f"inputs of {given}, which cannot be moved a little",
        "inputs of floating point, or the output of a layer",
        f"pass of={tables[0]!r}, the embedding"
        if tables
        else "pass of='name of the embedding layer', or cast the inputs",
    )


def _with(batch: Any, key: Any, x: Tensor) -> Any:
    return {**batch, key: x} if isinstance(batch, Mapping) else (*batch[:key], x, *batch[key + 1 :])


def _embeddings(task: Task) -> list[str]:
    """Names of the layers that look tokens up."""
    return [name for name, m in task.net.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
