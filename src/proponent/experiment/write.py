"""The run directory of an attribution: tables, page, settings and provenance."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from proponent.experiment.answer import Answer
from proponent.experiment.settings import Settings
from proponent.report.attribution_page import write_page
from proponent.store.stages import write_atomically


def write(answer: Answer, settings: Settings) -> None:
    """Write everything that a person or a program may want of an attribution.

    config.yaml (run it again with --config), top.csv, self_influence.csv where asked for, report.html, run.json;
    attribution.zarr was written on the way.
    """
    out = Path(settings.out)
    _csv(answer.top, out / "top.csv")
    if answer.self_influence is not None:
        _csv(answer.self_influence, out / "self_influence.csv")
    write_page(answer, out / "report.html")
    facts = {
        "command": answer.command,
        "subject": answer.subject,
        "method": answer.method,
        "reason": answer.reason,
        "unit": answer.unit,
        "sign": answer.sign,
        "training examples": answer.n_train,
        "queries": answer.n_query,
        "settings": answer.choices,
        "seeds": {k: v for k, v in answer.choices.items() if "seed" in k},
        "cost": asdict(answer.cost),
        "seconds": answer.seconds,
        "set aside": answer.set_aside,
        "warnings": list(answer.warnings),
        "fingerprints": answer.fingerprints,
        "versions": answer.versions,
    }
    write_atomically(out / "run.json", json.dumps(facts, indent=1, ensure_ascii=False, default=_plain).encode())


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _csv(frame: pd.DataFrame, path: Path) -> None:
    """Six significant digits: what single precision carries."""
    write_atomically(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
