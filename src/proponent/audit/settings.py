"""What an audit was asked to do: complete, readable, and enough to repeat it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proponent.errors import InputError
from proponent.store.config import command_of, from_yaml, to_yaml

LEAST = {"rows": 1, "queries": 1, "splits": 0, "check_rows": 40, "seed": 0}


@dataclass(frozen=True)
class Settings:
    """The settings of one audit; every field is also an option of `proponent audit`.

    Args:
        file: the table: CSV, TSV, Parquet, JSON lines, or a folder of images by class.
        label: the label column.
        out: the run directory.
        test: held-out rows in a file of the same columns; otherwise a fifth of the rows is held out.
        features: an .npy file of embeddings, one row per row of `file`, used in place of its columns.
        test_features: the same for `test`.
        group: a column naming each row's source or person.
        id: a column naming each row.
        model: "path.py:name" of an unfitted scikit-learn estimator that takes the table's columns.
        task: "classification" or "regression"; found by itself where None.
        rows: read only a random subset of this many rows.
        queries: held-out rows, drawn at random, that values are measured on.
        splits: repetitions of the self-check; 0 leaves it out.
        check_rows: the most rows that a repetition of the self-check works on.
        seed: of everything random.
    """

    file: str
    label: str
    out: str
    test: str | None = None
    features: str | None = None
    test_features: str | None = None
    group: str | None = None
    id: str | None = None
    model: str | None = None
    task: str | None = None
    rows: int | None = None
    queries: int = 2000
    splits: int = 10
    check_rows: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if name == "rows" and value is None:
                continue
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} = {value!r}", f"a whole number of at least {least}", f"change {name}")
        for name in ("file", "label", "out"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} = {getattr(self, name)!r}", "text", f"put {name} in quotes")

    def command(self) -> str:
        """The shell command that repeats the audit."""
        return command_of(self, "audit")

    def to_yaml(self) -> str:
        """All settings, as a run's config.yaml."""
        return to_yaml(self)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Settings:
        """Settings as `to_yaml` wrote them.

        Raises:
            InputError: not such a file, or an unknown setting in it.
        """
        return from_yaml(cls, path, "audit")

    def made_from(self, contents: dict[str, Any]) -> dict[str, Any]:
        """What the stored stages depend on: every setting but where they lie, and the files' contents."""
        chosen = {k: v for k, v in asdict(self).items() if k not in ("out", "splits")}
        return json.loads(json.dumps({**chosen, **contents}))
