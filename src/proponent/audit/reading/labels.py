"""Labels and their task, ids, and which rows can be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from proponent.audit.reading.table import Table, Task
from proponent.audit.reading.words import is_number, to_names, to_number
from proponent.errors import InputError, did_you_mean

Array = np.ndarray[Any, np.dtype[Any]]


def read_labels(column: pd.Series[Any], name: str, task: Task | None) -> tuple[pd.Series[Any], Task, tuple[str, ...]]:
    """Labels with None or NaN where missing, and the task they make."""
    names = to_names(column)
    numbers = to_number(names)
    present = names.notna()
    if not present.any():
        raise InputError(f"no value in the label column {name!r}", "a label in most rows", "name another column")
    numeric = numbers.notna().sum() >= 0.95 * present.sum()
    found = task or ("regression" if numeric and _looks_continuous(numbers.dropna()) else "classification")
    notes = []
    if found == "regression":
        if not numeric:
            words = names[present & numbers.isna()].unique()[:3].tolist()
            raise InputError(
                f"labels such as {words} in {name!r}", "numbers for regression", 'use task="classification"'
            )
        distinct = numbers.nunique()
        if task is None and distinct <= 100 and (numbers.dropna() % 1 == 0).all():
            notes.append(
                f"The label {name!r} holds {distinct} different whole numbers and was taken as a quantity; "
                'pass task="classification" if they are classes.'
            )
        return numbers, "regression", tuple(notes)
    check_classes(names, name)
    return names, "classification", ()


def _looks_continuous(numbers: pd.Series[float]) -> bool:
    """Many different numbers; whole numbers that each come ten times or more are codes of classes."""
    counts = numbers.value_counts()
    if len(counts) <= 20:
        return False
    coded = (numbers % 1 == 0).all() and len(counts) <= 100 and counts.min() >= 10
    return not coded


def check_classes(names: pd.Series[Any], label: str) -> None:
    """Refuse a single class, and labels that are hardly ever the same."""
    distinct, n = names.nunique(), int(names.notna().sum())
    if distinct == 1:
        raise InputError(
            f"one class only, {names.dropna().iloc[0]!r}, in the label column {label!r}",
            "at least two classes",
            "name another label column or add rows of other classes",
        )
    if distinct > 200 or distinct > n / 2:
        raise InputError(
            f"{distinct} classes in {n} rows of the label column {label!r}",
            "at most 200 classes, and several rows in each",
            'name another label column, or pass task="regression" if the label is a quantity',
        )


def usable_rows(labels: pd.Series[Any], ids: Array, task: Task, label: str) -> tuple[Array, tuple[str, ...]]:
    """Rows with a label, in classes of two rows or more."""
    kept = labels.notna().to_numpy()
    notes = [_aside(ids[~kept], f"without a usable label in {label!r}")] if not kept.all() else []
    if task == "classification":
        counts = labels.value_counts()
        single = labels.isin(counts.index[counts == 1]).to_numpy()
        if single.any():
            lone = ", ".join(repr(c) for c in sorted(labels[single])[:5])
            notes.append(_aside(ids[single], f"whose class has no other row ({lone})"))
            kept = kept & ~single
        few = {c: int(k) for c, k in counts.items() if 1 < k < 5}
        if few:
            shown = ", ".join(f"{c!r} ({k} rows)" for c, k in list(few.items())[:5])
            notes.append(f"Classes with fewer than 5 rows can hardly be learned or judged: {shown}.")
        if labels[kept].nunique() < 2:
            raise InputError(
                f"one class only, with two rows or more, in the label column {label!r}",
                "at least two classes of two rows or more",
                "name another label column or add rows",
            )
    if not kept.any():
        raise InputError(f"no row with a usable label in {label!r}", "rows with labels", "name another label column")
    return kept, tuple(notes)


def labels_like(column: pd.Series[Any], table: Table, ids: Array) -> tuple[pd.Series[Any], tuple[str, ...]]:
    """Labels of another file in this table's classes; None where they have no counterpart."""
    names = to_names(column)
    if table.task == "regression":
        numbers = to_number(names)
        bare = numbers.isna().to_numpy()
        return numbers, (_aside(ids[bare], f"without a usable label in {table.label!r}"),) if bare.any() else ()
    trimmed = names.map(lambda v: v.rstrip(". \t"), na_action="ignore").astype(object)
    renamed = names.notna() & ~names.isin(table.classes) & trimmed.isin(table.classes)
    result = names.where(~renamed, trimmed)
    unknown = (result.notna() & ~result.isin(table.classes)).to_numpy()
    bare = names.isna().to_numpy()
    notes = []
    if renamed.any():
        example = names[renamed].iloc[0]
        notes.append(f"{int(renamed.sum())} labels ending in '.' were read without it, such as {example!r}.")
    if bare.any():
        notes.append(_aside(ids[bare], f"without a label in {table.label!r}"))
    if unknown.any():
        classes = sorted(result[unknown].unique())
        hint = did_you_mean(classes[0], table.classes)
        shown = ", ".join(map(repr, classes[:5]))
        notes.append(_aside(ids[unknown], f"with classes that {table.name} does not have ({shown}; {hint})"))
    return result.where(~unknown, None), tuple(notes)


def label_array(labels: pd.Series[Any], task: Task) -> Array:
    """float64 for regression, str for classification."""
    return labels.to_numpy(dtype=np.float64) if task == "regression" else labels.to_numpy().astype(str)


def read_ids(frame: pd.DataFrame, id: str | None) -> tuple[Array, tuple[str, ...]]:
    """What rows are called: by the id column, or by their positions."""
    if id is None:
        return np.asarray(frame.index).astype(str), ()
    names = to_names(frame[id])
    bare = names.isna()
    notes = (
        f"{int(bare.sum())} rows have no value in the id column {id!r}; they are called 'row 17' by their position.",
    )
    filled = names.where(~bare, "row " + frame.index.astype(str).to_series(index=frame.index).astype(object))
    repeated = filled[filled.duplicated()].unique()
    if len(repeated):
        raise InputError(
            f"{len(repeated)} repeated ids in the column {id!r}, such as {', '.join(map(repr, repeated[:5]))}",
            "one id per row",
            "remove the repeated rows, name another id column, or leave --id out to count rows from 0",
        )
    return filled.to_numpy().astype(str), notes if bare.any() else ()


def _aside(ids: Array, why: str) -> str:
    rows = "1 row" if len(ids) == 1 else f"{len(ids)} rows"
    more = ", …" if len(ids) > 5 else ""
    return f"{rows} {why} {'was' if len(ids) == 1 else 'were'} set aside: {', '.join(ids[:5])}{more}."


def check_columns(frame: pd.DataFrame, name: str, **wanted: str | None) -> None:
    """Refuse a role's column that is absent, naming columns like it."""
    for role, column in wanted.items():
        if column is not None and column not in frame.columns:
            bare = all(is_number(c) for c in frame.columns)
            headless = "; the first line holds numbers only: add a line with the columns' names" if bare else ""
            raise InputError(
                f"no {role} column {column!r} in {name}",
                "a column of that name",
                did_you_mean(column, frame.columns) + headless,
            )
