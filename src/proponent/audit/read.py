"""From a file to typed columns: CSV, TSV, Parquet, JSON lines, compressed or not, or a folder of images."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import math
import os
import re
import warnings as python_warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import pandas as pd

from proponent.audit import images
from proponent.errors import InputError, MissingExtra, did_you_mean
from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]
Task = Literal["classification", "regression"]

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "#n/a", "#na", "<na>", "-nan", "nat"})
MISSING_NUMBER = MISSING | {"none", "-", "--", ".", "nil", "n.a.", "missing", "unknown"}
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
PADDED = re.compile(r"[-+]?0\d")
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".txt", ".data", ".jsonl", ".ndjson"})
HEAD_BYTES = 2_000_000
CHUNK_ROWS = 50_000
EXPECTED_PEAK = 6.0  # memory to read and encode, in sizes of the parsed table: 5.3 and 5.8 were measured
SNIFFED_RECORDS = 20_000


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


@dataclass(frozen=True)
class _File:
    """How to read one text file."""

    path: Path
    member: str | None = None
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    names: tuple[str, ...] = ()
    as_text: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Want:
    """What to read: columns to keep as text, how many rows, drawn with which seed, in how many bytes of memory."""

    names: tuple[str, ...] = ()
    rows: int | None = None
    seed: int = 0
    limit: float = float("inf")


@dataclass(frozen=True)
class _Raw:
    """Columns as they stand in the file; the index counts the file's rows from 0."""

    frame: pd.DataFrame
    total: int
    notes: tuple[str, ...]


def read_table(
    path: str | os.PathLike[str],
    *,
    label: str,
    group: str | None = None,
    id: str | None = None,
    task: Task | None = None,
    rows: int | None = None,
    seed: int = 0,
    max_memory: float | None = None,
) -> Table:
    """A file as a table whose columns have kinds and whose rows have ids and labels.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "people.csv")
    ...     _ = file.write_text("age,job,paid\\n31,cook,yes\\n?,nurse,no\\n54,cook,no\\n47,nurse,yes\\n")
    ...     table = read_table(file, label="paid")
    >>> dict(table.kinds), table.classes, table.task
    ({'age': 'number', 'job': 'category'}, ('no', 'yes'), 'classification')

    Args:
        path: CSV, TSV (the delimiter is found: comma, tab, semicolon, bar), Parquet or JSON lines; text may be
            compressed (.gz, .xz, .bz2, .zip); or a folder with one sub-folder of images per class.
        label: the column to predict; for images any name.
        group: a column naming each row's source or person; it is not used as a feature.
        id: a column naming each row, unique; by default rows are counted from 0.
        task: "classification" or "regression"; found from the label where None.
        rows: read a uniform random subset of this many rows, streaming; all where None.
        seed: of that subset.
        max_memory: bytes the table may need; what the machine has available where None.

    Raises:
        InputError: the file or a column is absent, unreadable, too large or cannot be learned from.
        MissingExtra: Parquet or images without the package that reads them.
    """
    path = _existing(Path(path))
    if task not in (None, "classification", "regression"):
        raise InputError(f"task={task!r}", "'classification' or 'regression'", "leave task out to have it found")
    if rows is not None and rows < 1:
        raise InputError(f"rows={rows}", "a positive number of rows", "leave rows out to read all")
    names = tuple(name for name in (label, group, id) if name is not None)
    want = _Want(names, rows, seed, _available() if max_memory is None else max_memory)
    if path.is_dir():
        return _image_table(path, label, want)
    raw = _read_raw(path, want)
    _check_columns(raw.frame, path.name, label=label, group=group, id=id)
    labels, found, notes = _labels(raw.frame[label], label, task)
    ids, id_notes = _ids(raw.frame, id)
    kept, row_notes = _usable_rows(labels, ids, found, label)
    frame, kinds, formats, column_notes = _typed(raw.frame.drop(columns=list(set(names)))[kept])
    if frame.shape[1] == 0:
        raise InputError(f"no usable column beside {label!r}", "at least one feature column", "add columns that vary")
    labels = labels[kept]
    return Table(
        name=path.name,
        frame=frame.reset_index(drop=True),
        kinds=kinds,
        labels=_label_array(labels, found),
        task=found,
        classes=tuple(sorted(set(labels))) if found == "classification" else (),
        ids=ids[kept],
        rows=np.asarray(frame.index),
        total=raw.total,
        label=label,
        id=id,
        group=group,
        groups=None if group is None else _names(raw.frame[group])[kept].fillna("(missing)").to_numpy().astype(str),
        warnings=(*raw.notes, *notes, *id_notes, *row_notes, *column_notes),
        date_formats=formats,
    )


