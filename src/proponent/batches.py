"""A batch as a loss sees it: inputs and a target, in a tuple or in a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from proponent.errors import InputError


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


def target_of(batch: Any) -> Tensor:
    """The target of a batch that must have one."""
    target = split(batch)[2]
    if not isinstance(target, Tensor):
        raise InputError(
            "a batch without labels" if target is None else f"a target of type {type(target).__name__}",
            "a tensor of targets: the last entry of a tuple, or 'labels' of a mapping",
            "add the targets, or pass loss=fn(model, batch)",
        )
    return target


def with_target(batch: Any, target: Tensor) -> Any:
    """The batch with another target."""
    return {**batch, "labels": target} if isinstance(batch, Mapping) else (*batch[:-1], target)
