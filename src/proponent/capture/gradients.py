"""Capture: the gradients of every example of a batch, from one forward and one backward pass without weight gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from proponent.capture.blocks import Block, Dense, Factors, Lookup
from proponent.capture.call import Call
from proponent.capture.generic import generic
from proponent.capture.layers import linear
from proponent.capture.one_by_one import alone, one, one_by_one
from proponent.capture.products import fast_products, keep_freed_memory
from proponent.capture.record import Heard, Layout, Recorder, batch_first, find_layouts
from proponent.capture.units import Unit, tied, units
from proponent.errors import UnsupportedModel
from proponent.rows import Rows, length
from proponent.task import Task

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Relative error, against autograd one by one, above which a parameter is differentiated through the whole model."""

FEW = 8
"""Examples up to which a pass is over before the faster products save anything."""

SEARCHED = 64
"""Examples among which two are looked for whose losses are finite."""


@dataclass(frozen=True)
class Capture:
    """Per-example gradients of a task, block by block.

    Args:
        task: model, loss and measurement.
        units: the modules that are heard.
        layouts: where the batch is in each call.
        copied: units whose inputs the model overwrites.
        whole: parameters that no unit explains; they are differentiated example by example through the whole model.
        tied: parameters of several units; their gradients are added up.
    """

    task: Task
    units: tuple[Unit, ...]
    layouts: Mapping[tuple[str, int], Layout] = field(repr=False)
    copied: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    tied: frozenset[str] = frozenset()

    @classmethod
    def of(cls, task: Task, rows: Rows) -> Capture:
        """Find out how this model is heard, and check it on two examples against autograd one by one.

        Call it, and everything else here, inside `task.watching()`.

        Raises:
            UnsupportedModel: an example's loss depends on the other examples of its batch.
        """
        keep_freed_memory()
        made = tuple(units(task.net, task.selected()))
        pair = few(rows, 2, task)
        try:
            layouts, copied, finite = _trace(task, made, pair, few(rows, 3, task))
        except (RuntimeError, ValueError):  # the model's path depends on the data: nothing is heard
            return cls(task, (), {}, whole=frozenset(task.selected()))
        found = cls(task, made, layouts, copied, frozenset(), frozenset(tied(list(made))))
        return found._without(found.disagreements(pair if finite else _finite_pair(rows, task)))

    def gradients(self, batch: Any, of: Callable[[Any], Tensor]) -> tuple[Tensor, dict[str, Block]]:
        """Losses or measurements of a batch, (b,), and their gradients by block.

        Args:
            batch: b examples on the task's device.
            of: `task.losses`, `task.measurements`, or another function batch → (b,).
        """
        made: dict[str, Block] = {}
        return self.each(batch, of, made.__setitem__), made

    def each(self, batch: Any, of: Callable[[Any], Tensor], take: Callable[[str, Block], None]) -> Tensor:
        """As `gradients`, but blocks are handed over one by one, most of them during the backward pass.

        A layer's gradient is met while it is still in the processor's cache, and let go of before the next one comes.
        """

        def arrived(heard: Heard) -> None:
            for key, block in self._named(heard, length(batch)):
                take(key, block)

        recorder = Recorder(self.units, self.layouts, length(batch), self.copied, self._single, arrived)
        with fast_products() if self._mostly_products and length(batch) > FEW else nullcontext():
            with torch.enable_grad(), recorder.listening():
                values = of(batch)
                if recorder.root is not None and values.requires_grad:
                    torch.autograd.grad(values.sum(), [recorder.root], allow_unused=True)
            for name, block in self._blocks(recorder).items():
                take(name, block)
        if self.whole:
            for name, part in one_by_one(self.task, sorted(self.whole), batch, of).items():
                take(name, Dense((name,), (_wide(part),)))
        return values.detach()

    @cached_property
    def _single(self) -> frozenset[str]:
        """Units with a rule of their own that are called once and share no parameter.

        Without a rule a unit is run again by torch.func, which can't be done in the middle of a backward pass.
        """
        again = {name for name, index in self.layouts if index}
        ruled = [u for u in self.units if u.rule is not None and u.name not in again]
        return frozenset(u.name for u in ruled if self.tied.isdisjoint(u.wanted.values()))

    @cached_property
    def _mostly_products(self) -> bool:
        """Whether most units are linear layers, so that faster products outweigh a look at every other operation."""
        return 2 * sum(u.rule is linear for u in self.units) > len(self.units)

    def disagreements(self, batch: Any) -> dict[str, float]:
        """Each parameter's relative error against autograd one by one, in the norm over the batch."""
        values, blocks = self.gradients(batch, self.task.losses)
        each, truth = alone(self.task, self.task.selected(), batch, self.task.losses)
        _require_independence(values, each)
        found: dict[str, Tensor] = {name: torch.zeros_like(rows) for name, rows in truth.items()}
        for block in blocks.values():
            for name, part in zip(block.names, block.rows(), strict=True):
                found[name] = found[name] + part
        return {name: _relative(found[name], rows) for name, rows in truth.items()}

    def _without(self, errors: Mapping[str, float]) -> Capture:
        """Units dropped where they disagree with autograd; their parameters go through the whole model."""
        dtype = next(iter(self.task.selected().values())).dtype
        wrong = {name for name, error in errors.items() if not error <= TOLERANCE.get(dtype, 0.05)}
        if not wrong:
            return self
        kept = [replace(u, wanted={k: v for k, v in u.wanted.items() if v not in wrong}) for u in self.units]
        return replace(self, units=tuple(u for u in kept if u.wanted), whole=self.whole | wrong, tied=self.tied - wrong)

    def _named(self, heard: Heard, examples: int) -> Iterator[tuple[str, Block]]:
        for block in _call_blocks(heard, self.layouts[heard.unit.name, heard.index], examples):
            first = block.names[0] == next(iter(heard.unit.wanted.values()))
            yield heard.unit.name if first else block.names[0], block

    def _blocks(self, recorder: Recorder) -> dict[str, Block]:
        made: dict[str, Block] = {}
        for heard in recorder.calls:
            if all(g is None for g in heard.grads):
                continue
            for key, block in self._named(heard, recorder.examples):
                made[key] = _again(made[key], block) if key in made else block
        return _untied(made, self.tied) if self.tied else made


