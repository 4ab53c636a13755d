"""Plots of an evaluation as SVG text: scores with their intervals beside what they cost, and predictions beside the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from proponent.report.plots import (
    LETTER,
    WIDE,
    Tone,
    axis,
    cut_to,
    drawing,
    label_at,
    ticks,
    whisker,
    x_ticks,
)
from proponent.report.words import plain

Array = np.ndarray[Any, np.dtype[Any]]
Scale = Callable[[float], float]
ROOM = 52  # px between two labels of the axis of seconds


@dataclass(frozen=True)
class Row:
    """A method's score with its interval, and its cost; `shown` says both."""

    name: str
    value: float
    lower: float
    upper: float
    seconds: float
    shown: str
    tone: Tone


def scores(rows: Sequence[Row], ceiling: float, width: int, label: str) -> str:
    """A dot with its interval per method and the ceiling as a line; at the right what each cost, on a log scale.

    >>> row = Row("ekfac", 0.4, 0.3, 0.5, 2.0, "0.4", "plain")
    >>> drawn = scores([row], 0.9, 720, "LDS")
    >>> drawn.count("<circle"), drawn.count("ceiling")
    (2, 2)
    """
    narrow = width < WIDE
    left, split, gap = (8.0, width * 0.62, 30.0) if narrow else (168.0, width * 0.74, 34.0)
    pitch, top = (46, 40) if narrow else (30, 40)
    bottom = top + pitch * len(rows)
    ends = [v for r in rows for v in (r.value, r.lower, r.upper) if math.isfinite(v)] + [0.0]
    ends += [ceiling] if math.isfinite(ceiling) else []
    pad = 0.05 * (max(ends) - min(ends)) or 0.1
    x = axis(min(ends) - pad, max(ends) + pad, left, split)
    cost, ticks = _seconds([r.seconds for r in rows], split + gap, width - 16)
    parts = _heads(x, ceiling, cost is not None, split + gap, top, bottom)
    for i, row in enumerate(rows):
        parts.append(_row(row, x, cost, top + i * pitch, narrow))
    parts += x_ticks(min(ends) - pad, max(ends) + pad, x, bottom + 4, int(split) + 20)
    parts += _cost_ticks(cost, ticks, bottom + 4, split + gap, width)
    parts.append(
        label_at((left + split) / 2, bottom + 44, cut_to(label, int((split - left) / LETTER) + 6), "middle", "axis")
    )
    return drawing(width, bottom + 52, label, "".join(parts))


def _heads(x: Scale, ceiling: float, costs: bool, start: float, top: float, bottom: float) -> list[str]:
    """The line at zero, the ceiling, and what the right panel is."""
    parts = [_rule("zero", x(0.0), top - 8, bottom + 4)]
    if math.isfinite(ceiling):
        parts.append(_rule("ceiling", x(ceiling), top - 8, bottom + 4))
        parts.append(label_at(x(ceiling), top - 14, f"ceiling {ceiling:.2f}", "end", "tick"))
    if costs:
        parts.append(label_at(start, top - 14, "time", "start", "tick"))
    return parts


def _row(row: Row, x: Scale, cost: Scale | None, y: float, narrow: bool) -> str:
    middle = y + (30 if narrow else 15)
    inside = f"<title>{escape(plain(f'{row.name}: {row.shown}'))}</title>"
    letters = 44 if narrow else 21
    place = (4, y + 14, "start") if narrow else (156, middle + 4, "end")
    inside += label_at(place[0], place[1], cut_to(row.name, letters), place[2], "name")
    if math.isfinite(row.lower) and math.isfinite(row.upper):
        inside += whisker(x(row.lower), x(row.upper), middle)
    if math.isfinite(row.value):
        inside += _dot(x(row.value), middle, row.tone)
    if cost is not None and math.isfinite(row.seconds):
        inside += _dot(cost(row.seconds), middle, row.tone, 4)
    return f"<g>{inside}</g>"


def _seconds(seconds: Sequence[float], start: float, end: float) -> tuple[Scale | None, list[float]]:
    """The logarithmic axis of cost with its ticks; nothing where no cost is known."""
    known = [max(s, 1e-4) for s in seconds if math.isfinite(s)]
    if not known:
        return None, []
    first, last = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)) + 1e-9)
    last = max(last, first + 1)
    line = axis(first, last, start + 8, end)
    step = max(1, math.ceil((last - first) / max(1, int((end - start) / ROOM))))
    return (lambda s: line(math.log10(max(s, 1e-4)))), [10.0**p for p in range(first, last + 1, step)]


def _cost_ticks(cost: Scale | None, ticks: list[float], y: float, start: float, width: int) -> list[str]:
    if cost is None:
        return []
    parts = [f'<line class="base" x1="{start:.1f}" x2="{width - 6}" y1="{y:.1f}" y2="{y:.1f}"/>']
    for tick in ticks:
        shown = f"{tick * 1000:g} ms" if tick < 0.1 else f"{tick:,g} s"
        half = LETTER * len(shown) / 2
        parts.append(label_at(min(cost(tick), width - half), y + 17, shown, "middle", "tick"))
    return parts


def cloud(x: Array, y: Array, width: int, x_label: str, y_label: str) -> str:
    """Points on equal axes about zero, with the diagonal on which a perfect prediction lies.

    >>> cloud(np.array([-1.0, 1.0]), np.array([-1.0, 1.0]), 340, "predicted", "actual").count("<circle")
    2
    """
    size, left, top, bottom = min(width, 460), 40, 26, 46
    most = float(np.abs(np.concatenate([x, y, [1.0]])).max()) * 1.05
    across, up = axis(-most, most, left, size - 10), axis(-most, most, size - bottom, top)
    parts = [label_at(0, 14, cut_to(y_label, int(size / LETTER)), "start", "axis")]
    for tick, shown in ticks(-most, most, 5):
        parts.append(f'<line class="grid" x1="{left}" x2="{size - 10}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(label_at(left - 8, up(tick) + 4, shown, "end", "tick"))
    ends = f'x1="{across(-most):.1f}" y1="{up(-most):.1f}" x2="{across(most):.1f}" y2="{up(most):.1f}"'
    parts.append(f'<line class="diagonal" {ends}/>')
    points = zip(x, y, strict=True)
    parts.append(f'<g class="cloud">{"".join(_point(across(a), up(b)) for a, b in points)}</g>')
    parts.append(f'<line class="base" x1="{left}" x2="{size - 10}" y1="{size - bottom}" y2="{size - bottom}"/>')
    parts += [
        label_at(across(tick), size - bottom + 17, shown, "middle", "tick") for tick, shown in ticks(-most, most, 5)
    ]
    parts.append(label_at((left + size - 10) / 2, size - 6, cut_to(x_label, int(size / LETTER)), "middle", "axis"))
    return drawing(size, size, f"{y_label} over {x_label}", "".join(parts))


def _point(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>'


def _dot(x: float, y: float, tone: str, radius: float = 5) -> str:
    return f'<circle class="dot {tone}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def _rule(css: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{css}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
