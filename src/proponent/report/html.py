"""The one-file HTML report: opens offline, reads without JavaScript, escapes whatever comes from the data."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proponent.report import cards, figures, words
from proponent.report.cards import Limits

if TYPE_CHECKING:
    from proponent.audit.result import Audit

SIZE = 1_500_000  # bytes; a page beyond this opens slowly and is hard to send by mail
STEPS = (
    Limits(),
    Limits(rows=12, explained=6, neighbours=3, fields=40, characters=2000, pixels=96),
    Limits(rows=6, explained=4, neighbours=3, fields=24, characters=1000, pixels=64),
    Limits(rows=4, explained=3, neighbours=2, fields=16, characters=500, pixels=32),
)
OPEN = 3  # cards of a kind that are shown before "show more"
HEADS = {"n_train": "Training rows", "n_heldout": "Held-out rows", "interval": "95 % interval"}
FIRST = 5  # rows over all kinds to look at first


def write_html(audit: Audit, path: str | Path) -> None:
    """Write the report of an audit as one self-contained page.

    The page shows the worst rows of each kind; a large audit shows fewer of them, so that the file stays below 1.5 MB,
    and says how many more stand in the tables written beside it.

    Args:
        audit: the finished audit.
        path: where to write; the folder must exist.
    """
    write_fitting(lambda limits: render(audit, limits), STEPS, path)


def write_fitting(page: Callable[[Limits], str], steps: Sequence[Limits], path: str | Path) -> None:
    """Write the first page that is small enough, or the last."""
    made = ""
    for limits in steps:
        made = page(limits)
        if len(made.encode()) <= SIZE:
            break
    Path(path).write_text(made, encoding="utf-8", newline="\n")


def render(audit: Audit, limits: Limits) -> str:
    """The page as text."""
    return fill("report.html", _view(audit, limits))


def fill(template: str, view: Mapping[str, Any], styles: Sequence[str] = ("report.css",)) -> str:
    """A template of this folder with what is to be shown; everything is escaped, nothing is loaded from outside."""
    environment = Environment(
        loader=PackageLoader("proponent.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": words.plain, "upfirst": words.upfirst, "svg": Markup}
    environment.globals["open_cards"] = OPEN
    style = "".join(_packaged(environment, name) for name in styles)
    script = _packaged(environment, "report.js")
    return environment.get_template(template).render(
        style=Markup(style), script=Markup(script), policy=_policy(style, script), **view
    )


def _packaged(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _policy(style: str, script: str) -> str:
    """Nothing from outside, no style and no script but these two: text that slips through cannot run."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _view(audit: Audit, limits: Limits) -> dict[str, Any]:
    kinds = [_kind(audit, k, limits) for k in words.ordered(list(audit.issues["kind"]))] if len(audit.issues) else []
    return {
        "audit": audit,
        "headline": words.headline(audit),
        "confirmed": words.confirmed(audit),
        "metrics": [(words.plain(m), words.level(m, v)) for m, v in audit.metrics.items()],
        "kinds": kinds,
        "worst": cards.worst(audit, FIRST, limits),
        "checks": [_check(check) for check in words.told(audit.checks).to_dict("records")],
        "curve": Markup(figures.removal_curve(audit)),
        "explained": [cards.prediction(e, audit, limits) for e in audit.explained[: limits.explained]],
        "explained_more": max(len(audit.explained) - limits.explained, 0),
        "values": _values(audit),
        "slices": _slices(audit.slices),
        "slice_figure": Markup(figures.slices(audit.slices)),
        "groups": None if audit.groups is None or not len(audit.groups) else _table(audit.groups, first=100),
        "groups_more": 0 if audit.groups is None else max(len(audit.groups) - 100, 0),
        "columns": _columns(audit.columns),
        "columns_more": max(len(audit.columns) - 200, 0),
        "seconds": [(words.plain(s), f"{v:,.1f}") for s, v in audit.seconds.items()],
        "total": f"{sum(audit.seconds.values()):,.1f}",
    }


