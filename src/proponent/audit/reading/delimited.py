"""CSV and its relatives: the delimiter, the header, lines too long or too short, quotes left open."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from proponent.audit.reading.source import CHUNK_ROWS, File, Head, Raw, Want, draw, opened, refuse_too_large
from proponent.audit.reading.words import MISSING, PADDED
from proponent.errors import InputError

SNIFFED_RECORDS = 20_000


def load_csv(file: File, head: Head, want: Want, notes: tuple[str, ...]) -> Raw:
    """A delimited text's columns, all words where a random subset is drawn, else as pandas types them."""
    file, more = _sniff(file, head, want)
    notes = (*notes, *more)
    try:
        with opened(file) as (stream, _), warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # delimiters at every line's end
            if want.rows is not None:
                chunks = pd.read_csv(stream, **_options(file) | {"dtype": str}, chunksize=CHUNK_ROWS)
                return draw(chunks, want, notes)
            if head.cut:
                half = head.content.count(b"\n") // 2
                start = pd.read_csv(io.BytesIO(head.content), **_options(file), nrows=half)
                refuse_too_large(file.path.name, start, head.size / (len(head.content) / 2), want.limit)
            frame = pd.read_csv(stream, **_options(file), low_memory=False)
    except pd.errors.EmptyDataError:
        raise InputError(f"the empty file {file.path.name}", "a table with a header line", "check the file") from None
    except pd.errors.ParserError as error:
        raise _ragged(file.path.name, str(error)) from error
    return Raw(frame, len(frame), notes)


def _options(file: File) -> dict[str, Any]:
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


def _sniff(file: File, head: Head, want: Want) -> tuple[File, tuple[str, ...]]:
    """The delimiter, the columns' names and the columns to keep as text (labels, ids, codes such as 007)."""
    text = head.content.decode(file.encoding, errors="replace").lstrip("\ufeff")
    tables = {d: _records(text, d, 200) for d in _delimiters(Path(file.member or file.path.name))}

    def fitness(delimiter: str) -> tuple[bool, float]:
        records = [record for _, record in tables[delimiter]]
        width = len(records[0])
        consistent = float(np.mean([len(r) == width for r in records]))
        return any(n in [f.strip() for f in records[0]] for n in want.names), (consistent > 0.8) * width * consistent

    delimiter = max(tables, key=fitness)
    lines = _records(text, delimiter, SNIFFED_RECORDS)
    lines = lines[:-1] if head.cut and len(lines) > 1 else lines
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
