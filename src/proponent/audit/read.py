"""From a file to typed columns: CSV, TSV, Parquet, JSON lines, compressed or not, or a folder of images."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from proponent.audit.reading.files import existing, read_raw
from proponent.audit.reading.images import list_images, read_images
from proponent.audit.reading.kinds import converted, typed
from proponent.audit.reading.labels import (
    check_classes,
    check_columns,
    label_array,
    labels_like,
    read_ids,
    read_labels,
    usable_rows,
)
from proponent.audit.reading.source import Want, available_memory
from proponent.audit.reading.table import Table, Task
from proponent.audit.reading.words import to_names
from proponent.errors import InputError

__all__ = ["Table", "read_like", "read_table"]


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
    path = existing(Path(path))
    if task not in (None, "classification", "regression"):
        raise InputError(f"task={task!r}", "'classification' or 'regression'", "leave task out to have it found")
    if rows is not None and rows < 1:
        raise InputError(f"rows={rows}", "a positive number of rows", "leave rows out to read all")
    names = tuple(name for name in (label, group, id) if name is not None)
    want = Want(names, rows, seed, available_memory() if max_memory is None else max_memory)
    if path.is_dir():
        return _image_table(path, label, want)
    raw = read_raw(path, want)
    check_columns(raw.frame, path.name, label=label, group=group, id=id)
    labels, found, notes = read_labels(raw.frame[label], label, task)
    ids, id_notes = read_ids(raw.frame, id)
    kept, row_notes = usable_rows(labels, ids, found, label)
    frame, kinds, formats, column_notes = typed(raw.frame.drop(columns=list(set(names)))[kept])
    if frame.shape[1] == 0:
        raise InputError(f"no usable column beside {label!r}", "at least one feature column", "add columns that vary")
    labels = labels[kept]
    return Table(
        name=path.name,
        frame=frame.reset_index(drop=True),
        kinds=kinds,
        labels=label_array(labels, found),
        task=found,
        classes=tuple(sorted(set(labels))) if found == "classification" else (),
        ids=ids[kept],
        rows=np.asarray(frame.index),
        total=raw.total,
        label=label,
        id=id,
        group=group,
        groups=None if group is None else to_names(raw.frame[group])[kept].fillna("(missing)").to_numpy().astype(str),
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
    path = existing(Path(path))
    if table.pixels is not None:
        return _image_table(path, table.label, Want(), like=table)
    names = tuple(name for name in (table.label, table.group, table.id) if name is not None)
    raw = read_raw(path, Want(names, limit=available_memory() if max_memory is None else max_memory))
    id = table.id if table.id in raw.frame.columns else None
    group = table.group if table.group in raw.frame.columns else None
    check_columns(raw.frame, path.name, label=table.label)
    for column in table.frame.columns:
        check_columns(raw.frame, path.name, feature=column)
    ids, id_notes = read_ids(raw.frame, id)
    labels, notes = labels_like(raw.frame[table.label], table, ids)
    kept = labels.notna().to_numpy()
    if not kept.any():
        raise InputError(
            f"no row of {path.name} with a usable label", f"labels like those of {table.name}", "check the label column"
        )
    frame, column_notes = converted(
        raw.frame[kept], {c: table.kinds[c] for c in table.frame.columns}, table.date_formats
    )
    return replace(
        table,
        name=path.name,
        frame=frame.reset_index(drop=True),
        labels=label_array(labels[kept], table.task),
        ids=ids[kept],
        rows=np.asarray(frame.index),
        total=raw.total,
        id=id,
        group=group,
        groups=None if group is None else to_names(raw.frame[group])[kept].fillna("(missing)").to_numpy().astype(str),
        warnings=(*raw.notes, *id_notes, *notes, *column_notes),
    )


def _image_table(path: Path, label: str, want: Want, like: Table | None = None) -> Table:
    count, at = len(list_images(path)), None
    if want.rows is not None and want.rows < count:
        at = np.sort(np.random.default_rng(want.seed).choice(count, want.rows, replace=False))
    folder = read_images(path, at, None if like is None else like.image_shape)
    names = pd.Series(folder.labels.astype(object), index=folder.rows)
    if like is None:
        check_classes(names, label)
        kept, notes = usable_rows(names, folder.ids, "classification", label)
        labels = names
    else:
        labels, notes = labels_like(names, like, folder.ids)
        kept = labels.notna().to_numpy()
    return Table(
        name=path.name,
        frame=pd.DataFrame(index=range(int(kept.sum()))),
        kinds={"image": "image"},
        labels=label_array(labels[kept], "classification"),
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
