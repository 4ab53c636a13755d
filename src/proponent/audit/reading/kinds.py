"""From columns as they stand in a file to kinds: number, category, date, text, identifier, constant or empty."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from proponent.audit.reading.words import MISSING_NUMBER, PADDED, to_categorical, to_number

Array = np.ndarray[Any, np.dtype[Any]]

DATE_FORMATS = (
    "ISO8601",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y",
    "%Y/%m/%d",
    "%d-%m-%Y",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M",
    "%d.%m.%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%d %b %Y",
    "%d-%b-%Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d %B %Y",
)
DATE_SHAPE = re.compile(
    r"^\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|^\d{4}-\d{2}|^\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{4}|^[A-Za-z]{3,9} \d{1,2}, \d{4}"
)
CODE_SHAPE = re.compile(r"^[A-Za-z]{1,3}[-.]?\d+(\.\d+)?$")
ID_NAME = re.compile(r"(?i:(^|[_\W])(id|ids|nbr|uuid|guid|key|index|idx|rowid|unnamed: \d+)$)|[a-z]I[dD]$")
CODED_NAME = re.compile(r"(?i:(^|[_\W])(id|code|type|category|class|zone|zip|zipcode)$)|[a-z](Id|ID|Code|Type)$")


def typed(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str], tuple[str, ...]]:
    """Columns brought to their kinds, without those that say nothing."""
    tidy = {str(name): _tidy(column) for name, column in frame.items()}
    kinds: dict[str, str] = {}
    formats: dict[str, str] = {}
    notes: list[str] = []
    for name, column in tidy.items():
        kinds[name], date_format, note = _kind(name, column)
        formats |= {name: date_format} if date_format else {}
        notes += [note] if note else []
    for kind, why in (("empty", "no value"), ("constant", "the same value in every row")):
        silent = [repr(name) for name, k in kinds.items() if k == kind]
        if silent:
            columns = "Column" if len(silent) == 1 else "Columns"
            notes.append(f"{columns} with {why}, left out: {', '.join(silent)}.")
    used = {name: kind for name, kind in kinds.items() if kind not in ("empty", "constant")}
    result, more = converted(pd.DataFrame(tidy, index=frame.index), used, formats)
    return result, kinds, formats, (*notes, *more)


def converted(
    frame: pd.DataFrame, kinds: Mapping[str, str], formats: Mapping[str, str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Columns brought to kinds that are known, dates by known formats, and notes on what could not be read."""
    columns, notes = {}, []
    for name, kind in kinds.items():
        columns[name], note = _as_kind(name, _tidy(frame[name]), kind, formats.get(name))
        notes += [note] if note else []
    return pd.DataFrame(columns, index=frame.index), tuple(notes)


