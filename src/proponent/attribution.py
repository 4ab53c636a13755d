"""Results: `Attribution`, scores with axes (query, train); `Values`, one number per training example."""

from __future__ import annotations

import json
import platform
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from proponent.errors import InputError, did_you_mean

Array = np.ndarray[Any, np.dtype[Any]]

SIGN = "score > 0: including the training example raises the measurement of the query"
CHANGE = "measurement(with the example) - measurement(without it)"


@dataclass(frozen=True)
class Attribution:
    """Scores of training examples for queries, with axes (query, train).

    score[q, i] predicts m_q(trained with i) − m_q(trained without i), unless `unit` says otherwise.

    >>> scores = Attribution.of(np.array([[0.2, -0.1, 0.0]]), query=[7], train=["a", "b", "c"], method="example")
    >>> scores.proponents(query=7, k=1)[["id", "score"]].to_dict("records")
    [{'id': 'a', 'score': 0.2}]
    >>> scores.opponents(query=7, k=5)["id"].tolist()
    ['b']

    Args:
        dataset: dims (query, train); variable `score` and, where the method has them, `stderr`, `lower`, `upper`;
            ids and labels as coordinates; method, unit, sign, settings, seconds, versions as attributes.
    """

    dataset: xr.Dataset

    @classmethod
    def of(
        cls,
        score: Array,
        *,
        query: Any,
        train: Any,
        method: str,
        unit: str = CHANGE,
        variables: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Self:
        """An attribution from arrays.

        Args:
            score: (q, n).
            query, train: Examples or other rows with ids, or their ids.
            method: the method's name.
            unit: what a score is; by default the predicted change of the measurement.
            variables: more variables: a (q, n) array, or a pair (dims, array).
            attributes: JSON-able facts worth keeping: settings, seconds, residuals.

        Raises:
            InputError: the shape differs from (queries, training examples).
        """
        q_coords, t_coords = coordinates(query, "query"), coordinates(train, "train")
        shape = (len(q_coords["query"][1]), len(t_coords["train"][1]))
        if score.shape != shape:
            raise InputError(
                f"scores of shape {score.shape}", f"(queries, training examples) = {shape}", "transpose or check"
            )
        extra = {k: v if isinstance(v, tuple) else (("query", "train"), v) for k, v in (variables or {}).items()}
        dataset = xr.Dataset({"score": (("query", "train"), score), **extra}, coords={**q_coords, **t_coords})
        return cls(dataset.assign_attrs(provenance(method, unit, attributes)))

    @property
    def unit(self) -> str:
        """What a score is."""
        return str(self.dataset.attrs["unit"])

    @property
    def method(self) -> str:
        """The method that made the scores."""
        return str(self.dataset.attrs["method"])

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, training examples)."""
        return self.dataset.sizes["query"], self.dataset.sizes["train"]

    def proponents(self, query: Any, k: int = 10) -> pd.DataFrame:
        """The k training examples that raise this query's measurement most, strongest first."""
        table = self._ranked(query, k, descending=True)
        return table[table["score"] > 0].reset_index(drop=True)

    def opponents(self, query: Any, k: int = 10) -> pd.DataFrame:
        """The k training examples that lower this query's measurement most, strongest first."""
        table = self._ranked(query, k, descending=False)
        return table[table["score"] < 0].reset_index(drop=True)

    def top(self, query: Any, k: int = 10) -> pd.DataFrame:
        """The k training examples with the largest absolute scores for this query."""
        row = self._row(query)
        at = _extreme(np.abs(row["score"].to_numpy()), k)
        return _table(row, at)

    def sum(self, groups: Sequence[Any] | Array) -> Attribution:
        """Scores summed over groups of training examples: a first-order estimate of removing whole groups.

        Args:
            groups: (n,) the group of each training example.
        """
        names, member = np.unique(np.asarray(groups), return_inverse=True)
        if len(member) != self.shape[1]:
            raise InputError(f"{len(member)} groups", f"{self.shape[1]}, one per training example", "pass all of them")
        total = np.zeros((self.shape[0], len(names)))
        np.add.at(total.T, member, np.asarray(self.dataset["score"]).T)
        attributes = dict(self.dataset.attrs) | {"summed_over": "groups"}
        query = {k: v for k, v in self.dataset.coords.items() if v.dims == ("query",)}
        return Attribution(
            xr.Dataset(
                {"score": (("query", "train"), total)}, coords={**query, "train": _text(names)}, attrs=attributes
            )
        )

    def values(self) -> Values:
        """Each training example's mean score over the queries."""
        attributes = {k: v for k, v in self.dataset.attrs.items() if k in ("settings", "unit")}
        return Values.of(
            np.asarray(self.dataset["score"].mean("query")),
            train=self.dataset["train"].to_numpy(),
            method=f"{self.method}, mean over queries",
            attributes=attributes,
        )

    def to_pandas(self) -> pd.DataFrame:
        """The scores as a DataFrame: a row per query, a column per training example."""
        return pd.DataFrame(self.dataset["score"].to_pandas())

    def save(self, path: str | Path) -> Path:
        """Write as zarr; `Attribution.load` reads it back lazily."""
        return save_dataset(self.dataset, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open what `save` wrote; arrays are read when they are used."""
        return cls(load_dataset(Path(path), "score"))

    def __repr__(self) -> str:
        q, n = self.shape
        return f"Attribution({self.method}: {q:,} queries × {n:,} training examples; {self.unit})"

    def _row(self, query: Any) -> xr.Dataset:
        ids = pd.Index(self.dataset["query"].to_numpy())
        if query not in ids:
            raise InputError(f"no query {query!r}", "the id of a query", did_you_mean(str(query), ids[:1000]))
        return self.dataset.isel(query=int(ids.get_indexer([query])[0])).load()

    def _ranked(self, query: Any, k: int, *, descending: bool) -> pd.DataFrame:
        row = self._row(query)
        scores = row["score"].to_numpy()
        return _table(row, _extreme(scores if descending else -scores, k))


@dataclass(frozen=True)
class Values:
    """One number per training example: a Shapley value, a self-influence, a memorization estimate.

    >>> values = Values.of(np.array([0.5, -0.2]), train=["a", "b"], method="example")
    >>> values.lowest(1)["id"].tolist()
    ['b']

    Args:
        dataset: dim (train); variable `value` and, where known, `stderr`, `lower`, `upper`, `count`.
    """

    dataset: xr.Dataset

    @classmethod
    def of(
        cls,
        value: Array,
        *,
        train: Any,
        method: str,
        unit: str = CHANGE,
        variables: Mapping[str, Array] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Self:
        """Values from arrays of shape (n,)."""
        coords = coordinates(train, "train")
        n = len(coords["train"][1])
        if value.shape != (n,):
            raise InputError(f"values of shape {value.shape}", f"({n},)", "pass one value per training example")
        data = {"value": ("train", value)} | {k: ("train", v) for k, v in (variables or {}).items()}
        unit = str((attributes or {}).get("unit", unit))
        return cls(xr.Dataset(data, coords=coords, attrs=provenance(method, unit, attributes)))

    @property
    def value(self) -> Array:
        """(n,) the values."""
        return np.asarray(self.dataset["value"])

    @property
    def method(self) -> str:
        """The method that made the values."""
        return str(self.dataset.attrs["method"])

    def lowest(self, k: int = 10) -> pd.DataFrame:
        """The k lowest values, lowest first."""
        return _table(self.dataset, _extreme(-self.value, k))

    def highest(self, k: int = 10) -> pd.DataFrame:
        """The k highest values, highest first."""
        return _table(self.dataset, _extreme(self.value, k))

    def sum(self, groups: Sequence[Any] | Array) -> pd.Series[float]:
        """Values summed over groups of training examples."""
        return pd.Series(self.value).groupby(np.asarray(groups)).sum()

    def to_pandas(self) -> pd.DataFrame:
        """A row per training example."""
        return pd.DataFrame(self.dataset.to_dataframe())

    def save(self, path: str | Path) -> Path:
        """Write as zarr."""
        return save_dataset(self.dataset, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open what `save` wrote."""
        return cls(load_dataset(Path(path), "value"))

    def __repr__(self) -> str:
        return f"Values({self.method}: {self.dataset.sizes['train']:,} training examples)"


def coordinates(examples: Any, dim: str) -> dict[str, tuple[str, Array]]:
    """An axis of a result: ids, and labels and groups where there are any."""
    if not hasattr(examples, "ids"):
        return {dim: (dim, _text(np.asarray(examples)))}
    named = {"": examples.ids, "_label": examples.labels, "_group": getattr(examples, "groups", None)}
    return {f"{dim}{name}": (dim, _text(column)) for name, column in named.items() if column is not None}


def _text(column: Array) -> Array:
    """Strings as objects, the one form of them that pandas, xarray and zarr agree on."""
    return column.astype(object) if column.dtype.kind in "UT" else column


def provenance(method: str, unit: str, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """A result's attributes: what made it, and with which versions."""
    facts = {
        k: v if isinstance(v, str | int | float) else json.dumps(v, default=str) for k, v in (attributes or {}).items()
    }
    return {"method": method, "unit": unit, "sign": SIGN, "versions": _versions(), **facts}


@cache
def _versions() -> str:
    versions = {name: version(name) for name in ("proponent", "numpy", "scipy", "scikit-learn")}
    return json.dumps(versions | {"python": platform.python_version()})


def _extreme(scores: Array, k: int) -> Array:
    """Positions of the k largest scores, largest first; ties in training order; NaN never."""
    known = np.flatnonzero(~np.isnan(scores))
    return known[np.argsort(-scores[known], kind="stable")[:k]]


def _table(row: xr.Dataset, at: Array) -> pd.DataFrame:
    picked = row.isel(train=at)
    columns = {"id": _text(picked["train"].to_numpy())}
    for name in ("score", "value", "stderr", "lower", "upper"):
        if name in picked and picked[name].dims == ("train",):
            columns[name] = picked[name].to_numpy()
    for name, short in (("train_label", "label"), ("train_group", "group")):
        if name in picked.coords:
            columns[short] = _text(picked[name].to_numpy())
    return pd.DataFrame(columns)


def save_dataset(dataset: xr.Dataset, path: Path) -> Path:
    """Write beside, move into place: a killed save leaves the old result or none."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    plain = dataset.assign_coords({k: v.astype(object) for k, v in dataset.coords.items() if v.dtype.kind in "UT"})
    with warnings.catch_warnings():
        # zarr warns that variable-length strings have no version-3 specification yet; its own reader round-trips them.
        warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
        plain.to_zarr(partial, mode="w", consolidated=False)
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    return path


def load_dataset(path: Path, variable: str) -> xr.Dataset:
    """Open lazily what `save_dataset` wrote."""
    if not path.exists():
        raise InputError(f"nothing at {path}", "a saved result", "check the path")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
        dataset: xr.Dataset = xr.open_zarr(path, consolidated=False, chunks=None)
    if variable not in dataset:
        raise InputError(
            f"{path} holds {sorted(map(str, dataset.data_vars))}",
            f"a result with {variable!r}",
            "load it with the other class",
        )
    return dataset
