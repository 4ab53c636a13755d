"""What the report's cards show: a row, a text or an image, cut to a length that a page can hold."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from proponent.examples import Description
from proponent.report import words
from proponent.report.plots import meter
from proponent.report.png import png, shrink

if TYPE_CHECKING:
    from proponent.audit.result import Audit, Explained, Neighbour

Field = tuple[str, str, bool]
UNFOLDED = 16  # columns shown before the fold
TOLD = ("row", "kind", "severity", "reason", "suggested", "other")


@dataclass(frozen=True)
class Limits:
    """How much of a large audit goes on the page; the rest is in the tables beside it."""

    rows: int = 20
    explained: int = 8
    neighbours: int = 4
    fields: int = 60
    characters: int = 4000
    pixels: int = 128


@dataclass(frozen=True)
class Shown:
    """An example as the template draws it.

    Args:
        fields, more_fields: (column, value, whether it differs from the example compared with); the latter folded.
        teaser, text: the start of a text and all of it; `teaser` is empty where the text is short.
        left_out: how many columns or characters are not on the page, in words.
        image: a data: URI, with its size in pixels and a description in words.
    """

    fields: list[Field]
    more_fields: list[Field]
    teaser: str
    text: str
    left_out: str
    image: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Card:
    """A row with all that was found about it."""

    noun: str  # "row", or "slice" where the finding is about many rows at once
    row: str
    severity: float
    severity_bar: str
    label: str
    findings: list[tuple[str, str, str]]  # kind, reason, suggested
    evidence: list[Field]
    shown: Shown | None
    other: str
    other_label: str
    other_shown: Shown | None


@dataclass(frozen=True)
class Side:
    """A training row beside a prediction."""

    row: str
    label: str
    score: str
    interval: str
    bar: str
    shown: Shown


def show(
    description: Description,
    label: str,
    limits: Limits,
    *,
    name: str,
    teaser: int = 320,
    beside: Description | None = None,
) -> Shown:
    """What is drawn of an example; the label is told apart from the fields."""
    pairs = [
        (words.plain(k), words.plain(v), beside is not None and beside.fields.get(k, v) != v)
        for k, v in description.fields.items()
        if k not in {label, "label"}
    ]
    left_out = f"{len(pairs) - limits.fields:,} more columns" if len(pairs) > limits.fields else ""
    text = words.plain(description.text or "")
    if len(text) > limits.characters:
        left_out = f"{len(text) - limits.characters:,} more characters"
        text = text[: limits.characters]
    start = text[:teaser].rsplit(" ", 1)[0] if len(text) > teaser + 80 else ""
    uri, height, width = "", 0, 0
    if description.image is not None:
        uri = picture_uri(description.image, limits)
        height, width = description.image.shape[:2]
    truth = label_of(description, label)
    alt = f"{name}, {width} by {height} pixels" + (f", labelled {truth}" if truth else "")
    return Shown(pairs[:UNFOLDED], pairs[UNFOLDED : limits.fields], start, text, left_out, uri, width, height, alt)


def picture_uri(pixels: Any, limits: Limits) -> str:
    """A picture as a data: URI, no larger than the limit."""
    return "data:image/png;base64," + base64.b64encode(png(shrink(pixels, limits.pixels))).decode()


def label_of(description: Description | None, label: str) -> str:
    """The label among an example's fields, or nothing."""
    if description is None:
        return ""
    return words.plain(description.fields.get(label, description.fields.get("label", "")))


def card(found: pd.DataFrame, audit: Audit, limits: Limits) -> Card:
    """The card of one row from all issues found about it, worst first."""
    row, severity = str(found["row"].iloc[0]), float(found["severity"].iloc[0])
    description = audit.shown.get(row)
    others = [_name(o) for o in found["other"] if _given(o)] if "other" in found else []
    other = others[0] if others else ""
    beside = audit.shown.get(other)
    pair = description if description is not None and beside is not None else None
    return Card(
        noun="slice" if found["kind"].iloc[0] == "slice" else "row",
        row=words.plain(row),
        severity=severity,
        severity_bar=meter(severity, severity, severity, 1.0, "plain"),
        label=label_of(description, audit.label),
        findings=_findings(found),
        evidence=_evidence(found),
        shown=None if description is None else show(description, audit.label, limits, name=f"row {words.plain(row)}"),
        other=words.plain(other),
        other_label=label_of(beside, audit.label),
        other_shown=None
        if beside is None
        else show(beside, audit.label, limits, name=f"row {words.plain(other)}", beside=pair),
    )


