"""Data sets for the benchmarks: the files of PROPONENT_DATA, encoded as the audit encodes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from proponent.audit.encode import encode
from proponent.audit.read import read_table

FILES = {
    "adult": ("tabular/adult/adult-train.csv", "income"),
    "spambase": ("tabular/spambase/spambase.csv", None),
    "sms-spam": ("text/sms-spam/sms-spam.csv", "label"),
}


def root() -> Path:
    """Where the data sets are."""
    return Path(os.environ.get("PROPONENT_DATA", Path(__file__).parents[2] / "shared" / "data"))


def load(name: str, rows: int | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Features (n, d) and class codes (n,) of "adult", "spambase", "sms-spam" or "digits".

    Args:
        rows: as many, the first of a seeded shuffle; all where None.
    """
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        return StandardScaler().fit_transform(X), y
    file, label = FILES[name]
    path = root() / file
    if label is None:  # the label is the last column
        with path.open() as lines:
            label = lines.readline().strip().split(",")[-1].strip('"')
    table = read_table(path, label=label)
    X, y = encode(table).matrix, np.unique(table.labels, return_inverse=True)[1]
    if rows is None or rows >= len(y):
        return X, y
    chosen = np.random.default_rng(seed).permutation(len(y))[:rows]
    return X[chosen], y[chosen]
