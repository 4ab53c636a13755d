"""What a training example or a query looks like to a person: as the experiment says, or guessed from its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from proponent.errors import InputError
from proponent.examples import Description, Examples
from proponent.experiment.load import Experiment

Array = np.ndarray[Any, np.dtype[Any]]
Split = Literal["train", "query"]

SIDE = 4  # pixels; a smaller array is no picture
FEW = 40  # numbers shown one by one; more are summed up
TOKENS = 200


@dataclass(frozen=True)
class Describer:
    """Shows examples of one experiment.

    Args:
        experiment: whose describe(split, id), where it has one, comes first.
        rows: by split, the examples with their `ids`: Examples, or Rows.
        labels: by split and id, shown beside an example.
    """

    experiment: Experiment
    rows: Mapping[Split, Any]
    labels: Mapping[Split, Mapping[Any, str]]
    image_shape: tuple[int, ...] | None = None
    _index: dict[Split, pd.Index] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {split: pd.Index(rows.ids) for split, rows in self.rows.items()})

    def show(self, split: Split, id: Any) -> Description:
        """The example with this id.

        Raises:
            InputError: the experiment's describe() raises, or returns what cannot be shown.
        """
        plain = id.item() if isinstance(id, np.generic) else id
        told = self.experiment.call("describe", split, plain)
        label = self.labels[split].get(plain)
        fields = {} if label is None else {"label": label}
        if told is not None:
            return _told(told, fields)
        rows = self.rows[split]
        if isinstance(rows, Examples) and self.image_shape is None:
            return rows.describe(id)
        return guessed(_first(self._value(split, id)), fields, self.image_shape)

    def _value(self, split: Split, id: Any) -> Any:
        at, rows = int(self._index[split].get_indexer(pd.Index([id]))[0]), self.rows[split]
        return rows.inputs[at : at + 1] if isinstance(rows, Examples) else rows.take(at, at + 1)


def _told(told: Any, fields: Mapping[str, str]) -> Description:
    """What describe() returned: text, a picture, or columns."""
    if isinstance(told, Description):
        return told
    if isinstance(told, str):
        return Description("text", fields, text=told)
    if isinstance(told, Mapping):
        return Description("row", {str(k): str(v) for k, v in told.items()} | dict(fields))
    array = _array(told)
    if array is not None and (picture := _picture(array)) is not None:
        return Description("image", fields, image=picture)
    shape = "" if array is None else f" of shape {array.shape}"
    raise InputError(
        f"{type(told).__name__}{shape} from describe()",
        "a text, a picture (height, width[, 3]) or a mapping of columns",
        "return one of these, or None for the usual",
    )


def guessed(value: Any, fields: Mapping[str, str], image_shape: tuple[int, ...] | None = None) -> Description:
    """One input as a picture, a text, its numbers, or their summary.

    >>> guessed(np.arange(3.0), {"label": "yes"}).fields
    {'x0': '0', 'x1': '1', 'x2': '2', 'label': 'yes'}
    >>> guessed(np.zeros((1, 28, 28)), {}).image.shape
    (28, 28)
    >>> guessed(np.array([1, 403, 7]), {}).text
    'tokens 1 403 7'

    Args:
        value: of one example, without the batch's axis.
        fields: shown beside it.
        image_shape: of a picture that comes as a flat row of numbers.
    """
    if isinstance(value, str):
        return Description("text", fields, text=value)
    array = _array(value)
    if array is None:
        return Description("row", {"input": type(value).__name__} | dict(fields))
    if image_shape is not None:
        array = array.reshape(image_shape)
    picture = _picture(array)
    if picture is not None and array.dtype.kind in "fu":
        return Description("image", fields, image=picture)
    if array.ndim == 1 and array.dtype.kind in "iu":
        words = " ".join(map(str, array[:TOKENS])) + (" …" if len(array) > TOKENS else "")
        return Description("text", fields, text=f"tokens {words}")
    if array.size <= FEW:
        return Description("row", {f"x{j}": f"{v:.6g}" for j, v in enumerate(array.ravel())} | dict(fields))
    return Description("row", _summary(array) | dict(fields))


def _summary(array: Array) -> dict[str, str]:
    numbers = array.astype(np.float64)
    size = " × ".join(map(str, array.shape))
    return {"shape": size} | {k: f"{getattr(numbers, k)():.4g}" for k in ("mean", "std", "min", "max")}


def _first(batch: Any) -> Any:
    """The input of the one example in a batch: the first entry of a tuple or a mapping."""
    part = batch
    if isinstance(batch, Mapping):
        part = next(iter(batch.values()))
    elif isinstance(batch, tuple | list) and batch and not isinstance(batch[0], str):
        part = batch[0]
    return part[0]


def _array(value: Any) -> Array | None:
    """Numbers as an array: of numpy, of PIL, or of a tensor on any device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    array = np.asarray(value)
    return array if array.dtype.kind in "biuf" else None


def _picture(array: Array) -> Array | None:
    """(height, width) or (height, width, 3) in 0–255 from (h, w), (c, h, w) or (h, w, c); None for what is no picture."""
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or min(array.shape[:2]) < SIDE:
        return None
    if array.dtype == np.uint8:
        return array
    pixels = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and 128 <= high <= 255:
        low, high = 0.0, 255.0
    return np.asarray(((pixels - low) / ((high - low) or 1.0) * 255).round(), dtype=np.uint8)
