"""From a file of any format to columns as they stand in it."""

from __future__ import annotations

import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pandas as pd

from proponent.audit.reading.delimited import load_csv
from proponent.audit.reading.source import CHUNK_ROWS, File, Head, Raw, Want, draw, opened, read_head, refuse_too_large
from proponent.errors import InputError, MissingExtra, did_you_mean

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".txt", ".data", ".jsonl", ".ndjson"})


def existing(path: Path) -> Path:
    """The path, or an error naming files like it."""
    if path.exists():
        return path
    siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings) if siblings else "check the folder's name"
    raise InputError(f"no file {str(path)!r}", "a table or a folder of images", hint)


def read_raw(path: Path, want: Want) -> Raw:
    """A file's columns as they stand in it, by the reader that its name calls for."""
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


def _read_text(path: Path, want: Want) -> Raw:
    member, notes = _choose_member(path)
    file = File(path, member)
    head = read_head(file)
    if not head.content.strip():
        raise InputError(f"the empty file {path.name}", "a table with a header line", "check how it was written")
    if head.content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        file = replace(file, encoding="utf-16")
    elif b"\0" in head.content:
        raise InputError(f"the binary file {path.name}", "a text table, Parquet or images", "export it as CSV")
    json_lines = {".jsonl", ".ndjson"} & {s.lower() for s in Path(member or path.name).suffixes}
    load = _load_json if json_lines else load_csv
    try:
        return load(file, head, want, notes)
    except UnicodeDecodeError:
        notes = (*notes, f"{path.name} is not UTF-8; it was read as Windows-1252, so check accented letters.")
        return load(replace(file, encoding="cp1252"), head, want, notes)


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


def _load_json(file: File, head: Head, want: Want, notes: tuple[str, ...]) -> Raw:
    with opened(file) as (stream, _):
        if head.cut and want.rows is None:
            lines = io.BytesIO(head.content[: head.content.rfind(b"\n") + 1])
            start = pd.concat(list(_json_chunks(lines, file))) if lines.getbuffer().nbytes else pd.DataFrame()
            refuse_too_large(file.path.name, start, head.size / len(head.content), want.limit)
        return draw(_json_chunks(stream, file), want, notes)


def _json_chunks(stream: IO[bytes], file: File) -> Iterator[pd.DataFrame]:
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


def _read_parquet(path: Path, want: Want) -> Raw:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtra("no pyarrow", "pyarrow to read Parquet", 'pip install "proponent[parquet]"') from None
    try:
        with parquet.ParquetFile(path) as file:
            total = file.metadata.num_rows
            start = next((b.to_pandas(ignore_metadata=True) for b in file.iter_batches(10_000)), pd.DataFrame())
            if want.rows is None and len(start):
                refuse_too_large(path.name, start, total / len(start), want.limit)
            return draw((b.to_pandas(ignore_metadata=True) for b in file.iter_batches(CHUNK_ROWS)), want, ())
    except ArrowException as error:
        raise InputError(f"{path.name}, which is not Parquet ({error})", "a Parquet file", "write it again") from error