def read_like(path: str | os.PathLike[str], table: Table, *, max_memory: float | None = None) -> Table:
    """Another file with a table's columns, kinds and classes, such as held-out rows.

    Args:
        path: as for `read_table`.
        table: what `read_table` gave.
        max_memory: as for `read_table`.

    Raises:
        InputError: a column of `table` is absent, or no row is usable.
    """
    path = _existing(Path(path))
    if table.pixels is not None:
        return _image_table(path, table.label, _Want(), like=table)
    names = tuple(name for name in (table.label, table.group, table.id) if name is not None)
    raw = _read_raw(path, _Want(names, limit=_available() if max_memory is None else max_memory))
    id = table.id if table.id in raw.frame.columns else None
    group = table.group if table.group in raw.frame.columns else None
    _check_columns(raw.frame, path.name, label=table.label)
    for column in table.frame.columns:
        _check_columns(raw.frame, path.name, feature=column)
    ids, id_notes = _ids(raw.frame, id)
    labels, notes = _labels_like(raw.frame[table.label], table, ids)
    kept = labels.notna().to_numpy()
    if not kept.any():
        raise InputError(
            f"no row of {path.name} with a usable label", f"labels like those of {table.name}", "check the label column"
        )
    frame, column_notes = _converted(
        raw.frame[kept], {c: table.kinds[c] for c in table.frame.columns}, table.date_formats
    )
    return replace(
        table,
        name=path.name,
        frame=frame.reset_index(drop=True),
        labels=_label_array(labels[kept], table.task),
        ids=ids[kept],
        rows=np.asarray(frame.index),
        total=raw.total,
        id=id,
        group=group,
        groups=None if group is None else _names(raw.frame[group])[kept].fillna("(missing)").to_numpy().astype(str),
        warnings=(*raw.notes, *id_notes, *notes, *column_notes),
    )


# Labels, ids and rows ------------------------------------------------------------------------------------------------


def _labels(column: pd.Series[Any], name: str, task: Task | None) -> tuple[pd.Series[Any], Task, tuple[str, ...]]:
    """Labels with None or NaN where missing, and the task they make."""
    names = _names(column)
    numbers = _to_number(names)
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
    _check_classes(names, name)
    return names, "classification", ()


def _looks_continuous(numbers: pd.Series[float]) -> bool:
    """Many different numbers; whole numbers that each come ten times or more are codes of classes."""
    counts = numbers.value_counts()
    if len(counts) <= 20:
        return False
    coded = (numbers % 1 == 0).all() and len(counts) <= 100 and counts.min() >= 10
    return not coded


def _check_classes(names: pd.Series[Any], label: str) -> None:
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


def _usable_rows(labels: pd.Series[Any], ids: Array, task: Task, label: str) -> tuple[Array, tuple[str, ...]]:
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


def _labels_like(column: pd.Series[Any], table: Table, ids: Array) -> tuple[pd.Series[Any], tuple[str, ...]]:
    """Labels of another file in this table's classes; None where they have no counterpart."""
    names = _names(column)
    if table.task == "regression":
        numbers = _to_number(names)
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


def _label_array(labels: pd.Series[Any], task: Task) -> Array:
    return labels.to_numpy(dtype=np.float64) if task == "regression" else labels.to_numpy().astype(str)


def _ids(frame: pd.DataFrame, id: str | None) -> tuple[Array, tuple[str, ...]]:
    if id is None:
        return np.asarray(frame.index).astype(str), ()
    names = _names(frame[id])
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


