"""DataFrames as the plain arrays that a stage keeps, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from proponent.store.stages import Arrays


def pack(frame: pd.DataFrame) -> Arrays:
    """The columns as arrays; lists and words become strings, missing words the empty string.

    >>> unpack(pack(pd.DataFrame({"row": ["a", None], "score": [0.5, 1.0]}))).to_dict("list")
    {'row': ['a', ''], 'score': [0.5, 1.0]}
    """
    arrays: Arrays = {}
    for name in frame.columns:
        values: Any = frame[name].to_numpy()
        if values.dtype.kind not in "biuf":
            values = np.array([_word(v) for v in values], dtype=str) if len(values) else np.empty(0, dtype="U1")
        arrays[str(name)] = values
    return arrays


def unpack(arrays: Arrays) -> pd.DataFrame:
    """The DataFrame that `pack` took apart."""
    return pd.DataFrame({name: v.astype(object) if v.dtype.kind == "U" else v for name, v in arrays.items()})


def _word(value: Any) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return " ".join(map(str, value))
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)
