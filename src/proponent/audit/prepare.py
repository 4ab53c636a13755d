"""From settings to the rows that an audit trains on and the rows that it measures on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from proponent.audit.encode import Encoded, encode, read_features
from proponent.audit.read import Table, read_like, read_table
from proponent.audit.settings import Settings
from proponent.errors import InputError
from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]

FEWEST = 40


@dataclass(frozen=True)
class Part:
    """Rows of a table: as they are, as a person sees them, and encoded.

    Args:
        table: the rows.
        matrix: (n, d) their features.
    """

    table: Table
    matrix: Any

    def __len__(self) -> int:
        return len(self.table)

    @property
    def shown(self) -> Examples:
        """The rows as a person sees them."""
        return self.table.examples()

    @property
    def labels(self) -> Array:
        return self.table.labels


@dataclass(frozen=True)
class Data:
    """What an audit works on.

    Args:
        train: rows trained on.
        heldout: rows measured on.
        queries: positions of held-out rows that values are measured on.
        encoded: the training rows' encoding.
        source: where the held-out rows came from, in words.
        warnings: what should be known about the data.
    """

    train: Part
    heldout: Part
    queries: Array
    encoded: Encoded
    source: str
    warnings: tuple[str, ...]

    @property
    def task(self) -> str:
        return self.train.table.task

    @property
    def compared(self) -> Any:
        """The training features by which rows are alike: the terms of texts, where there are texts; else all."""
        places = self.encoded.encoder.output_indices_
        terms = [
            np.arange(*where.indices(self.train.matrix.shape[1]))
            for name, where in places.items()
            if name.startswith("text ")
        ]
        return self.train.matrix[:, np.concatenate(terms)] if terms else self.train.matrix


def prepare(settings: Settings) -> Data:
    """Read, hold out, encode.

    Raises:
        InputError: a file or a column is not usable; too few rows.
    """
    table = read_table(
        settings.file,
        label=settings.label,
        group=settings.group,
        id=settings.id,
        task=settings.task,  # type: ignore[arg-type]
        rows=settings.rows,
        seed=settings.seed,
    )
    if len(table) < FEWEST:
        raise InputError(f"{len(table)} usable rows in {table.name}", f"at least {FEWEST}", "add rows")
    embeddings = None if settings.features is None else read_features(settings.features, table)
    if settings.test is None:
        at_train, at_heldout = _split(table, settings.seed)
        train, heldout = take_rows(table, at_train), take_rows(table, at_heldout)
        ours = None if embeddings is None else embeddings[at_train]
        theirs = None if embeddings is None else embeddings[at_heldout]
        share = f"{len(heldout) / len(table):.0%} of the rows, held out at random (seed {settings.seed})"
        source = f"{share} to measure on, not judged themselves"
        warnings = table.warnings
    else:
        train, heldout = table, read_like(settings.test, table)
        ours, theirs = embeddings, _test_embeddings(settings, heldout, embeddings)
        source = f"the rows of {heldout.name}"
        warnings = (*table.warnings, *(f"{heldout.name}: {w}" for w in heldout.warnings))
    encoded = encode(train, features=ours)
    other = encode(heldout, encoded.encoder, features=theirs)
    rng = np.random.default_rng([settings.seed, 1])
    queries = np.sort(rng.permutation(len(heldout))[: settings.queries])
    return Data(Part(train, encoded.matrix), Part(heldout, other.matrix), queries, encoded, source, warnings)


def take_rows(table: Table, at: Array) -> Table:
    """Some rows of a table."""
    return replace(
        table,
        frame=table.frame.iloc[at].reset_index(drop=True),
        labels=table.labels[at],
        ids=table.ids[at],
        rows=table.rows[at],
        groups=None if table.groups is None else table.groups[at],
        pixels=None if table.pixels is None else table.pixels[at],
    )


def _split(table: Table, seed: int) -> tuple[Array, Array]:
    labels = table.labels
    every = np.arange(len(table))
    stratify = labels if table.task == "classification" and min(np.unique(labels, return_counts=True)[1]) >= 2 else None
    train, heldout = train_test_split(every, test_size=0.2, random_state=seed, stratify=stratify)
    return np.sort(train), np.sort(heldout)


def _test_embeddings(settings: Settings, heldout: Table, embeddings: Array | None) -> Array | None:
    if embeddings is None:
        return None
    if settings.test_features is None:
        raise InputError(
            "--features and --test without --test-features", "embeddings of both files", "pass --test-features FILE.npy"
        )
    found = read_features(settings.test_features, heldout)
    if found.shape[1] != embeddings.shape[1]:
        raise InputError(
            f"{found.shape[1]} dimensions in the test embeddings",
            f"{embeddings.shape[1]}",
            "compute both by the same model",
        )
    return found
