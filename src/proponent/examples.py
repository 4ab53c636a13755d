"""Examples: inputs with stable ids, whatever they came in as, and what one looks like to a person."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Description:
    """One example as a person sees it: a table row, a text, or an image.

    Args:
        kind: "row", "text" or "image".
        fields: column → shown value (for a text, the columns beside the text).
        text: the text, where kind is "text".
        image: pixels in 0–255, shape (height, width) or (height, width, 3), dtype uint8, where kind is "image".
    """

    kind: Literal["row", "text", "image"]
    fields: Mapping[str, str]
    text: str | None = None
    image: Array | None = None


@dataclass(frozen=True)
class Examples:
    """Training examples or queries with stable ids.

    >>> train = Examples.of(([[1.0, 2.0], [3.0, 4.0]], ["yes", "no"]))
    >>> len(train), train.ids.tolist(), train.describe(1).fields["x1"]
    (2, [0, 1], '4')

    Args:
        inputs: array (n, …), scipy sparse matrix (n, d), DataFrame or list of n.
        ids: (n,) integers or strings, unique; they name the examples in every result.
        labels: (n,) or None for queries without labels.
        groups: (n,) names of sources or people, or None.
        weights: (n,) sample weights ≥ 0, or None for ones.
        image_shape: (height, width[, 3]) where a row of `inputs` is a flattened image of 0–255.

    Raises:
        InputError: lengths differ, ids repeat, or weights are negative or not finite.
    """

    inputs: Any
    ids: Array
    labels: Array | None = None
    groups: Array | None = None
    weights: Array | None = None
    image_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        n = _length(self.inputs)
        for name in ("ids", "labels", "groups", "weights"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise InputError(
                    f"{len(column)} {name} for {n} examples", f"{n} {name}", f"pass one of {name} per example"
                )
        index = pd.Index(self.ids)
        if not index.is_unique:
            repeated = index[index.duplicated()].unique()[:5].tolist()
            raise InputError(
                f"repeated ids, such as {', '.join(map(repr, repeated))}",
                "one id per example",
                "drop the repeated rows or pass ids that are unique",
            )
        if self.weights is not None and not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise InputError(
                "negative or non-finite sample weights", "weights ≥ 0", "set the weight of unused rows to 0"
            )

    @classmethod
    def of(
        cls,
        data: Any,
        *,
        ids: Sequence[Any] | Array | None = None,
        groups: Sequence[Any] | Array | None = None,
        weights: Sequence[float] | Array | None = None,
        label: str | None = None,
    ) -> Examples:
        """Examples from whatever people hold their data in.

        Args:
            data: Examples (returned as they are), a pair (inputs, labels), a DataFrame (its index gives the ids),
                a Hugging Face dataset, a torch map-style dataset of (input, label) pairs, or inputs alone.
            ids, groups, weights: see the class; ids default to 0 … n−1, or to the DataFrame's index.
            label: the label column where `data` is a DataFrame or a Hugging Face dataset.
        """
        if isinstance(data, cls):
            return data
        inputs, labels = _split(data, label)
        if ids is None:
            ids = inputs.index.to_numpy() if isinstance(inputs, pd.DataFrame) else np.arange(_length(inputs))
        return cls(
            inputs=inputs,
            ids=_column(ids),
            labels=None if labels is None else _column(labels),
            groups=None if groups is None else _column(groups),
            weights=None if weights is None else np.asarray(weights, dtype=np.float64),
        )

    def __len__(self) -> int:
        return _length(self.inputs)

    def take(self, rows: Array | Sequence[int], ids: Array | None = None) -> Examples:
        """The examples at these positions, in this order; under new ids where rows repeat."""
        at = np.asarray(rows)

        def pick(column: Array | None) -> Array | None:
            return None if column is None else column[at]

        return Examples(
            _take(self.inputs, at),
            self.ids[at] if ids is None else ids,
            pick(self.labels),
            pick(self.groups),
            pick(self.weights),
            self.image_shape,
        )

    def positions(self, ids: Sequence[Any] | Array) -> Array:
        """Where these ids stand."""
        at = pd.Index(self.ids).get_indexer(pd.Index(_column(ids)))
        if (at < 0).any():
            missing = np.asarray(ids)[at < 0][:5].tolist()
            raise InputError(f"unknown ids {missing}", "ids of these examples", "look them up in .ids")
        return np.asarray(at)

    def describe(self, id: Any) -> Description:
        """What the example with this id looks like."""
        at = int(self.positions([id])[0])
        fields: dict[str, str] = {}
        if self.labels is not None:
            fields["label"] = str(self.labels[at])
        if self.image_shape is not None:
            pixels = np.clip(np.asarray(self.inputs[at]).reshape(self.image_shape), 0, 255).astype(np.uint8)
            return Description("image", fields, image=pixels)
        if isinstance(self.inputs, pd.DataFrame):
            row = self.inputs.iloc[at]
            return Description("row", {str(k): _shown(v) for k, v in row.items()} | fields)
        value = self.inputs[at]
        if isinstance(value, str):
            return Description("text", fields, text=value)
        if sparse.issparse(value):
            entries = value.tocoo()
            return Description(
                "row", {f"x{j}": _shown(v) for j, v in zip(entries.coords[-1], entries.data, strict=True)} | fields
            )
        flat = np.asarray(value).ravel()
        return Description("row", {f"x{j}": _shown(v) for j, v in enumerate(flat)} | fields)

    def fingerprint(self) -> str:
        """A hash of ids, inputs, labels, groups and weights: equal for equal examples, on any machine."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.ids, self.inputs, self.labels, self.groups, self.weights):
            digest.update(_bytes(part))
        return digest.hexdigest()


