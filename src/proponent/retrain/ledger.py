"""The ledger: retrained models' subsets and what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr

from proponent.attribution import coordinates, load_dataset, provenance, save_dataset
from proponent.errors import InputError
from proponent.retrain.subsets import Subsets

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Ledger:
    """Retrained models: which training examples each was trained on, and the measurement of each query by it.

    measured[s, q] = m_q(model trained on subset s under its seed)

    >>> ledger = Ledger.of(np.array([[1, 0], [1, 1]]), np.array([[0.1], [0.4]]), train=["a", "b"], query=[7])
    >>> ledger
    Ledger(2 models, 2 subsets of 2 training examples × 1 queries)

    Args:
        dataset: dims (subset, train, query): `included` (subset, train) counts, `measured` (subset, query), NaN where the
            fit failed, `error` (subset) what it said, `seed` (subset); ids and labels as coordinates.
        models: the models in the same order, where they were kept.
    """

    dataset: xr.Dataset
    models: tuple[Any, ...] | None = None

    @classmethod
    def of(
        cls,
        included: Any,
        measured: Array,
        *,
        train: Any,
        query: Any,
        seeds: Any = None,
        errors: Sequence[str] | None = None,
        models: Sequence[Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Self:
        """A ledger from arrays.

        Args:
            included: (m, n) how many times subset s holds example i.
            measured: (m, q); NaN where a fit failed.
            train, query: Examples or other rows with ids, or their ids.
            seeds: (m,) 0 by default.
            errors: (m,) what each failed fit said; "" where it did not fail.
            models: (m,) to keep with it.
            attributes: JSON-able facts worth keeping.

        Raises:
            InputError: shapes that do not fit together.
        """
        subsets = Subsets.of(included, seeds)
        rows, columns = coordinates(train, "train"), coordinates(query, "query")
        wanted = (len(subsets), len(columns["query"][1]))
        if np.shape(measured) != wanted or subsets.included.shape[1] != len(rows["train"][1]):
            raise InputError(
                f"measurements of shape {np.shape(measured)} for subsets of shape {subsets.included.shape}",
                f"(subsets, queries) = {wanted} and {len(rows['train'][1])} training examples",
                "transpose or check",
            )
        dataset = xr.Dataset(
            {
                "included": (("subset", "train"), subsets.included),
                "measured": (("subset", "query"), np.asarray(measured, dtype=np.float64)),
                "error": ("subset", np.array(errors or [""] * len(subsets), dtype=object)),
            },
            coords={**rows, **columns, "seed": ("subset", subsets.seeds)},
        )
        return cls(dataset.assign_attrs(provenance("retrain", "measurement", attributes)), _kept(models))

    @property
    def included(self) -> Array:
        """(m, n) uint8, how many times each subset holds each example."""
        return np.asarray(self.dataset["included"])

    @property
    def seeds(self) -> Array:
        """(m,) the seed each model was trained under."""
        return np.asarray(self.dataset["seed"])

    @property
    def measured(self) -> Array:
        """(m, q) the measurements; NaN where the fit failed."""
        return np.asarray(self.dataset["measured"])

    @property
    def errors(self) -> Array:
        """(m,) what failed fits said; "" for the others."""
        return np.asarray(self.dataset["error"])

    @property
    def failed(self) -> Array:
        """(m,) whether the fit failed."""
        return np.asarray(self.errors != "")

    def __len__(self) -> int:
        return int(self.dataset.sizes["subset"])

    def by_subset(self) -> tuple[Array, Array]:
        """The distinct subsets (s, n), in order of appearance, and which of them each model belongs to (m,)."""
        rows = np.ascontiguousarray(self.included)
        if not rows.shape[1]:
            return rows[:1], np.zeros(len(rows), np.int64)
        flat = rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
        _, first, which = np.unique(flat, return_index=True, return_inverse=True)
        place = np.empty(len(first), np.int64)
        place[np.argsort(first)] = np.arange(len(first))
        return rows[np.sort(first)], place[which]

    def select(self, at: Any) -> Ledger:
        """Some of the models, in this order."""
        rows = np.arange(len(self))[at]
        return Ledger(self.dataset.isel(subset=rows), self.models and tuple(self.models[s] for s in rows))

    def save(self, path: str | Path) -> Path:
        """Write as zarr, without the models."""
        return save_dataset(self.dataset, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open what `save` wrote."""
        return cls(load_dataset(Path(path), "measured"))

    def __repr__(self) -> str:
        n, q = self.dataset.sizes["train"], self.dataset.sizes["query"]
        failed = f", {self.failed.sum():,} failed" if self.failed.any() else ""
        subsets = len(self.by_subset()[0])
        return f"Ledger({len(self):,} models{failed}, {subsets:,} subsets of {n:,} training examples × {q:,} queries)"


def _kept(models: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if models is None else tuple(models)
