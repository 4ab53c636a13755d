"""A run directory whose finished stages are kept, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from proponent.errors import ProponentWarning
from proponent.progress import say
from proponent.store.fingerprint import require_same

WARNINGS = "(warnings)"
Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


@dataclass(frozen=True)
class Stages:
    """Named results of a run, each computed once and kept.

    A stage is a dict of plain arrays, stored as .npz (no pickle) beside its checksum. It is written to another name
    and moved into place, so a killed run leaves a stage whole or absent, never half.

    Args:
        directory: where the stages lie.
        made_from: what the run depends on; another value found there is refused.
    """

    directory: Path
    made_from: Mapping[str, Any]

    @classmethod
    def open(cls, directory: Path, made_from: Mapping[str, Any]) -> Stages:
        """Start a run, or go on with the one that lies there.

        Raises:
            FingerprintMismatch: what lies there was made from something else.
        """
        parts = manifest(directory, made_from, begun=any(directory.glob("*.blake2b")))
        return cls(directory, parts)

    def get(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The stage's arrays, and its ProponentWarnings again: read back where whole, computed and kept otherwise."""
        path, check = self.directory / f"{name}.npz", self.directory / f"{name}.blake2b"
        if path.exists() and check.exists():
            content = path.read_bytes()
            if hashlib.blake2b(content).hexdigest() == check.read_text().split()[0]:
                with np.load(io.BytesIO(content), allow_pickle=False) as kept:
                    return _told({key: kept[key] for key in kept.files})
        say(name.replace("_", " "))
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ProponentWarning)
            arrays = {key: np.asarray(value) for key, value in compute().items()}
        told = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, ProponentWarning))
        arrays[WARNINGS] = np.array(list(told), dtype=str)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomically(path, buffer.getvalue())
        digest = hashlib.blake2b(buffer.getvalue()).hexdigest()
        write_atomically(check, f"{digest} {time.perf_counter() - start:.3f}\n".encode())
        return _told(arrays)

    def seconds(self) -> dict[str, float]:
        """How long each kept stage took to compute."""
        files = sorted(self.directory.glob("*.blake2b"), key=lambda p: p.stat().st_mtime)
        return {p.stem: float(p.read_text().split()[1]) for p in files}


def manifest(directory: Path, made_from: Mapping[str, Any], *, begun: bool) -> dict[str, Any]:
    """Write down what a directory's content is made from; where it has begun, refuse anything else.

    Raises:
        FingerprintMismatch: what lies there was made from something else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "made_from.json"
    parts: dict[str, Any] = json.loads(json.dumps(made_from, default=str))
    if begun and path.exists():
        require_same(json.loads(path.read_text()), parts, str(directory))
    else:
        write_atomically(path, json.dumps(parts, indent=1, sort_keys=True).encode())
    return parts


def _told(arrays: Arrays) -> Arrays:
    """The arrays, once the warnings kept among them are given."""
    for message in arrays.pop(WARNINGS, ()):
        warnings.warn(str(message), ProponentWarning, stacklevel=3)
    return arrays


def write_atomically(path: Path, content: bytes) -> None:
    """Write under another name, flush to the disk, move into place."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)
