"""How far each kind of finding can be believed, from what this audit measured."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from proponent.audit.model import Chosen
from proponent.audit.prepare import Data
from proponent.audit.result import Trust

Level = Literal["high", "medium", "low"]


def trust_in(
    data: Data, chosen: Chosen, labels: pd.DataFrame, issues: pd.DataFrame, checks: pd.DataFrame
) -> tuple[Trust, ...]:
    """A judgement, with its reason, for each kind of finding that occurs."""
    kinds = set(issues["kind"])
    out = []
    if "label_error" in kinds:
        flagged = labels[labels["flagged"].astype(bool)]
        level, checked = _checked(checks, "label errors")
        share = float(flagged["probability"].mean())
        expected = "Nearly all" if share > 0.97 else f"About {share:.0%}"
        out.append(Trust("label_error", level, f"{expected} of the flagged rows are expected to be wrong. {checked}"))
    if "harmful" in kinds:
        level, checked = _checked(checks, "harmful rows")
        why = f"Values are means over {len(data.queries):,} held-out rows, those flagged at least 3 standard errors below zero."
        out.append(Trust("harmful", level, f"{why} {checked}"))
    exact = f"Exact for {chosen.words}: leave-one-out by Newton steps, with bounds that contain what a refit gives."
    if "memorized" in kinds:
        out.append(Trust("memorized", "high", f"{exact} A memorized row may be right and rare as well as wrong."))
    if "influential" in kinds:
        out.append(Trust("influential", "high", f"{exact} Influence is not harm: look whether the row is real."))
    if "conflict" in kinds:
        why = "Equal or nearly equal rows with different labels cannot all be right, unless a column is missing."
        rate = float((issues["kind"] == "conflict").sum()) / len(data.train)
        often = f" Here {rate:.0%} of the training rows are contradicted, so a column that matters is probably missing."
        common = rate > 0.05
        out.append(Trust("conflict", "medium" if common else "high", why + often * common))
    for kind in ("duplicate", "near_duplicate"):
        if kind in kinds:
            rate = float((issues["kind"] == kind).sum()) / len(data.train)
            level_: Level = "medium" if rate > 0.05 else "high"
            out.append(Trust(kind, level_, f"{rate:.1%} of the training rows have one; {_norm(rate)}"))
    return tuple(out)


def _norm(rate: float) -> str:
    return "in this table repeats are common and mean little." if rate > 0.05 else "repeats are rare here."


def _checked(checks: pd.DataFrame, what: str) -> tuple[Level, str]:
    rows = checks[(checks["what"] == what) & (checks["action"] == "remove")] if len(checks) else checks
    if len(rows) == 0:
        return "medium", "Not checked by refitting."
    row = rows.iloc[0]
    if round(row["rows"]) < 1:
        return "medium", "Not checked by refitting: too few such rows in the parts that it works on."
    bounds = f"95 % interval {row['gain_lower']:+.2%} to {row['gain_upper']:+.2%}"
    interval = f"{row['gain']:+.2%} {row['metric']} against random removal ({bounds})"
    if row["gain_lower"] > 0:
        return "high", f"Removing such rows helped: {interval}."
    if row["gain_upper"] < 0:
        return "low", f"Removing such rows hurt: {interval}."
    return "medium", f"Removing such rows made no clear difference: {interval}."
