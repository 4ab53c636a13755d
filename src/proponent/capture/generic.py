"""Gradients of any module's parameters from a recorded call: one vector-Jacobian product per example, vectorised."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from proponent.capture.blocks import CHUNK, Dense
from proponent.capture.record import Heard, Layout, tensors


@dataclass(frozen=True)
class _Again:
    """A call that can be made again for one example.

    Args:
        heard: the call.
        layout: where the batch is in it.
        examples: b.
    """

    heard: Heard
    layout: Layout
    examples: int

    def inputs(self) -> list[Tensor]:
        """Its tensors, (b, …) where the examples differ."""
        own = tensors((self.heard.args, self.heard.kwargs))
        return [self._stack(x, d) for x, d in zip(own, self.layout.inputs, strict=True)]

    def grads(self) -> list[Tensor]:
        """The gradients at its outputs, (b, …)."""
        pairs = zip(self.heard.grads, self.layout.outputs, strict=True)
        return [self._stack(g, d or 0) for g, d in pairs if g is not None]

    def outputs(self, call: Callable[..., Any], own: list[Tensor]) -> tuple[Tensor, ...]:
        """Its outputs that have a gradient, for one example's tensors."""
        leaves, spec = tree_flatten((self.heard.args, dict(self.heard.kwargs)))
        turned = iter(zip(own, self.layout.inputs, strict=True))
        filled = [self._unstack(leaf, *next(turned)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(filled, spec)
        made = tensors(call(*args, **kwargs))
        return tuple(out for out, g in zip(made, self.heard.grads, strict=True) if g is not None)

    def _stack(self, x: Tensor, d: int | None) -> Tensor:
        if d is None:
            return x
        x = x.movedim(d, 0)
        return x if len(x) == self.examples else x.unflatten(0, (self.examples, -1))

    def _unstack(self, whole: Tensor, x: Tensor, d: int | None) -> Tensor:
        """One example's tensor as a batch of one; a batch of b·k rows becomes one of k."""
        return x if d is None or whole.shape[d] != self.examples else x.unsqueeze(d)


def generic(heard: Heard, layout: Layout, examples: int) -> list[Dense]:
    """Σ_outputs (∂output/∂parameter)ᵀ grad of each example, by running the module again on each by itself.

    Args:
        heard: the call, with the gradients at its outputs.
        layout: where the batch is in its inputs and outputs.
        examples: b.
    """
    again = _Again(heard, layout, examples)
    try:
        rows = _vectorised(again)
    except (RuntimeError, NotImplementedError, ValueError):  # an operation that knows no batches of calls
        rows = _one_by_one(again)
    return [Dense(tuple(rows), tuple(r.flatten(1) for r in rows.values()))]


def _vectorised(again: _Again) -> dict[str, Tensor]:
    module, wanted = again.heard.unit.module, again.heard.unit.wanted
    every = dict(module.named_parameters(remove_duplicate=False))
    parameters = {local: every[local].detach() for local in wanted}

    def pull(own: list[Tensor], grads: list[Tensor]) -> dict[str, Tensor]:
        def run(p: dict[str, Tensor]) -> tuple[Tensor, ...]:
            return again.outputs(lambda *a, **k: functional_call(module, p, a, k, tie_weights=False), own)

        made, back = vjp(run, parameters)
        rows: dict[str, Tensor] = back(tuple(g.reshape(o.shape).to(o.dtype) for g, o in zip(grads, made, strict=True)))[
            0
        ]
        return rows

    size = max(1, CHUNK // max(1, sum(p.numel() for p in parameters.values())))
    axes = [None if d is None else 0 for d in again.layout.inputs]
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # the fused kernels know no batches of calls
        warnings.filterwarnings("ignore", message=".*performance drop")
        made: dict[str, Tensor] = vmap(pull, in_dims=(axes, 0), chunk_size=size)(again.inputs(), again.grads())
    return made


def _one_by_one(again: _Again) -> dict[str, Tensor]:
    module, wanted = again.heard.unit.module, list(again.heard.unit.wanted)
    every = dict(module.named_parameters(remove_duplicate=False))
    chosen = [every[local] for local in wanted]
    flags = [p.requires_grad for p in chosen]
    inputs, grads = again.inputs(), again.grads()
    rows = []
    try:
        for p in chosen:
            p.requires_grad_(True)
        for i in range(again.examples):
            # Copies, because the module may overwrite its inputs.
            own = [(x if d is None else x[i]).clone() for x, d in zip(inputs, again.layout.inputs, strict=True)]
            with torch.enable_grad():
                made = again.outputs(module, own)
            live = [(o, g[i].reshape(o.shape).to(o.dtype)) for g, o in zip(grads, made, strict=True) if o.requires_grad]
            outs, at = zip(*live, strict=True) if live else ((), ())
            rows.append(torch.autograd.grad(outs, chosen, at, allow_unused=True) if live else [None] * len(chosen))
    finally:
        for p, flag in zip(chosen, flags, strict=True):
            p.requires_grad_(flag)
    columns = zip(*rows, strict=True)
    return {
        name: torch.stack([torch.zeros_like(p) if g is None else g for g in column])
        for name, p, column in zip(wanted, chosen, columns, strict=True)
    }