def _check_columns(frame: pd.DataFrame, name: str, **wanted: str | None) -> None:
    for role, column in wanted.items():
        if column is not None and column not in frame.columns:
            bare = all(_is_number(c) for c in frame.columns)
            headless = "; the first line holds numbers only: add a line with the columns' names" if bare else ""
            raise InputError(
                f"no {role} column {column!r} in {name}",
                "a column of that name",
                did_you_mean(column, frame.columns) + headless,
            )


# Kinds of columns ----------------------------------------------------------------------------------------------------


def _typed(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str], tuple[str, ...]]:
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
    result, more = _converted(pd.DataFrame(tidy, index=frame.index), used, formats)
    return result, kinds, formats, (*notes, *more)


def _converted(
    frame: pd.DataFrame, kinds: Mapping[str, str], formats: Mapping[str, str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
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
        return _categorical(column)
    return column.astype(np.float64)


def _categorical(column: pd.Series[Any]) -> pd.Series[Any]:
    """Stripped strings as a categorical; different spellings of one name become one."""
    codes, values = pd.factorize(column)
    inner, categories = pd.factorize(np.array([_name(v) for v in values], dtype=object))
    levels = pd.Index(list(categories), dtype=object)
    return pd.Series(pd.Categorical.from_codes(np.append(inner, -1)[codes], levels), index=column.index)


def _names(column: pd.Series[Any]) -> pd.Series[Any]:
    """Stripped strings, None where missing; 1.0 and 1 are the same name."""
    tidy = _categorical(column)
    names = np.array([*tidy.cat.categories, None], dtype=object)
    return pd.Series(names[tidy.cat.codes.to_numpy()], index=column.index, dtype=object)


def _name(value: object) -> str | None:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # np.float64 is a float
        return str(int(value))
    name = str(value).strip()
    return None if name.lower() in MISSING else name


def _to_number(names: pd.Series[Any]) -> pd.Series[float]:
    numbers = pd.to_numeric(names, errors="coerce").astype(np.float64)
    return numbers.where(np.isfinite(numbers))


def _is_number(name: object) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(str(name)))
    return False


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
        return _number_kind(name, _map_levels(column, _to_number(values))), None, None
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
            _map_levels(column, _to_number(levels)) if words else absent if dated else column.where(np.isfinite(column))
        )
        return read, _unread(name, column, read, "finite numbers")
    names = column if words else _categorical(column)
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


# Files ---------------------------------------------------------------------------------------------------------------


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings) if siblings else "check the folder's name"
    raise InputError(f"no file {str(path)!r}", "a table or a folder of images", hint)


