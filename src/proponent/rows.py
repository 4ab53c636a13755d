"""Training examples and queries as batches of tensors: contiguous, in order, with ids."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from proponent.errors import InputError, did_you_mean
from proponent.store.fingerprint import fingerprint


def length(batch: Any) -> int:
    """How many examples a batch holds."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next(len(v) for v in values if isinstance(v, Tensor))


@dataclass(frozen=True)
class Rows:
    """Training examples or queries as batches of tensors: contiguous, in order, with ids.

    >>> rows = Rows.of((np.zeros((5, 3), dtype="float32"), np.arange(5)))
    >>> len(rows), [length(b) for b in rows.batches(2, "cpu")]
    (5, [2, 2, 1])
    """

    take: Callable[[int, int], Any]
    ids: np.ndarray[Any, np.dtype[Any]]
    labels: np.ndarray[Any, np.dtype[Any]] | None = None

    @classmethod
    def of(cls, data: Any) -> Rows:
        """From a tuple or mapping of arrays or tensors, Examples, a map-style dataset, or a DataLoader (its dataset, in order)."""
        made = cls._of(data)
        if not len(made):
            raise InputError("0 examples", "at least one", "check how the data were read or filtered")
        return made

    @classmethod
    def _of(cls, data: Any) -> Rows:
        if isinstance(data, cls):
            return data
        if hasattr(data, "inputs") and hasattr(data, "ids"):
            columns = _tensors((data.inputs, data.labels))
            return cls(lambda a, b: tuple(c[a:b] for c in columns), np.asarray(data.ids), data.labels)
        if isinstance(data, tuple):
            columns = _tensors(data)
            return cls(lambda a, b: tuple(c[a:b] for c in columns), np.arange(len(columns[0])), _label(columns[-1]))
        if isinstance(data, Mapping):
            named = dict(zip(data, _tensors(tuple(data.values())), strict=True))
            return cls(lambda a, b: {k: v[a:b] for k, v in named.items()}, np.arange(length(named)))
        collate = torch.utils.data.default_collate
        if isinstance(data, torch.utils.data.DataLoader):
            collate, data = data.collate_fn, data.dataset
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise InputError(
                f"data of type {type(data).__name__}",
                "a tuple (inputs, targets), a mapping of arrays, a map-style dataset or a DataLoader over one",
                "collect a stream into one of these: scores need an order",
            )
        return cls(lambda a, b: collate([data[i] for i in range(a, b)]), np.arange(len(data)))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: slice) -> Rows:
        """A contiguous part."""
        first, last, _ = at.indices(len(self))
        labels = None if self.labels is None else self.labels[at]
        return replace(
            self, take=lambda a, b: self.take(first + a, min(first + b, last)), ids=self.ids[at], labels=labels
        )

    def positions(self, ids: Sequence[Any]) -> list[int]:
        """Where these ids stand.

        Raises:
            InputError: an unknown id.
        """
        at = {id: k for k, id in enumerate(self.ids.tolist())}
        for id in ids:
            if id not in at:
                few = list(map(str, itertools.islice(at, 1000)))
                raise InputError(f"no training example {id!r}", "the id of one", did_you_mean(str(id), few))
        return [at[id] for id in ids]

    def batch(self, at: slice, device: Any, dtype: torch.dtype | None = None) -> Any:
        """Some of the examples on the device; floating inputs in `dtype`."""
        first, last, _ = at.indices(len(self))
        return moved(self.take(first, last), device, dtype)

    def parts(self, size: int) -> list[slice]:
        """Contiguous parts of at most `size` examples."""
        return [slice(at, min(at + size, len(self))) for at in range(0, len(self), size)]

    def batches(self, size: int, device: Any, dtype: torch.dtype | None = None) -> Iterator[Any]:
        """Contiguous batches on the device."""
        for at in self.parts(size):
            yield self.batch(at, device, dtype)

    def fingerprint(self) -> str:
        """A hash of the content: ids, and every number of every example."""
        digest = hashlib.blake2b(digest_size=16)
        for batch in self.batches(1024, "cpu"):
            for leaf in tree_leaves(batch):
                if isinstance(leaf, Tensor):
                    digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
                    digest.update(leaf.contiguous().flatten().view(torch.uint8).numpy())
        return fingerprint({"ids": self.ids.tolist(), "content": digest.hexdigest()})


def _tensors(columns: tuple[Any, ...]) -> list[Tensor]:
    made = [c if isinstance(c, Tensor) else torch.as_tensor(np.asarray(c)) for c in columns]
    if len({len(c) for c in made}) != 1:
        raise InputError(f"columns of lengths {[len(c) for c in made]}", "one length", "pass one entry per example")
    return made


def _label(column: Tensor) -> np.ndarray[Any, np.dtype[Any]] | None:
    return column.cpu().numpy() if column.ndim == 1 and not column.requires_grad else None


def moved(batch: Any, device: Any, dtype: torch.dtype | None = None) -> Any:
    """A batch's tensors on a device; those of floating point in another precision."""

    def move(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(device, dtype if x.is_floating_point() else None)

    return tree_map(move, tuple(batch) if isinstance(batch, list) else batch)
