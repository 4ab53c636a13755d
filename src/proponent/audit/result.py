"""What an audit finds: the one value that the terminal summary, the tables and the report are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from proponent.examples import Description


@dataclass(frozen=True)
class Neighbour:
    """A training row standing behind a prediction: a proponent (score > 0) or an opponent (score < 0)."""

    row: str
    label: str
    score: float
    lower: float
    upper: float
    shown: Description


@dataclass(frozen=True)
class Explained:
    """One held-out prediction with the training rows for and against it, strongest first."""

    query: str
    label: str
    predicted: str
    probability: float | None
    shown: Description
    proponents: tuple[Neighbour, ...]
    opponents: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Trust:
    """How far a kind of finding can be believed, in words, with the measurement behind the words."""

    kind: str
    level: Literal["high", "medium", "low"]
    because: str


@dataclass(frozen=True)
class Audit:
    """A finished audit.

    Args:
        title: the audited file's name.
        command: the exact shell command that repeats this audit.
        task: "classification" or "regression".
        label: the label column; `classes` in the model's order, empty for regression.
        model: the analysed model, in words.
        n_train, n_heldout: rows trained on, rows measured on; `heldout` says where those came from.
        metrics: name → value on the held-out rows, e.g. {"accuracy": .85, "log loss": .32}; `curve` is of the first.
        columns: one row per column of the table: column, kind, distinct, missing (fraction), used_as.
        issues: row, kind, severity (0–1, high = bad), reason, suggested, and evidence columns; worst first.
            kinds: label_error, harmful, memorized, duplicate, near_duplicate, conflict, influential, slice.
            An evidence column `other` names the row that this one repeats or contradicts; the report shows both.
        values: one row per training row: row, label, value, value_lower, value_upper, knn_shapley, self_influence,
            label_probability (out of sample). value > 0: the row helps the held-out measurement.
        groups: per group: group, rows, value, value_per_row; None without --group.
        slices: column, value, n_train, n_heldout, effect, effect_lower, effect_upper, reason: what removing the slice's
            training rows does to the matching held-out rows' mean loss (effect < 0: the slice misleads).
        checks: action ("remove"/"relabel"), what, rows, metric, before, after, change, change_lower, change_upper,
            random_change, random_lower, random_upper, gain, gain_lower, gain_upper, splits. change = after − before,
            gain = change − random_change, intervals of 95 %. The first row is the one told in the headline.
        curve: fraction removed, flagged, flagged_lower, flagged_upper, random, random_lower, random_upper (held-out metric).
        explained: held-out predictions with their proponents and opponents.
        shown: training row id → how to show it, for the rows that the report names.
        trust: how far to trust each kind of finding.
        skipped: (check, reason) for what could not be run.
        warnings: what should be known about the data or the model, in words.
        seconds: stage → seconds.
        versions: package → version that the audit ran with.
    """

    title: str
    command: str
    task: Literal["classification", "regression"]
    label: str
    classes: tuple[str, ...]
    model: str
    n_train: int
    n_heldout: int
    heldout: str
    metrics: dict[str, float]
    columns: pd.DataFrame
    issues: pd.DataFrame
    values: pd.DataFrame
    groups: pd.DataFrame | None
    slices: pd.DataFrame
    checks: pd.DataFrame
    curve: pd.DataFrame
    explained: tuple[Explained, ...]
    shown: dict[str, Description]
    trust: tuple[Trust, ...]
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)
