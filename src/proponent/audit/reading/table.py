"""A table whose columns have kinds and whose rows have ids and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class Table:
    """A table whose columns have kinds and whose rows have ids and labels.

    Args:
        name: the file's name.
        frame: the n × columns features; numbers are float64, dates datetime64, categories categorical, texts str.
            The label, the id and the group column, and columns that are empty or constant, are not among them.
        kinds: every column of the file apart from label, id and group → "number", "category", "date", "text",
            "identifier", "constant" or "empty"; {"image": "image"} for a folder of images.
        labels: (n,) str for classification, float64 for regression.
        task: "classification" or "regression".
        classes: the sorted classes; empty for regression.
        ids: (n,) str, from the id column, else the row's position in the file counted from 0.
        rows: (n,) that position; `total` rows are in the file.
        groups: (n,) str or None.
        label, id, group: names of those columns.
        warnings: what should be known about the data, one sentence each.
        date_formats: date column → how its text was read.
        pixels, image_shape: (n, height · width · channels) uint8 and their shape, for a folder of images.
    """

    name: str
    frame: pd.DataFrame
    kinds: Mapping[str, str]
    labels: Array
    task: Task
    classes: tuple[str, ...]
    ids: Array
    rows: Array
    total: int
    label: str
    id: str | None = None
    group: str | None = None
    groups: Array | None = None
    warnings: tuple[str, ...] = ()
    date_formats: Mapping[str, str] = field(default_factory=dict)
    pixels: Array | None = None
    image_shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> pd.DataFrame | Array:
        """What an encoder is fitted on: the frame, or the pixels of images."""
        return self.frame if self.pixels is None else self.pixels

    def examples(self) -> Examples:
        """The rows as examples; a table whose one usable column is free text gives texts."""
        inputs: Any = self.inputs
        used = [c for c in self.frame.columns if self.kinds[c] != "identifier"]
        if len(used) == 1 and self.kinds[used[0]] == "text":
            inputs = self.frame[used[0]].tolist()
        return Examples(inputs, self.ids, self.labels, self.groups, image_shape=self.image_shape)
