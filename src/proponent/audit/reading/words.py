"""The words of a table: which mean that a value is missing, and how they are read as names and numbers."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import numpy as np
import pandas as pd

PADDED = re.compile(r"[-+]?0\d")  # a code such as 007, not a number
MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "#n/a", "#na", "<na>", "-nan", "nat"})
MISSING_NUMBER = MISSING | {"none", "-", "--", ".", "nil", "n.a.", "missing", "unknown"}


def to_categorical(column: pd.Series[Any]) -> pd.Series[Any]:
    """Stripped strings as a categorical; different spellings of one name become one."""
    codes, values = pd.factorize(column)
    inner, categories = pd.factorize(np.array([_name(v) for v in values], dtype=object))
    levels = pd.Index(list(categories), dtype=object)
    return pd.Series(pd.Categorical.from_codes(np.append(inner, -1)[codes], levels), index=column.index)


def to_names(column: pd.Series[Any]) -> pd.Series[Any]:
    """Stripped strings, None where missing; 1.0 and 1 are the same name."""
    tidy = to_categorical(column)
    names = np.array([*tidy.cat.categories, None], dtype=object)
    return pd.Series(names[tidy.cat.codes.to_numpy()], index=column.index, dtype=object)


def _name(value: object) -> str | None:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # np.float64 is a float
        return str(int(value))
    name = str(value).strip()
    return None if name.lower() in MISSING else name


def to_number(names: pd.Series[Any]) -> pd.Series[float]:
    """Finite numbers, NaN where a name is none."""
    numbers = pd.to_numeric(names, errors="coerce").astype(np.float64)
    return numbers.where(np.isfinite(numbers))


def is_number(name: object) -> bool:
    """Whether a name reads as a finite number."""
    with contextlib.suppress(ValueError):
        return math.isfinite(float(str(name)))
    return False
