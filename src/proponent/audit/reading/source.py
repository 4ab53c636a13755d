"""What is read and how much of it: a file's bytes, its first part, a random subset of its rows, the memory it needs."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from proponent.errors import InputError

HEAD_BYTES = 2_000_000
CHUNK_ROWS = 50_000
EXPECTED_PEAK = 6.0  # memory to read and encode, in sizes of the parsed table: 5.3 and 5.8 were measured


@dataclass(frozen=True)
class File:
    """How to read one text file."""

    path: Path
    member: str | None = None
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    names: tuple[str, ...] = ()
    as_text: tuple[str, ...] = ()


@dataclass(frozen=True)
class Want:
    """What to read: columns to keep as text, how many rows, drawn with which seed, in how many bytes of memory."""

    names: tuple[str, ...] = ()
    rows: int | None = None
    seed: int = 0
    limit: float = float("inf")


@dataclass(frozen=True)
class Raw:
    """Columns as they stand in the file; the index counts the file's rows from 0."""

    frame: pd.DataFrame
    total: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Head:
    """The first bytes of a text, whether more follow, and how many there are in all (estimated where compressed)."""

    content: bytes
    cut: bool
    size: float


@contextlib.contextmanager
def opened(file: File) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
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


def read_head(file: File) -> Head:
    """At most the first HEAD_BYTES of the text."""
    with opened(file) as (stream, raw):
        content = stream.read(HEAD_BYTES)
        if len(content) < HEAD_BYTES:
            return Head(content, False, float(len(content)))
        if file.member is not None:
            with zipfile.ZipFile(file.path) as archive:
                return Head(content, True, float(archive.getinfo(file.member).file_size))
        return Head(content, True, file.path.stat().st_size * len(content) / raw.tell())


def draw(chunks: Iterable[pd.DataFrame], want: Want, notes: tuple[str, ...]) -> Raw:
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
    return Raw(frame, total, notes)


def refuse_too_large(name: str, start: pd.DataFrame, growth: float, limit: float) -> None:
    """Refuse a file whose table, at the size per row of its first rows, would not fit in memory."""
    needed = float(start.memory_usage(deep=True).sum()) * growth * EXPECTED_PEAK
    if needed > limit:
        rows = max(1000, int(len(start) * growth * 0.5 * limit / needed) // 1000 * 1000)
        raise InputError(
            f"{name}, which needs about {needed / 1e9:.2g} GB of memory for about {len(start) * growth:.3g} rows",
            f"at most the {limit / 1e9:.2g} GB available",
            f"pass --rows {rows} to read a random subset of that many rows, or use a machine with more memory",
        )


def available_memory() -> float:
    """Bytes of memory that a new process may use."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        if found:
            return int(found[1]) * 1024.0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return float("inf")