def _kind(audit: Audit, name: str, limits: Limits) -> dict[str, Any]:
    found = audit.issues[audit.issues["kind"] == name]
    trust = next((t for t in audit.trust if t.kind == name), None)
    shown = cards.of_kind(audit, name, limits)
    return {
        "id": "".join(c if c.isalnum() and c.isascii() else "-" for c in name),
        "kind": words.kind(name),
        "count": int(found["row"].nunique()),
        "worst_row": words.plain(found["row"].iloc[0]),
        "worst_reason": words.plain(found["reason"].iloc[0]),
        "trust": trust,
        "cards": shown,
        "more": int(found["row"].nunique()) - len(shown),
    }


def _check(check: words.Check) -> dict[str, Any]:
    """A self-check as its row in the table, its bars and its verdict in words."""
    metric, verdict = str(check["metric"]), words.verdict(check)

    def change(name: str, stem: str) -> tuple[str, str]:
        size, lower, upper = (words.change(metric, float(check[c])) for c in (name, f"{stem}_lower", f"{stem}_upper"))
        return size, f"{lower} to {upper}"

    return {
        "doing": words.doing(check),
        "metric": words.plain(metric) + (" (lower is better)" if words.lower_is_better(metric) else ""),
        "unit": words.unit(metric).strip(),
        "before": words.level(metric, float(check["before"])),
        "after": words.level(metric, float(check["after"])),
        "changes": [change("change", "change"), change("random_change", "random")],
        "gain": change("gain", "gain"),
        "splits": words.cell(check["splits"]),
        "verdict": verdict,
        "verdict_text": words.VERDICTS[verdict],
        "figure": Markup(figures.check(check)),
    }


def _values(audit: Audit) -> dict[str, Any] | None:
    """The histogram of values with what it says, or None where nothing was valued."""
    if not len(audit.values):
        return None
    value = audit.values["value"].astype(float)
    known = audit.values.dropna(subset=["value"])
    certain_help = certain_hurt = 0
    if {"value_lower", "value_upper"} <= set(known.columns):
        certain_help, certain_hurt = int((known["value_lower"] > 0).sum()), int((known["value_upper"] < 0).sum())
    return {
        "figure": Markup(figures.values(value.to_numpy())),
        "helping": int((value > 0).sum()),
        "hurting": int((value < 0).sum()),
        "certain_help": certain_help,
        "certain_hurt": certain_hurt,
        "median": words.signed(float(value.median())),
        "lowest": words.signed(float(value.min())),
        "highest": words.signed(float(value.max())),
    }


def _columns(columns: pd.DataFrame) -> dict[str, Any]:
    if "missing" in columns:
        percent = [f"{100 * float(m):.1f} %" if float(m) else "0" for m in columns["missing"]]
        columns = columns.assign(missing=percent)
    return _table(columns, first=200)


def _slices(frame: pd.DataFrame) -> dict[str, Any]:
    """The slices with each interval in one column."""
    if not len(frame):
        return _table(frame)
    ends = zip(frame["effect_lower"], frame["effect_upper"], strict=True)
    told = {
        "slice": frame["column"].astype(str) + " = " + frame["value"].astype(str),
        "n_train": frame["n_train"],
        "n_heldout": frame["n_heldout"],
        "effect": frame["effect"],
        "interval": [f"{words.signed(float(a))} to {words.signed(float(b))}" for a, b in ends],
        "reason": frame["reason"],
    }
    return _table(pd.DataFrame(told))


def _table(frame: pd.DataFrame, first: int = 100) -> dict[str, Any]:
    """Heads and cells, with which columns hold numbers; a group is a name even where names are numbers."""
    frame = frame.astype({"group": str}) if "group" in frame else frame
    numeric = [pd.api.types.is_numeric_dtype(frame[c]) or c in {"missing", "interval"} for c in frame.columns]
    rows: Iterable[tuple[Any, ...]] = frame.head(first).itertuples(index=False, name=None)
    heads = [HEADS.get(c, words.upfirst(words.plain(c).replace("_", " "))) for c in frame.columns]
    return {
        "heads": list(zip(heads, numeric, strict=True)),
        "rows": [[(words.cell(v), n) for v, n in zip(row, numeric, strict=True)] for row in rows],
    }
