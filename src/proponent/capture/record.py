"""Calls of the watched modules during one forward and backward pass, heard by hooks that live inside one `with` block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from proponent.capture.units import Unit


@dataclass(frozen=True)
class Layout:
    """Where the batch is in a call's tensors: a dimension, or None for a tensor that all examples share."""

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


@dataclass
class Heard:
    """A call: its inputs, and the gradients at its outputs once the backward pass has come by."""

    unit: Unit
    index: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: list[torch.Size]
    versions: list[int]
    grads: list[Tensor | None]

    def changed(self) -> bool:
        """Whether a later operation has overwritten an input in place."""
        return [t._version for t in tensors((self.args, self.kwargs))] != self.versions


class _Rooted(torch.autograd.Function):  # type: ignore[misc]
    """Hangs a tensor on a root, so that a backward pass reaches it; unlike a leaf it may be overwritten later."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, root: Tensor) -> Tensor:
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0].new_zeros(())


@dataclass
class Recorder:
    """Hears the units of a model.

    Args:
        units: modules to hear.
        layouts: where the batch is, by unit name and call; empty while they are being found out.
        examples: b of this pass.
        copied: units whose inputs are copied, because the model overwrites them.
        single: units that are called once, and may be handed over as soon as their gradient is there.
        arrived: takes such a call during the backward pass; its tensors are let go of afterwards.
    """

    units: Sequence[Unit]
    layouts: Mapping[tuple[str, int], Layout]
    examples: int
    copied: frozenset[str] = frozenset()
    single: frozenset[str] = frozenset()
    arrived: Callable[[Heard], None] | None = None
    calls: list[Heard] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    root: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[Recorder]:
        """Hooks on, and off again whatever happens."""
        handles = [
            unit.module.register_forward_hook(self._hook(unit), prepend=True, with_kwargs=True) for unit in self.units
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, unit: Unit) -> Any:
        def hear(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not torch.is_grad_enabled():
                return None
            index = self.counts[unit.name]
            self.counts[unit.name] += 1
            flat, spec = tree_flatten(output)
            layout = self.layouts.get((unit.name, index))
            places = iter(layout.outputs if layout else ())
            outputs: list[Tensor] = []
            for k, leaf in enumerate(flat):
                if isinstance(leaf, Tensor):
                    leaf = self._spread(leaf) if layout and next(places) is None else leaf
                    if leaf.is_floating_point():
                        flat[k] = leaf = leaf if leaf.requires_grad else self._rooted(unit, leaf)
                    outputs.append(leaf)
            keep = _copied if unit.name in self.copied else _detached
            args, kwargs = keep(args), keep(kwargs)
            versions = [t._version for t in tensors((args, kwargs))]
            heard = Heard(unit, index, args, kwargs, [o.shape for o in outputs], versions, [None] * len(outputs))
            live = [(k, out) for k, out in enumerate(outputs) if out.requires_grad]
            if self.arrived is not None and unit.name in self.single and len(live) == 1:
                live[0][1].register_hook(_hand_over(heard, live[0][0], self.arrived))
                return tree_unflatten(flat, spec)
            for k, out in live:
                out.register_hook(_keep(heard, k))
            self.calls.append(heard)
            return tree_unflatten(flat, spec)

        return hear

    def _rooted(self, unit: Unit, out: Tensor) -> Tensor:
        """The output itself where it is known to be new; what other modules return may be a weight or their input."""
        if self.root is None:
            self.root = torch.zeros((), device=out.device, requires_grad=True)
        own = unit.rule is not None and not out._is_view() and not out.is_inference()
        rooted: Tensor = _Rooted.apply(out if own else out.clone(), self.root)
        return rooted

    def _spread(self, leaf: Tensor) -> Tensor:
        """What all examples share, once for each: only then has each its own gradient."""
        alone = leaf.shape[0] == 1 if leaf.ndim else False
        return leaf.expand(self.examples, *leaf.shape[1:]) if alone else leaf.expand(self.examples, *leaf.shape)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def batch_first(x: Tensor, d: int | None, examples: int) -> Tensor:
    """A call's tensor as (b, …) in at least float32: moved, unfolded from (b·k, …), or shared by all examples."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if d is None:
        return x.expand(examples, *x.shape[1:]) if x.ndim and len(x) == 1 else x.expand(examples, *x.shape)
    x = x.movedim(d, 0)
    return x if len(x) == examples else x.unflatten(0, (examples, -1))


def find_layouts(few: Recorder, more: Recorder) -> dict[tuple[str, int], Layout]:
    """Where the batch is: the dimensions that grew between two passes with different numbers of examples."""
    found: dict[tuple[str, int], Layout] = {}
    for one, other in zip(few.calls, more.calls, strict=True):
        ratio = (few.examples, more.examples)
        before, after = tensors((one.args, one.kwargs)), tensors((other.args, other.kwargs))
        found[one.unit.name, one.index] = Layout(
            tuple(_grown(x.shape, y.shape, ratio) for x, y in zip(before, after, strict=True)),
            tuple(_grown(x, y, ratio) for x, y in zip(one.outputs, other.outputs, strict=True)),
        )
    return found


def _grown(few: torch.Size, more: torch.Size, examples: tuple[int, int]) -> int | None:
    for d, (x, y) in enumerate(zip(few, more, strict=True)):
        if x != y and x * examples[1] == y * examples[0]:
            return d
    return None


def _keep(heard: Heard, at: int) -> Any:
    def keep(grad: Tensor) -> None:
        heard.grads[at] = grad.detach()

    return keep


def _hand_over(heard: Heard, at: int, arrived: Callable[[Heard], None]) -> Any:
    def hand_over(grad: Tensor) -> None:
        heard.grads[at] = grad.detach()
        arrived(heard)
        heard.args, heard.kwargs, heard.grads = (), {}, []

    return hand_over


def _detached(tree: Any) -> Any:
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, tree)


def _copied(tree: Any) -> Any:
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, tree)