def _name(row: object) -> str:
    """A row's id as text; a column of integers with gaps comes as floats."""
    return str(int(row)) if isinstance(row, float) and row.is_integer() else str(row)


def _given(value: object) -> bool:
    return words.cell(value) not in {"–", ""}


def _findings(found: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Each kind once, with its reason and what is suggested."""
    told: dict[str, tuple[str, str]] = {}
    for issue in found.to_dict("records"):
        reason, suggested = (words.cell(issue.get(c)) if _given(issue.get(c)) else "" for c in ("reason", "suggested"))
        stop = "." if reason and reason[-1] not in ".!?…" else ""
        told.setdefault(str(issue["kind"]), (words.upfirst(reason) + stop, suggested))
    return [(words.kind(name).name, *said) for name, said in told.items()]


def _evidence(found: pd.DataFrame) -> list[Field]:
    """The first value that is given in each column that is not told elsewhere, with its interval where it has one."""
    evidence = {}
    for column in (c for c in found.columns if c not in TOLD):
        given = [words.cell(v) for v in found[column] if _given(v)]
        if given:
            evidence[words.plain(column).replace("_", " ")] = given[0]
    for name in [n for n in evidence if {f"{n} lower", f"{n} upper"} <= set(evidence)]:
        evidence[name] += f" [{evidence.pop(f'{name} lower')}, {evidence.pop(f'{name} upper')}]"
    return [(name, value, False) for name, value in evidence.items()]


def worst(audit: Audit, count: int, limits: Limits) -> list[Card]:
    """The worst rows over all kinds of findings, each row once."""
    issues = audit.issues
    if not len(issues):
        return []
    rows = list(dict.fromkeys(issues.loc[issues["kind"] != "slice", "row"]))[:count]
    return [card(issues[(issues["row"] == row) & (issues["kind"] != "slice")], audit, limits) for row in rows]


def of_kind(audit: Audit, kind: str, limits: Limits) -> list[Card]:
    """The worst rows of one kind."""
    found = audit.issues[audit.issues["kind"] == kind]
    rows = list(dict.fromkeys(found["row"]))[: limits.rows]
    return [card(found[found["row"] == row], audit, limits) for row in rows]


def prediction(explained: Explained, audit: Audit, limits: Limits) -> dict[str, Any]:
    """One prediction with its proponents and opponents, bars on a common scale."""
    proponents = explained.proponents[: limits.neighbours]
    opponents = explained.opponents[: limits.neighbours]
    sizes = [abs(v) for n in proponents + opponents for v in (n.score, n.lower, n.upper) if math.isfinite(v)]
    largest = max(sizes, default=1.0)
    power = words.power_of_ten(largest)
    scale = largest, power
    return {
        "certified": any(not math.isnan(n.lower + n.upper) for n in proponents + opponents),
        "query": words.plain(explained.query),
        "label": words.plain(explained.label),
        "predicted": words.plain(explained.predicted),
        "probability": None if explained.probability is None else f"{100 * explained.probability:.0f} %",
        "wrong": bool(audit.classes) and explained.label != explained.predicted,
        "shown": show(explained.shown, audit.label, limits, name=f"held-out row {words.plain(explained.query)}"),
        "times": words.times(power) if power else "",
        "sides": [
            ("Proponents", "for it", [_side(n, audit, limits, scale) for n in proponents]),
            ("Opponents", "against it", [_side(n, audit, limits, scale) for n in opponents]),
        ],
    }


def _side(n: Neighbour, audit: Audit, limits: Limits, scale: tuple[float, int]) -> Side:
    largest, power = scale
    score, lower, upper = (v / 10.0**power for v in (n.score, n.lower, n.upper))
    return Side(
        row=words.plain(n.row),
        label=words.plain(n.label),
        score=words.signed(score),
        interval="" if math.isnan(lower + upper) else f"[{words.number(lower)}, {words.number(upper)}]",
        bar=meter(n.score, n.lower, n.upper, largest, "helps" if n.score > 0 else "hurts"),
        shown=show(n.shown, audit.label, limits, name=f"training row {words.plain(n.row)}", teaser=160),
    )
