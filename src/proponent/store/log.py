"""A directory of append-only logs: records that any number of workers write, and that survive a kill at any moment."""

from __future__ import annotations

import fcntl
import secrets
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proponent.errors import InputError
from proponent.store.stages import manifest, write_atomically

MAGIC = b"ppr1"
HEADER = struct.Struct("<4sQI")
"""Magic, length of what follows, its CRC-32."""
LENGTH = struct.Struct("<I")
"""Of each record inside."""


@dataclass(frozen=True)
class Place:
    """Where a record lies."""

    path: Path
    start: int
    length: int

    def read(self) -> bytes:
        """The record."""
        with self.path.open("rb") as f:
            f.seek(self.start)
            return f.read(self.length)


@dataclass(frozen=True)
class RecordLog:
    """Records in a directory; what is written together is there whole or not at all.

    It is written in one call and checked by its CRC when it is read; what a killed writer left half done is passed over.
    Each job writes a file of its own, so writers never meet.

    Args:
        directory: holds `made_from.json` and `log/*.records`.
    """

    directory: Path

    @classmethod
    def open(cls, directory: str | Path, made_from: Mapping[str, Any]) -> RecordLog:
        """Start a log, or go on with the one that lies there.

        Raises:
            FingerprintMismatch: what lies there was made from something else.
        """
        directory = Path(directory)
        if directory.exists() and not directory.is_dir():
            raise InputError(f"the file {directory}", "a directory", "choose another path")
        manifest(directory, made_from, begun=any((directory / "log").glob("*.records")))
        (directory / "log").mkdir(exist_ok=True)
        return cls(directory)

    def append(self, job: str, records: Sequence[bytes]) -> None:
        """Write records to a job's file, all or none; they are safe from this process's death when the call returns."""
        body = b"".join(LENGTH.pack(len(record)) + record for record in records)
        with (self.directory / "log" / f"{job}.records").open("ab") as f:
            f.write(HEADER.pack(MAGIC, len(body), zlib.crc32(body)) + body)

    def after(self, seen: dict[Path, int]) -> Iterator[tuple[Place, bytes]]:
        """The records that lie after what was `seen` of each file, which is moved on."""
        for path in sorted((self.directory / "log").glob("*.records")):
            at = seen.get(path, 0)
            with path.open("rb") as f:
                f.seek(at)
                while len(head := f.read(HEADER.size)) == HEADER.size:
                    magic, length, check = HEADER.unpack(head)
                    body = f.read(length) if magic == MAGIC else b""
                    if magic != MAGIC or len(body) < length or zlib.crc32(body) != check:
                        break  # the writer was killed here; nothing follows in this file
                    yield from _inside(path, at + HEADER.size, body)
                    at += HEADER.size + length
            seen[path] = at

    @contextmanager
    def driving(self) -> Iterator[str]:
        """While it lasts this process alone hands out work; gives the token that the workers must show.

        Workers that a killed driver left behind finish the job they are at, which is waited for, and get no other.

        Raises:
            InputError: another run hands out work on this log.
        """
        with (self.directory / "driver.lock").open("a") as driver:
            try:
                fcntl.flock(driver, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.directory}, which another run is writing to",
                    "one run at a time",
                    "wait for it, or choose another directory",
                ) from None
            token = secrets.token_hex(8)
            write_atomically(self.directory / "token", token.encode())
            with (self.directory / "workers.lock").open("a") as workers:
                fcntl.flock(workers, fcntl.LOCK_EX)  # waits for the jobs of an earlier driver
            yield token

    @contextmanager
    def working(self, token: str) -> Iterator[bool]:
        """While it lasts a new driver waits; false where the driver that gave the token is gone."""
        with (self.directory / "workers.lock").open("a") as workers:
            while True:
                try:
                    fcntl.flock(workers, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # a new driver is about to start: it holds the lock for a moment
                    time.sleep(0.01)
            yield (self.directory / "token").read_text() == token


def _inside(path: Path, start: int, body: bytes) -> Iterator[tuple[Place, bytes]]:
    at = 0
    while at < len(body):
        (length,) = LENGTH.unpack_from(body, at)
        at += LENGTH.size
        yield Place(path, start + at, length), body[at : at + length]
        at += length