def _tidy(column: pd.Series[Any]) -> pd.Series[Any]:
    """float64, datetime64 without a time zone, or categorical of stripped strings."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return cast("pd.Series[Any]", column.dt.tz_convert("UTC").dt.tz_localize(None))
    if pd.api.types.is_datetime64_any_dtype(column):
        return column
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return to_categorical(column)
    return column.astype(np.float64)


def _kind(name: str, column: pd.Series[Any]) -> tuple[str, str | None, str | None]:
    """The kind of a tidy column, the format of its dates, and a note where values of different types are mixed."""
    if pd.api.types.is_float_dtype(column):
        column = column.where(np.isfinite(column))
    distinct, present = column.nunique(), int(column.notna().sum())
    if present == 0:
        return "empty", None, None
    if distinct == 1 and present == len(column):
        return "constant", None, None
    if pd.api.types.is_datetime64_any_dtype(column):
        return "date", None, None
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return _number_kind(name, column), None, None
    values = pd.Series(column.cat.categories, dtype=object)
    counts = np.bincount(column.cat.codes[column.cat.codes >= 0], minlength=len(values))
    as_number, note = _reads_as_number(name, values, counts)
    if as_number:
        return _number_kind(name, _map_levels(column, to_number(values))), None, None
    date_format, ambiguous = _date_format(name, values)
    if date_format:
        return "date", date_format, ambiguous
    return _word_kind(name, values, counts), None, note


def _number_kind(name: str, numbers: pd.Series[float]) -> str:
    values = numbers[np.isfinite(numbers)]
    distinct, whole = values.nunique(), (values % 1 == 0).all()
    counted = whole and distinct == len(numbers) >= 20 and values.max() - values.min() + 1 == distinct
    if counted or (whole and ID_NAME.search(name) and distinct > max(50, len(values) / 2)):
        return "identifier"
    return "category" if whole and CODED_NAME.search(name) and distinct <= 50 else "number"


def _reads_as_number(name: str, values: pd.Series[Any], counts: Array) -> tuple[bool, str | None]:
    """Whether words are numbers with few exceptions; codes such as V57 among 250 and 007 are not."""
    if values.str.match(PADDED).mean() > 0.05:
        return False, None
    silent = values.str.lower().isin(MISSING_NUMBER).to_numpy()
    words = pd.to_numeric(values, errors="coerce").isna().to_numpy() & ~silent
    total, odd = counts[~silent].sum(), counts[words].sum()
    if total == 0 or odd == total:
        return False, None
    coded = words.any() and values[words].str.match(CODE_SHAPE).mean() > 0.5
    if odd <= 0.05 * total and not coded:
        return True, None
    if odd > 0.5 * total:
        return False, None
    shown = ", ".join(map(repr, values[words][:3]))
    return False, f"Column {name!r} mixes numbers with {odd} words such as {shown} and was taken as a category."


def _word_kind(name: str, values: pd.Series[Any], counts: Array) -> str:
    n, distinct = int(counts.sum()), len(values)
    words = float(np.asarray(values.str.count(r"\S+"), dtype=np.float64) @ counts) / n
    if (words >= 3 and distinct >= 0.3 * n) or (words >= 5 and distinct > 100):
        return "text"
    if (n >= 20 and distinct >= 0.95 * n) or (ID_NAME.search(name) and distinct > max(50, n / 2)):
        return "identifier"
    return "category"


def _date_format(name: str, values: pd.Series[Any]) -> tuple[str | None, str | None]:
    """The first format that reads 95 % of the values; a note where day and month could be exchanged."""
    if values.head(50).str.match(DATE_SHAPE).mean() < 0.9:
        return None, None
    reads = [f for f in DATE_FORMATS if _to_date(values.head(500), f).notna().mean() >= 0.95]
    reads = [f for f in reads if len(values) <= 500 or _to_date(values, f).notna().mean() >= 0.95]
    exchanged = len({f[:5] for f in reads} & {"%m/%d", "%d/%m"}) == 2
    note = f"Dates in {name!r} could be month/day or day/month; they were read as month/day." if exchanged else None
    return (reads[0] if reads else None), note


def _to_date(values: pd.Series[Any], date_format: str) -> pd.Series[Any]:
    dates = pd.to_datetime(values, format=date_format, errors="coerce", utc=True)
    return cast("pd.Series[Any]", dates.dt.tz_localize(None))


def _map_levels(column: pd.Series[Any], values: pd.Series[Any]) -> pd.Series[Any]:
    """A categorical with each level replaced by its value."""
    absent = values.iloc[:0].reindex([0])
    looked_up = pd.concat([values, absent]).to_numpy() if len(values) else absent.to_numpy()
    return pd.Series(looked_up[column.cat.codes.to_numpy()], index=column.index)


def _as_kind(
    name: str, column: pd.Series[Any], kind: str, date_format: str | None
) -> tuple[pd.Series[Any], str | None]:
    """A tidy column as its kind; a note counts the values that could not be read so."""
    words = isinstance(column.dtype, pd.CategoricalDtype)
    dated = pd.api.types.is_datetime64_any_dtype(column)
    levels = pd.Series(column.cat.categories if words else [], dtype=object)
    if kind == "date":
        absent = pd.Series(pd.NaT, index=column.index)
        read = _map_levels(column, _to_date(levels, date_format or "ISO8601")) if words else column if dated else absent
        return read, _unread(name, column, read, "dates")
    if kind == "number":
        absent = pd.Series(np.nan, index=column.index)
        read = (
            _map_levels(column, to_number(levels)) if words else absent if dated else column.where(np.isfinite(column))
        )
        return read, _unread(name, column, read, "finite numbers")
    names = column if words else to_categorical(column)
    if kind == "text":
        levels = pd.Series(names.cat.categories, dtype=object)
        return _map_levels(names, levels).fillna("").astype(object), None
    return names, None


def _unread(name: str, column: pd.Series[Any], result: pd.Series[Any], wanted: str) -> str | None:
    lost = column[column.notna() & result.isna()]
    if isinstance(column.dtype, pd.CategoricalDtype):
        lost = lost[~lost.astype(object).str.lower().isin(MISSING_NUMBER)]
    if lost.empty:
        return None
    shown = ", ".join(repr(str(v)) for v in lost.unique()[:3])
    values = "1 value" if len(lost) == 1 else f"{len(lost)} values"
    return f"{values} of column {name!r} that are not {wanted}, such as {shown}, were taken as missing."
