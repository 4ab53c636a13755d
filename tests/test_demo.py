"""The demo's planted errors: the same each time, as many as said, and the truth where the audit does not look."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

from proponent.audit import demo
from proponent.audit.settings import Settings


def test_planting_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        demo.plant_errors(tmp_path / name)
    for file in ("digits.csv", "digits-truth.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_planted_labels_are_wrong_and_all_others_right(tmp_path: Path) -> None:
    table, truth = demo.plant_errors(tmp_path)
    right = load_digits().target
    written = pd.read_csv(tmp_path / "digits.csv")
    shown = written["digit"].str.removeprefix("digit ").astype(int).to_numpy()
    assert written["image"].is_unique and len(written) == len(table) == len(right)
    assert set(written["image"][shown != right]) == set(truth["image"])
    assert len(truth) == round(demo.FLIPPED * len(right)) and (truth["right"] != truth["planted"]).all()
    at = truth["image"].str.removeprefix("image-").astype(int)
    assert (right[at] == truth["right"]).all() and (shown[at] == truth["planted"]).all()


def test_the_audit_reads_no_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    class EnoughError(Exception):
        pass

    def audit(settings: Settings) -> None:
        seen.append(settings)
        raise EnoughError

    monkeypatch.setattr(demo, "audit", audit)
    with pytest.raises(EnoughError):
        demo.run_demo(tmp_path / "new" / "demo", Console(quiet=True))
    (settings,) = seen
    columns = pd.read_csv(settings.file, nrows=1).columns
    assert (settings.label, settings.id) == ("digit", "image")
    assert set(columns) == {"image", "digit", *(f"pixel_{i}_{j}" for i in range(8) for j in range(8))}
    assert (tmp_path / "new" / "demo" / "digits-truth.csv").is_file()