def _length(inputs: Any) -> int:
    return int(inputs.shape[0]) if hasattr(inputs, "shape") else len(inputs)


def _column(values: Any) -> Array:
    """A one-dimensional array; strings stay strings."""
    if isinstance(values, pd.Series | pd.Index):
        values = values.to_numpy()
    column = np.asarray(values)
    if column.dtype == object and all(isinstance(v, str) for v in column):
        column = column.astype(str)
    if column.ndim != 1:
        raise InputError(f"an array of shape {column.shape}", "one value per example, shape (n,)", "pass a flat array")
    return column


def _split(data: Any, label: str | None) -> tuple[Any, Any]:
    if isinstance(data, tuple) and len(data) == 2:
        inputs, labels = data
        return (inputs if hasattr(inputs, "shape") else _from_list(inputs)), labels
    if hasattr(data, "column_names") and hasattr(data, "to_pandas"):  # a Hugging Face dataset, without importing it
        data = data.to_pandas()
    if isinstance(data, pd.DataFrame):
        if label is None:
            return data, None
        if label not in data.columns:
            raise InputError(f"no column {label!r}", "the label's column", f"choose one of {list(data.columns)}")
        return data.drop(columns=label), data[label]
    if (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not hasattr(data, "shape")
        and not isinstance(data, list)
    ):
        pairs = [data[i] for i in range(len(data))]  # a torch map-style dataset, without importing torch
        if pairs and isinstance(pairs[0], tuple) and len(pairs[0]) == 2:
            return np.stack([np.asarray(x) for x, _ in pairs]), [np.asarray(y).item() for _, y in pairs]
        return _from_list(pairs), None
    return (data if hasattr(data, "shape") else _from_list(data)), None


def _from_list(values: Any) -> Any:
    values = list(values)
    return values if values and isinstance(values[0], str) else np.asarray(values)


def _take(inputs: Any, at: Array) -> Any:
    if isinstance(inputs, pd.DataFrame):
        return inputs.iloc[at]
    if hasattr(inputs, "shape"):
        return inputs[at]
    return [inputs[i] for i in at]


def _shown(value: Any) -> str:
    """A cell as a person reads it: a dash where missing, whole numbers in full, dates without an empty time."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    if isinstance(value, float | np.floating):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:.6g}"
    return str(value).removesuffix(" 00:00:00") if isinstance(value, pd.Timestamp) else str(value)


def _bytes(part: Any) -> bytes:
    if part is None:
        return b"\0none"
    if isinstance(part, pd.DataFrame):
        hashed = pd.util.hash_pandas_object(part, index=False).to_numpy().tobytes()
        return "\0".join(map(str, part.columns)).encode() + hashed
    if sparse.issparse(part):
        m = part.tocsr()
        return b"".join([repr(m.shape).encode(), m.data.tobytes(), m.indices.tobytes(), m.indptr.tobytes()])
    array = np.asarray(part)
    if array.dtype.kind in "OUT":
        return "\0".join(map(str, array.ravel())).encode()
    return repr((array.shape, array.dtype.str)).encode() + np.ascontiguousarray(array).tobytes()