def _read_raw(path: Path, want: _Want) -> _Raw:
    suffixes = {s.lower() for s in path.suffixes}
    if path.stat().st_size == 0:
        raise InputError(f"the empty file {path.name}", "a table with a header line", "check how it was written")
    if suffixes & {".xlsx", ".xls", ".ods"}:
        raise InputError(f"the spreadsheet {path.name}", "CSV, TSV, Parquet or JSON lines", "save the sheet as CSV")
    try:
        raw = _read_parquet(path, want) if suffixes & {".parquet", ".pq"} else _read_text(path, want)
    except (OSError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        got = f"the damaged or unreadable file {path.name} ({error})"
        raise InputError(got, "a whole file that may be read", "download or write it again") from error
    raw.frame.columns = raw.frame.columns.map(str)
    if raw.frame.empty:
        raise InputError(f"{path.name} without a row below its header", "a table with rows", "check how it was written")
    return raw


def _read_text(path: Path, want: _Want) -> _Raw:
    member, notes = _choose_member(path)
    file = _File(path, member)
    head, size = _head(file)
    if not head.strip():
        raise InputError(f"the empty file {path.name}", "a table with a header line", "check how it was written")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        file = replace(file, encoding="utf-16")
    elif b"\0" in head:
        raise InputError(f"the binary file {path.name}", "a text table, Parquet or images", "export it as CSV")
    json_lines = {".jsonl", ".ndjson"} & {s.lower() for s in Path(member or path.name).suffixes}
    load = _load_json if json_lines else _load_csv
    try:
        return load(file, head, size, want, notes)
    except UnicodeDecodeError:
        notes = (*notes, f"{path.name} is not UTF-8; it was read as Windows-1252, so check accented letters.")
        return load(replace(file, encoding="cp1252"), head, size, want, notes)


def _choose_member(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """The table in a zip archive: the largest file with a table's suffix."""
    if path.suffix.lower() != ".zip":
        return None, ()
    with zipfile.ZipFile(path) as archive:
        found = {
            i.filename: i.file_size for i in archive.infolist() if Path(i.filename).suffix.lower() in TABLE_SUFFIXES
        }
    found = {name: size for name, size in found.items() if not name.startswith("__MACOSX")}
    if not found:
        raise InputError(
            f"{path.name} without a table inside", "an archive holding one CSV", "unpack it and pass a file"
        )
    chosen = max(found, key=lambda name: (found[name], name))
    others = ", ".join(sorted(set(found) - {chosen})[:5])
    return chosen, (f"{path.name} holds several tables; {chosen} was read, not {others}.",) if others else ()


@contextlib.contextmanager
def _opened(file: _File) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The bytes of a file, decompressed, and the file on disk beneath them."""
    openers: dict[str, Callable[[IO[bytes]], Any]] = {
        ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
        ".xz": lzma.LZMAFile,
        ".bz2": bz2.BZ2File,
    }
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(file.path, "rb"))
        if file.member is not None:
            archive = stack.enter_context(zipfile.ZipFile(raw))
            yield stack.enter_context(archive.open(file.member)), raw
        else:
            opener = openers.get(file.path.suffix.lower())
            yield (stack.enter_context(opener(raw)) if opener else raw), raw


def _head(file: _File) -> tuple[bytes, float]:
    """The first bytes of the text, and how many bytes of text there are (an estimate where compressed)."""
    with _opened(file) as (stream, raw):
        head = stream.read(HEAD_BYTES)
        if len(head) < HEAD_BYTES:
            return head, float(len(head))
        if file.member is not None:
            with zipfile.ZipFile(file.path) as archive:
                return head, float(archive.getinfo(file.member).file_size)
        return head, file.path.stat().st_size * len(head) / raw.tell()


def _load_csv(file: _File, head: bytes, size: float, want: _Want, notes: tuple[str, ...]) -> _Raw:
    file, more = _sniff(file, head, want)
    notes = (*notes, *more)
    try:
        with _opened(file) as (stream, _), python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore", pd.errors.ParserWarning)  # delimiters at every line's end
            if want.rows is not None:
                chunks = pd.read_csv(stream, **_options(file) | {"dtype": str}, chunksize=CHUNK_ROWS)
                return _draw(chunks, want, notes)
            if len(head) >= HEAD_BYTES:
                start = pd.read_csv(io.BytesIO(head), **_options(file), nrows=head.count(b"\n") // 2)
                _refuse_too_large(file.path.name, start, size / (len(head) / 2), want.limit)
            frame = pd.read_csv(stream, **_options(file), low_memory=False)
    except pd.errors.EmptyDataError:
        raise InputError(f"the empty file {file.path.name}", "a table with a header line", "check the file") from None
    except pd.errors.ParserError as error:
        raise _ragged(file.path.name, str(error)) from error
    return _Raw(frame, len(frame), notes)


def _options(file: _File) -> dict[str, Any]:
    spellings = {m for token in MISSING for m in (token, token.upper(), token.title(), token.replace("nan", "NaN"))}
    return {
        "sep": file.delimiter,
        "names": list(file.names),
        "header": 0,
        "index_col": False,
        "encoding": file.encoding,
        "encoding_errors": "replace" if file.encoding == "cp1252" else "strict",
        "skipinitialspace": True,
        "keep_default_na": False,
        "na_values": sorted(spellings),
        "dtype": dict.fromkeys(file.as_text, str),
    }


def _ragged(name: str, message: str) -> InputError:
    found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", message)
    if found:
        wanted, line, saw = found.groups()
        return _ragged_line(name, int(line), int(saw), int(wanted))
    quote = re.search(r"EOF inside string starting at row (\d+)", message)
    where = f" that opens in data row {quote[1]} and never closes" if quote else ""
    got = f"{name} with a quoted field{where}" if quote else f"{name}, which cannot be parsed ({message.strip()})"
    return InputError(got, "well-formed lines", "close or double the quotation mark")


def _ragged_line(name: str, line: int, saw: int, wanted: int) -> InputError:
    do = 'put fields that contain the delimiter in double quotes ("), or repair the line'
    return InputError(f"line {line} of {name} with {saw} fields", f"{wanted} fields as in its header", do)


def _sniff(file: _File, head: bytes, want: _Want) -> tuple[_File, tuple[str, ...]]:
    """The delimiter, the columns' names and the columns to keep as text (labels, ids, codes such as 007)."""
    text = head.decode(file.encoding, errors="replace").lstrip("\ufeff")
    cut = len(head) >= HEAD_BYTES
    tables = {d: _records(text, d, 200) for d in _delimiters(Path(file.member or file.path.name))}

    def fitness(delimiter: str) -> tuple[bool, float]:
        records = [record for _, record in tables[delimiter]]
        width = len(records[0])
        consistent = float(np.mean([len(r) == width for r in records]))
        return any(n in [f.strip() for f in records[0]] for n in want.names), (consistent > 0.8) * width * consistent

    delimiter = max(tables, key=fitness)
    lines = _records(text, delimiter, SNIFFED_RECORDS)
    lines = lines[:-1] if cut and len(lines) > 1 else lines
    header = lines[0][1]
    names, notes = _header(header)
    for line, record in lines[1:]:
        if len(record) > len(header) and any(f.strip() for f in record[len(header) :]):
            raise _ragged_line(file.path.name, line, len(record), len(header))
    short = [line for line, record in lines[1:] if len(record) < len(header)]
    if short:
        what = (
            f"{len(short)} of the first {len(lines)} lines have fewer fields than the header, such as line {short[0]}"
        )
        notes = (*notes, f"{what}; the fields they lack are missing.")
    padded = {
        name for j, name in enumerate(names) if any(j < len(r) and PADDED.match(r[j].strip()) for _, r in lines[1:])
    }
    as_text = tuple(n for n in names if n in padded or n in want.names)
    return replace(file, delimiter=delimiter, names=names, as_text=as_text), notes


def _delimiters(name: Path) -> str:
    tabbed = {".tsv", ".tab"} & {s.lower() for s in name.suffixes}
    return "\t,;|" if tabbed else ",\t;|"


def _records(text: str, delimiter: str, most: int) -> list[tuple[int, list[str]]]:
    """The first records, each with the number of its last line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    records: list[tuple[int, list[str]]] = []
    with contextlib.suppress(csv.Error):
        records += ((reader.line_num, record) for record in itertools.islice(reader, most) if record)
    return records or [(1, [""])]


def _header(fields: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of columns, each once."""
    names: list[str] = []
    repeated = []
    for j, given in enumerate(f.strip() for f in fields):
        name = given or f"column {j + 1}"
        copies = sum(n == name or n.startswith(f"{name} (") for n in names)
        if name in names:
            repeated.append(name)
            name = f"{name} ({copies + 1})"
        names.append(name)
    shown = ", ".join(map(repr, sorted(set(repeated))))
    return tuple(names), (f"Repeated column names were numbered: {shown}.",) if repeated else ()


def _load_json(file: _File, head: bytes, size: float, want: _Want, notes: tuple[str, ...]) -> _Raw:
    with _opened(file) as (stream, _):
        if len(head) >= HEAD_BYTES and want.rows is None:
            lines = io.BytesIO(head[: head.rfind(b"\n") + 1])
            start = pd.concat(list(_json_chunks(lines, file))) if lines.getbuffer().nbytes else pd.DataFrame()
            _refuse_too_large(file.path.name, start, size / len(head), want.limit)
        return _draw(_json_chunks(stream, file), want, notes)


def _json_chunks(stream: IO[bytes], file: _File) -> Iterator[pd.DataFrame]:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode(file.encoding))
        except json.JSONDecodeError as error:
            got = f"line {number} of {file.path.name}, which is not JSON ({error.msg})"
            raise InputError(got, "one JSON object per line", "repair the line") from None
        if not isinstance(record, dict):
            got = f"line {number} of {file.path.name}, which is not a JSON object"
            raise InputError(got, 'lines such as {"text": "…", "label": "…"}', "write one object per line")
        records.append({k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in record.items()})
        if len(records) == CHUNK_ROWS:
            yield pd.DataFrame(records)
            records = []
    if records:
        yield pd.DataFrame(records)


def _read_parquet(path: Path, want: _Want) -> _Raw:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtra("no pyarrow", "pyarrow to read Parquet", 'pip install "proponent[parquet]"') from None
    try:
        with parquet.ParquetFile(path) as file:
            total = file.metadata.num_rows
            start = next((b.to_pandas(ignore_metadata=True) for b in file.iter_batches(10_000)), pd.DataFrame())
            if want.rows is None and len(start):
                _refuse_too_large(path.name, start, total / len(start), want.limit)
            return _draw((b.to_pandas(ignore_metadata=True) for b in file.iter_batches(CHUNK_ROWS)), want, ())
    except ArrowException as error:
        raise InputError(f"{path.name}, which is not Parquet ({error})", "a Parquet file", "write it again") from error


def _draw(chunks: Iterable[pd.DataFrame], want: _Want, notes: tuple[str, ...]) -> _Raw:
    """All rows, or a uniform random subset: the rows with the smallest of independent uniform keys."""
    rng = np.random.default_rng(want.seed)
    parts, keys, total, largest = [pd.DataFrame()], [np.empty(0)], 0, np.inf
    for chunk in chunks:
        key = rng.random(len(chunk))
        chunk.index = pd.RangeIndex(total, total + len(chunk))
        total += len(chunk)
        near = key < largest
        parts.append(chunk[near])
        keys.append(key[near])
        if want.rows is not None and sum(map(len, parts)) > want.rows:
            pool, key = pd.concat(parts), np.concatenate(keys)
            at = np.sort(np.argpartition(key, want.rows - 1)[: want.rows])
            parts, keys, largest = [pool.iloc[at]], [key[at]], key[at].max()
    frame = pd.concat([p for p in parts if len(p)]) if total else pd.DataFrame()
    if want.rows is not None and total > want.rows:
        notes = (*notes, f"{want.rows} of {total} rows were read: a uniform random subset (seed {want.seed}).")
    return _Raw(frame, total, notes)


def _refuse_too_large(name: str, start: pd.DataFrame, growth: float, limit: float) -> None:
    """Refuse a file whose table, at the size per row of its first rows, would not fit in memory."""
    needed = float(start.memory_usage(deep=True).sum()) * growth * EXPECTED_PEAK
    if needed > limit:
        rows = max(1000, int(len(start) * growth * 0.5 * limit / needed) // 1000 * 1000)
        raise InputError(
            f"{name}, which needs about {needed / 1e9:.2g} GB of memory for about {len(start) * growth:.3g} rows",
            f"at most the {limit / 1e9:.2g} GB available",
            f"pass --rows {rows} to read a random subset of that many rows, or use a machine with more memory",
        )


def _available() -> float:
    """Bytes of memory that a new process may use."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        if found:
            return int(found[1]) * 1024.0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return float("inf")


def _image_table(path: Path, label: str, want: _Want, like: Table | None = None) -> Table:
    count, at = len(images.list_images(path)), None
    if want.rows is not None and want.rows < count:
        at = np.sort(np.random.default_rng(want.seed).choice(count, want.rows, replace=False))
    folder = images.read_images(path, at, None if like is None else like.image_shape)
    names = pd.Series(folder.labels.astype(object), index=folder.rows)
    if like is None:
        _check_classes(names, label)
        kept, notes = _usable_rows(names, folder.ids, "classification", label)
        labels = names
    else:
        labels, notes = _labels_like(names, like, folder.ids)
        kept = labels.notna().to_numpy()
    return Table(
        name=path.name,
        frame=pd.DataFrame(index=range(int(kept.sum()))),
        kinds={"image": "image"},
        labels=_label_array(labels[kept], "classification"),
        task="classification",
        classes=like.classes if like is not None else tuple(sorted(set(labels[kept]))),
        ids=folder.ids[kept],
        rows=folder.rows[kept],
        total=folder.total,
        label=label,
        warnings=(*folder.notes, *notes),
        pixels=folder.pixels[kept],
        image_shape=folder.shape,
    )