def _trace(
    task: Task, made: tuple[Unit, ...], two: Any, three: Any
) -> tuple[dict[tuple[str, int], Layout], frozenset[str], bool]:
    """Two forward passes, of two and of three examples; and whether the two have finite losses."""
    passes, losses = [], []
    for batch in (two, three):
        recorder = Recorder(made, {}, length(batch))
        with torch.enable_grad(), recorder.listening():
            losses.append(task.losses(batch))
        passes.append(recorder)
    changed = frozenset(c.unit.name for c in passes[0].calls if c.changed())
    return find_layouts(*passes), changed, bool(losses[0].isfinite().all())


def few(rows: Rows, size: int, task: Task) -> Any:
    """A batch of the first `size` examples; the first one again where there are fewer."""
    batch = task.batch(rows, slice(0, min(size, len(rows))))
    short = size - length(batch)
    first = one(batch, 0)
    return batch if short <= 0 else tree_map(_append(short), batch, first)


def _finite_pair(rows: Rows, task: Task) -> Any:
    """The first two examples with a finite loss, to compare gradients on; the first two where there are no such."""
    with torch.no_grad():
        batch = few(rows, min(len(rows), SEARCHED), task)
        found = task.losses(batch).isfinite().nonzero().flatten().tolist()[:2]
    found = found or [0, -1 + min(2, length(batch))]
    return tree_map(_append(1), one(batch, found[0]), one(batch, found[-1]))


def _append(times: int) -> Callable[[Any, Any], Any]:
    return lambda x, y: torch.cat([x] + [y] * times) if isinstance(x, Tensor) else x


def _call_blocks(heard: Heard, layout: Layout, examples: int) -> list[Block]:
    unit = heard.unit
    if unit.rule is None:
        made = generic(heard, layout, examples)
    else:
        places = iter(layout.inputs)
        args, kwargs = tree_map(
            lambda x: batch_first(x, next(places), examples) if isinstance(x, Tensor) else x,
            (heard.args, dict(heard.kwargs)),
        )
        grad = batch_first(heard.grads[0], layout.outputs[0] or 0, examples)
        made = unit.rule(Call(unit.module, args, kwargs, grad, frozenset(unit.wanted)))
    return [replace(b, names=tuple(unit.wanted[n] for n in b.names)) for b in made]


def _again(before: Block, block: Block) -> Block:
    """The gradient of a module that was called once more."""
    if isinstance(before, Factors) and isinstance(block, Factors):
        return replace(before, a=torch.cat([before.a, block.a], 1), g=torch.cat([before.g, block.g], 1))
    if isinstance(before, Lookup) and isinstance(block, Lookup):
        return replace(before, tokens=torch.cat([before.tokens, block.tokens], 1), g=torch.cat([before.g, block.g], 1))
    parts = tuple(x + y for x, y in zip(before.rows(), block.rows(), strict=True))
    return Dense(before.names, parts)


def _untied(blocks: dict[str, Block], shared: frozenset[str]) -> dict[str, Block]:
    """Blocks in which each shared parameter's gradient is one block, the sum over all its uses."""
    made: dict[str, Block] = {}
    for key, block in blocks.items():
        if shared.isdisjoint(block.names):
            made[key] = block
            continue
        for name, part in zip(block.names, block.rows(), strict=True):
            own = Dense((name,), (part,))
            made[name] = _again(made[name], own) if name in made else own
    return made


def _require_independence(together: Tensor, alone: Tensor) -> None:
    error = _relative(together.detach(), alone.detach())
    if error > 10 * TOLERANCE.get(together.dtype, 0.05):
        raise UnsupportedModel(
            f"losses that change by a factor of {error:.2g} with the other examples of the batch",
            "a loss for each example that depends on nothing but the example and the model",
            "take batch statistics and in-batch negatives out of the model and the loss",
        )


def _relative(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖; nothing where both vanish."""
    size = truth.double().norm()
    gap = (found.double() - truth.double()).norm()
    return float(gap / size) if size > 0 else float(gap)


def _wide(part: Tensor) -> Tensor:
    return part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
