"""What has been trained already: the ledger on disk, found again by (subset, seed)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from proponent.errors import InputError
from proponent.examples import Examples
from proponent.retrain.ledger import Ledger
from proponent.store.log import Place, RecordLog

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """What came of one training: the measurements, or why it failed.

    Args:
        key: names (subset, seed).
        included: (n,) counts of the subset.
        seed: what else determines the model.
        measured: (q,); NaN where it failed.
        error: what the fit said; "" where it did not fail.
    """

    key: bytes
    included: Array
    seed: int
    measured: Array
    error: str = ""

    def record(self, query: str) -> bytes:
        """As bytes, with the mark of the queries."""
        head = {
            "key": self.key.hex(),
            "seed": int(self.seed),
            "query": query,
            "error": self.error,
            "n": len(self.included),
        }
        counts = zlib.compress(np.asarray(self.included, np.uint8).tobytes(), 1)
        return (
            json.dumps(head | {"counts": len(counts)}).encode()
            + b"\n"
            + counts
            + np.asarray(self.measured, "<f8").tobytes()
        )

    @classmethod
    def of(cls, record: bytes) -> Outcome:
        """From `record`'s bytes."""
        head, body = _head(record)
        counts = np.frombuffer(zlib.decompress(body[: head["counts"]]), np.uint8)
        measured = np.frombuffer(body[head["counts"] :], "<f8")
        return cls(bytes.fromhex(head["key"]), counts, head["seed"], measured, head["error"])


def _head(record: bytes) -> tuple[dict[str, Any], bytes]:
    head, body = record.split(b"\n", 1)
    return json.loads(head), body


@dataclass(eq=False)
class Trained:
    """The trainings of one recipe on one training set that are kept in a directory.

    Only where each record lies is held in memory. Which subsets were measured for which queries is part of the record, so
    that one directory serves any number of query sets; a model trained for other queries is not trained again where the
    models are kept.

    Args:
        log: the directory.
        places: (mark of the queries, key) -> where the outcome lies.
        seen: how far each file has been read.
    """

    log: RecordLog
    places: dict[tuple[str, bytes], Place] = field(default_factory=dict)
    seen: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: str | Path, recipe: Any, train: Examples) -> Trained:
        """Start a ledger, or go on with the one that lies there.

        Raises:
            FingerprintMismatch: it is of another recipe or other training examples.
        """
        made_from = {"recipe": recipe.fingerprint(), "training examples": train.fingerprint()}
        trained = cls(RecordLog.open(directory, made_from))
        trained.refresh()
        return trained

    def refresh(self) -> None:
        """Take in what workers have written since."""
        for place, record in self.log.after(self.seen):
            head, _ = _head(record)
            self.places[head["query"], bytes.fromhex(head["key"])] = place

    def has(self, query: str, key: bytes) -> bool:
        """Whether this (subset, seed) was measured for these queries, or failed."""
        return (query, key) in self.places

    def outcomes(self, query: str, keys: Iterable[bytes]) -> Iterator[Outcome]:
        """What is kept of these keys."""
        for key in keys:
            if place := self.places.get((query, key)):
                yield Outcome.of(place.read())


def open_ledger(directory: str | Path, train: Any, query: Any) -> Ledger:
    """All that a directory holds about these queries, as a Ledger, in the order of the subsets' names.

    Args:
        directory: what `retrain(..., ledger=directory)` wrote.
        train, query: the examples that it was made from.

    Raises:
        InputError: the directory holds no ledger, or nothing about these queries.
    """
    train, query = Examples.of(train), Examples.of(query)
    manifest = Path(directory) / "made_from.json"
    if not manifest.exists():
        raise InputError(f"no ledger at {directory}", "a directory that retrain(..., ledger=…) wrote", "check the path")
    made_from: dict[str, Any] = json.loads(manifest.read_text())
    log = RecordLog.open(directory, made_from | {"training examples": train.fingerprint()})
    trained = Trained(log)
    trained.refresh()
    mark = query.fingerprint()
    kept = list(trained.outcomes(mark, sorted(key for q, key in trained.places if q == mark)))
    if not kept:
        raise InputError(f"nothing about these queries at {directory}", "queries that were measured", "run retrain()")
    return as_ledger(kept, train, query)


def as_ledger(
    outcomes: list[Outcome], train: Examples, query: Any, models: list[Any] | None = None, **facts: Any
) -> Ledger:
    """A Ledger of these outcomes, in order."""
    return Ledger.of(
        np.array([o.included for o in outcomes], dtype=np.uint8).reshape(len(outcomes), len(train)),
        np.array([o.measured for o in outcomes]).reshape(len(outcomes), len(query)),
        train=train,
        query=query,
        seeds=[o.seed for o in outcomes],
        errors=[o.error for o in outcomes],
        models=models,
        attributes=facts,
    )
