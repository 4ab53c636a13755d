"""The audit's figures: which numbers go into which plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from proponent.report import plots, words
from proponent.report.plots import Array, Bar, Line, Tone

if TYPE_CHECKING:
    from proponent.audit.result import Audit

MOST_SLICES = 12


def values(value: Array) -> str:
    """How the training rows' values are distributed."""
    label = "value of a training row (positive = helps)"
    return plots.responsive(lambda width: plots.histogram(value, width, label))


def removal_curve(audit: Audit) -> str:
    """The held-out metric as flagged rows, or as many random rows, are removed; empty without a curve."""
    curve = audit.curve
    if not len(curve):
        return ""
    metric = next(iter(audit.metrics), "metric")
    scale = 100.0 if words.is_fraction(metric) else 1.0

    def line(name: str, tone: Tone) -> Line:
        middle, lower, upper = (curve[c].to_numpy(float) * scale for c in (name, f"{name}_lower", f"{name}_upper"))
        return Line(name, curve["fraction"].to_numpy(float) * 100, middle, lower, upper, tone)

    lines = [line("random", "random"), line("flagged", "plain")]
    unit = ", %" if words.is_fraction(metric) else ""
    y_label = f"held-out {metric}{unit}"
    return plots.responsive(lambda width: plots.curve(lines, width, "training rows removed, %", y_label))


def check(row: words.Check) -> str:
    """The change from treating the flagged rows beside the change from treating random rows."""
    metric = str(row["metric"])
    scale = 100.0 if words.is_fraction(metric) else 1.0
    verdict: Tone = "plain"
    found = words.verdict(row)
    if found != "unclear":
        verdict = found

    def bar(label: str, name: str, lower: str, upper: str, tone: Tone) -> Bar:
        ends = [float(row[c]) for c in (lower, upper)]
        shown = f"{words.change(metric, float(row[name]))} ({' to '.join(words.change(metric, e) for e in ends)})"
        return Bar(label, float(row[name]) * scale, ends[0] * scale, ends[1] * scale, shown, tone)

    rows = [
        bar("flagged rows", "change", "change_lower", "change_upper", verdict),
        bar("random rows", "random_change", "random_lower", "random_upper", "random"),
    ]
    better = "lower is better" if words.lower_is_better(metric) else "higher is better"
    unit = f", {words.unit(metric).strip()}" if words.unit(metric) else ""
    return plots.responsive(lambda width: plots.bars(rows, width, f"change of {metric}{unit} ({better})"))


def slices(frame: pd.DataFrame) -> str:
    """What removing each slice's training rows does to the loss on the matching held-out rows; empty without slices."""
    if not len(frame):
        return ""
    order = frame["effect"].abs().sort_values(ascending=False, kind="stable").index[:MOST_SLICES]
    rows = []
    for s in frame.loc[order].sort_values("effect", kind="stable").to_dict("records"):
        tone: Tone = "hurts" if s["effect_upper"] < 0 else "helps" if s["effect_lower"] > 0 else "random"
        ends = f"{words.signed(float(s['effect_lower']))} to {words.signed(float(s['effect_upper']))}"
        shown = f"{words.signed(float(s['effect']))} ({ends})"
        effect, lower, upper = (float(s[c]) for c in ("effect", "effect_lower", "effect_upper"))
        rows.append(Bar(f"{s['column']} = {s['value']}", effect, lower, upper, shown, tone))
    label = "change of the held-out loss without the slice"
    return plots.responsive(lambda width: plots.bars(rows, width, label))
