"""A run directory: tables, report, settings and provenance."""

from __future__ import annotations

import json
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from proponent.attribution import Attribution
from proponent.audit.read import Table
from proponent.audit.result import Audit
from proponent.audit.settings import Settings
from proponent.report.html import write_html
from proponent.store.stages import write_atomically


def write(result: Audit, settings: Settings, table: Table, scores: Attribution) -> None:
    """Write everything that a person or a program may want of an audit.

    config.yaml (run it again with --config), issues.csv, values.csv, slices.csv, groups.csv, checks.csv, curve.csv,
    report.html, run.json; attribution.zarr was written on the way.
    """
    out = Path(settings.out)
    write_atomically(out / "config.yaml", settings.to_yaml().encode())
    tables = {
        "issues": result.issues,
        "values": result.values,
        "slices": result.slices,
        "checks": result.checks,
        "curve": result.curve,
    }
    if result.groups is not None:
        tables["groups"] = result.groups
    for name, frame in tables.items():
        _csv(frame, out / f"{name}.csv")
    write_html(result, out / "report.html")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    facts = {
        "command": result.command,
        "method": scores.method,
        "sign": scores.dataset.attrs["sign"],
        "rows": {"train": result.n_train, "held out": result.n_heldout, "in the file": table.total},
        "metrics": result.metrics,
        "issues": {str(k): int(v) for k, v in result.issues["kind"].value_counts().sort_index().items()},
        "seconds": result.seconds,
        "peak memory in bytes": peak,
        "warnings": list(result.warnings),
        "skipped": [list(s) for s in result.skipped],
        "versions": {name: version(name) for name in ("proponent", "numpy", "scipy", "scikit-learn", "pandas")}
        | {"python": platform.python_version()},
    }
    write_atomically(out / "run.json", json.dumps(facts, indent=1, ensure_ascii=False).encode())


def _csv(frame: pd.DataFrame, path: Path) -> None:
    """Six significant digits: what the numbers carry, and the same bytes wherever rounding differs in the last place."""
    write_atomically(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
