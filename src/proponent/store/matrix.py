"""A (query, train) matrix on disk, written block by block of training examples, each block once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from proponent.attribution import Attribution
from proponent.errors import InputError
from proponent.examples import Examples
from proponent.store.fingerprint import fingerprint, require_same

Array = np.ndarray[Any, np.dtype[Any]]

MEMORY_LIMIT = 2 * 2**30
"""Bytes of scores and bounds that are held in memory; larger results want a path to stream to."""


def require_memory(queries: int, train: int, variables: int) -> None:
    """Refuse a result that should go to disk, in numbers."""
    wanted = 8 * queries * train * variables
    if wanted > MEMORY_LIMIT:
        raise InputError(
            f"{queries:,} queries × {train:,} training examples × {variables} variables = {wanted / 2**30:.1f} GiB of results",
            f"at most {MEMORY_LIMIT / 2**30:.0f} GiB in memory",
            "pass out='scores.zarr' to stream them to disk, or score fewer queries or rows",
        )


@dataclass(frozen=True)
class MatrixStore:
    """The matrix at `path`; blocks already written are kept across runs.

    Args:
        path: the zarr directory, readable by `Attribution.load` at any time.
        block: training examples per block.
    """

    path: Path
    block: int

    @classmethod
    def open(
        cls,
        path: str | Path,
        query: Examples,
        train: Examples,
        *,
        variables: tuple[str, ...],
        block: int,
        method: str,
        settings: Mapping[str, Any],
    ) -> MatrixStore:
        """Create the matrix, or go on with the one that lies there.

        Raises:
            FingerprintMismatch: what lies there was made from other data or settings.
        """
        path = Path(path)
        made_from = {
            "method": method,
            "settings": dict(settings),
            "query": query.fingerprint(),
            "train": train.fingerprint(),
        }
        mark = fingerprint({**made_from, "block": block, "variables": variables})
        shape = (len(query), len(train))
        if path.exists():
            there = dict(zarr.open_group(path, mode="r").attrs)
            require_same({"fingerprint": there.get("fingerprint")}, {"fingerprint": mark}, str(path))
            return cls(path, block)
        empty = Attribution.of(
            np.full(shape, np.nan) if 0 in shape else np.broadcast_to(np.nan, shape),
            query=query,
            train=train,
            method=method,
            attributes={"settings": dict(settings), "fingerprint": mark},
        )
        Attribution(empty.dataset.drop_vars("score")).save(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
            group = zarr.open_group(path, mode="a")
            chunks = (max(1, min(shape[0], 1024)), block)
            for name in variables:
                group.create_array(
                    name,
                    shape=shape,
                    chunks=chunks,
                    dtype="float64",
                    fill_value=np.nan,
                    dimension_names=("query", "train"),
                )
            blocks = -(-shape[1] // block)
            group.create_array(
                "written", shape=(blocks,), chunks=(1,), dtype="bool", fill_value=False, dimension_names=("block",)
            )
        return cls(path, block)

    def missing(self) -> list[int]:
        """The blocks that are not written yet."""
        return [int(b) for b in np.flatnonzero(~np.asarray(zarr.open_group(self.path, mode="r")["written"][:]))]

    def write(self, index: int, values: Mapping[str, Array]) -> None:
        """Write one block's columns, then mark it written."""
        group = zarr.open_group(self.path, mode="a")
        at = slice(index * self.block, index * self.block + next(iter(values.values())).shape[1])
        for name, columns in values.items():
            group[name][:, at] = columns
        group["written"][index] = True
