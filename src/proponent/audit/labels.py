"""Label errors, as the audit keeps them: one row per training row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from proponent.applications.label_errors import find_label_errors
from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]


def label_table(X: Any, y: Array, ids: Array, task: Any, seed: int, *, rounds: int = 2) -> pd.DataFrame:
    """at, probability (that the label is wrong), suggested, confidence, label_probability, flagged: a row per label.

    Args:
        X: (n, d) features.
        y: (n,) labels.
        ids: (n,) what the rows are called; folds follow them, not the rows' order.
        task: "classification" or "regression".
        seed: of the folds.
        rounds: refits with suspicious rows weighted down.
    """
    found = find_label_errors(Examples(X, ids, y), task=task, seed=seed, rounds=rounds)
    table = found.table
    if found.probabilities is None:
        own = np.full(len(table), np.nan)
        confidence = own
    else:
        own = found.probabilities[np.arange(len(y)), np.searchsorted(np.asarray(found.classes), y)]
        confidence = table["confidence"].to_numpy(dtype=float)
    return pd.DataFrame(
        {
            "at": np.arange(len(table)),
            "probability": table["wrong"].to_numpy(dtype=float),
            "suggested": table["suggested"].to_numpy(),
            "confidence": confidence,
            "label_probability": own,
            "flagged": table["flagged"].to_numpy(dtype=bool),
        }
    )
