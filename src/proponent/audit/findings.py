"""From numbers per row to findings in words: each rule says what it flags, how severe it is, and why.

Severity runs from 0 to 1. Rules on numbers without a natural scale compare with the bulk of the rows: the median and
1.4826 × the median absolute deviation, which a few bad rows do not move.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from proponent.store.stages import Arrays

Array = np.ndarray[Any, np.dtype[Any]]

COLUMNS = ("at", "kind", "severity", "reason", "suggested", "partner")
HARMFUL, INFLUENTIAL = 6.0, 5.0  # deviations from the bulk
CERTAIN = 3.0  # standard errors over held-out rows
MEMORIZED = 0.25  # gain in the label's probability (Feldman & Zhang 2020 call 0.25 high)
MOST = 0.02  # share of rows that a rule without a natural scale may flag


def harmful(effects: Arrays, task: str) -> pd.DataFrame:
    """Rows whose value is negative beyond chance and far below the bulk."""
    value, stderr = effects["value"], effects["stderr"]
    below = np.zeros(len(value))
    below[value != 0] = -_deviations(value[value != 0])
    flagged = (below > HARMFUL) & (value < -CERTAIN * stderr)
    at = _most(flagged, below)
    what = "loss" if task == "classification" else "squared error"
    return _frame(
        at,
        "harmful",
        1.0 - HARMFUL / below[at] / 2,
        [
            f"Training on it raises the mean {what} on held-out rows, by {-value[i]:.2g} "
            f"({-value[i] / max(stderr[i], 1e-300):.0f} standard errors)."
            for i in at
        ],
    )


def influential(effects: Arrays) -> pd.DataFrame:
    """Rows that move held-out predictions far more than the bulk does, for better or worse."""
    size = effects["magnitude"]
    moving = size > 1e-12 * size.max(initial=0.0)  # rows off the margin of an SVM move nothing
    if not moving.any():
        return _frame(np.empty(0, dtype=int), "influential", np.empty(0), [])
    above = np.zeros(len(size))
    above[moving] = _deviations(np.log(size[moving]))
    at = _most(above > INFLUENTIAL, above)
    typical = float(np.median(size[moving]))
    return _frame(
        at,
        "influential",
        1.0 - INFLUENTIAL / above[at] / 2,
        [
            f"Held-out predictions move {size[i] / typical:.0f} times as much without it as without a typical row."
            for i in at
        ],
    )


def memorized(effects: Arrays, labels: Array, classes: tuple[str, ...]) -> pd.DataFrame:
    """Rows that the model gets right only because it was trained on them."""
    if not classes:
        return _memorized_numbers(effects, labels)
    gain = effects["probability_within"] - effects["probability"]
    codes = np.searchsorted(classes, labels)
    flipped = (effects["predicted_within"] == codes) & (effects["predicted"] != codes)
    at = np.flatnonzero((gain >= MEMORIZED) | (flipped & (gain >= 0.05)))
    at = at[np.argsort(-gain[at], kind="stable")]
    reasons = [
        f"Predicted {str(labels[i])!r} with probability {effects['probability_within'][i]:.0%} by the model trained on it, "
        f"{effects['probability'][i]:.0%} by the same model without it."
        for i in at
    ]
    return _frame(at, "memorized", np.clip(gain[at] / 0.5, 0.05, 1.0), reasons)


def _memorized_numbers(effects: Arrays, labels: Array) -> pd.DataFrame:
    off = labels - effects["predicted"]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(off == 0, 0.0, (effects["fitted"] - effects["predicted"]) / off)
    at = np.flatnonzero(share >= 0.5)
    at = at[np.argsort(-share[at], kind="stable")]
    reasons = [
        f"{share[i]:.0%} of the way from the others' prediction to its label is due to the row itself (leverage)."
        for i in at
    ]
    return _frame(at, "memorized", np.clip(share[at], 0.0, 1.0), reasons)


def mislabelled(found: pd.DataFrame, labels: Array, task: str) -> pd.DataFrame:
    """Flagged label errors, with the suggested label."""
    flagged = found[found["flagged"]].sort_values("probability", ascending=False, kind="stable")
    at = flagged["at"].to_numpy(dtype=int)
    reasons = []
    for i, suggested, p, confidence in zip(
        at, flagged["suggested"], flagged["probability"], flagged["confidence"], strict=True
    ):
        if task == "classification":
            reasons.append(
                f"Labelled {str(labels[i])!r}; models that never saw it say {str(suggested)!r} ({confidence:.0%})."
            )
        else:
            reasons.append(
                f"Labelled {labels[i]:.6g}; models that never saw it say {float(suggested):.6g} ({p:.0%} sure)."
            )
    frame = _frame(at, "label_error", flagged["probability"].to_numpy(dtype=float), reasons)
    return frame.assign(suggested=flagged["suggested"].astype(str).to_numpy())


def repeated(table: pd.DataFrame) -> pd.DataFrame:
    """Duplicates, near duplicates and conflicts."""
    return pd.DataFrame(
        {
            "at": table["row"].to_numpy(dtype=int),
            "kind": table["kind"].to_numpy(),
            "severity": table["severity"].to_numpy(dtype=float),
            "reason": table["reason"].to_numpy(),
            "suggested": "",
            "partner": [int(p.split()[0]) if p else -1 for p in table["partners"].astype(str)],
        }
    )


def _deviations(values: Array) -> Array:
    if len(values) == 0:
        return values
    centre = np.median(values)
    scale = 1.4826 * np.median(np.abs(values - centre))
    return np.asarray((values - centre) / max(scale, 1e-300))


def _most(flagged: Array, excess: Array) -> Array:
    at = np.flatnonzero(flagged)
    return at[np.argsort(-excess[at], kind="stable")][: max(1, int(MOST * len(excess)))]


def _frame(at: Array, kind: str, severity: Array, reasons: list[str]) -> pd.DataFrame:
    columns = {
        "at": at.astype(int),
        "kind": kind,
        "severity": np.asarray(severity, float),
        "reason": reasons,
        "suggested": "",
        "partner": -1,
    }
    return pd.DataFrame(columns, columns=list(COLUMNS))
