"""A (query, train) matrix on disk, written block by block of training examples, each block once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from proponent.attribution import CHANGE, Attribution
from proponent.errors import InputError
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
        rounds: parts of the queries, each of which writes every block.
    """

    path: Path
    block: int
    rounds: int = 1

    @classmethod
    def open(
        cls,
        path: str | Path,
        query: Any,
        train: Any,
        *,
        variables: tuple[str, ...],
        block: int,
        method: str,
        settings: Mapping[str, Any],
        rounds: int = 1,
        dtype: str = "float64",
        unit: str = CHANGE,
        facts: Mapping[str, Any] | None = None,
    ) -> MatrixStore:
        """Create the matrix, or go on with the one that lies there.

        Args:
            query, train: Examples, or other rows with ids and a fingerprint.
            facts: kept with the matrix; they may differ when a run goes on.

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
        mark = fingerprint(
            {**made_from, "block": block, "variables": variables} | ({"rounds": rounds} if rounds > 1 else {})
        )
        shape = (len(query), len(train))
        if path.exists():
            there = dict(zarr.open_group(path, mode="r").attrs)
            require_same({"fingerprint": there.get("fingerprint")}, {"fingerprint": mark}, str(path))
            return cls(path, block, rounds)
        empty = Attribution.of(
            np.full(shape, np.nan) if 0 in shape else np.broadcast_to(np.nan, shape),
            query=query,
            train=train,
            method=method,
            unit=unit,
            attributes={**(facts or {}), "settings": dict(settings), "fingerprint": mark},
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
                    dtype=dtype,
                    fill_value=np.nan,
                    dimension_names=("query", "train"),
                )
            count = rounds * -(-shape[1] // block)
            group.create_array(
                "written", shape=(count,), chunks=(1,), dtype="bool", fill_value=False, dimension_names=("block",)
            )
        return cls(path, block, rounds)

    def missing(self, turn: int = 0) -> list[int]:
        """The blocks that this round has not written yet."""
        written = np.asarray(zarr.open_group(self.path, mode="r")["written"][:]).reshape(self.rounds, -1)
        return [int(b) for b in np.flatnonzero(~written[turn])]

    def read(self, name: str, queries: slice, train: slice) -> Array:
        """Some of a variable's values."""
        return np.asarray(zarr.open_group(self.path, mode="r")[name][queries, train])

    def write(self, index: int, values: Mapping[str, Array], turn: int = 0, queries: slice = slice(None)) -> None:
        """Write one block's columns for a round's queries, then mark it written."""
        group = zarr.open_group(self.path, mode="a")
        at = slice(index * self.block, index * self.block + next(iter(values.values())).shape[1])
        for name, columns in values.items():
            group[name][queries, at] = columns
        group["written"][turn * (group["written"].shape[0] // self.rounds) + index] = True
