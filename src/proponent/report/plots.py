"""Plots as SVG text: pure functions of numbers, colours left to the page's style sheet.

Every plot is drawn twice, for a wide and for a narrow page, because letters that shrink with the picture cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np

from proponent.report.words import number, plain

Array = np.ndarray[Any, np.dtype[Any]]
Tone = Literal["helps", "hurts", "plain", "random"]
WIDE, NARROW = 720, 340
LETTER = 7.2  # widest usual advance of a 13 px letter, in px; decides where labels are cut


@dataclass(frozen=True)
class Bar:
    """A bar from zero to `value` with the interval [lower, upper]; `shown` is the value in words."""

    label: str
    value: float
    lower: float
    upper: float
    shown: str
    tone: Tone


@dataclass(frozen=True)
class Line:
    """A curve with a band [lower, upper]."""

    name: str
    x: Array
    middle: Array
    lower: Array
    upper: Array
    tone: Tone


def responsive(draw: Callable[[int], str]) -> str:
    """The plot at both widths; the style sheet shows one of them."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def histogram(values: Array, width: int, label: str) -> str:
    """How many values fall where; values beyond the 1st and 99th percentile are counted in the end bars.

    >>> histogram(np.array([-1.0, 0.5, 0.6, 2.0]), 340, "value").count("<rect")
    3
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return drawing(width, 40, label, label_at(width / 2, 24, "no values", "middle"))
    low, high = np.quantile(finite, [0.01, 0.99])
    step = _step(max(high - low, 1e-12), width / 18)
    first, last = math.floor(low / step), max(math.floor(high / step) + 1, math.floor(low / step) + 1)
    edges = np.arange(first, last + 1) * step
    counts, _ = np.histogram(np.clip(finite, edges[0], edges[-1]), edges)
    height, left, bottom, top = 240, 54, 46, 12
    x, y = axis(edges[0], edges[-1], left, width - 10), axis(0, counts.max(), height - bottom, top)
    parts = _y_grid(counts.max(), y, left, width)
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            tone = "hurts" if (start + end) / 2 < 0 else "helps"
            title = f"{number(start)} to {number(end)}: {count:,} rows"
            parts.append(_rect(x(start) + 0.5, y(count), max(x(end) - x(start) - 1, 0.8), y(0) - y(count), tone, title))
    parts += x_ticks(edges[0], edges[-1], x, height - bottom, width)
    if edges[0] < 0 < edges[-1]:
        parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{top}" y2="{height - bottom}"/>')
    parts.append(label_at((left + width - 10) / 2, height - 6, label, "middle", "axis"))
    return drawing(width, height, label, "".join(parts))


def curve(lines: Sequence[Line], width: int, x_label: str, y_label: str) -> str:
    """Curves with their bands over a common axis, each named at its end."""
    height, left, bottom, top = 300, 54, 46, 30
    xs = np.concatenate([line.x for line in lines])
    ys = np.concatenate([part for line in lines for part in (line.lower, line.upper, line.middle)])
    ys = ys[np.isfinite(ys)]
    low, high = (float(ys.min()), float(ys.max())) if len(ys) else (0.0, 1.0)
    pad = 0.06 * (high - low) or 0.5
    x = axis(float(xs.min()), float(xs.max()), left, width - 14)
    y = axis(low - pad, high + pad, height - bottom, top)
    parts = [label_at(0, 14, cut_to(y_label, int(width / LETTER)), "start", "axis")]
    for tick, shown in ticks(low - pad, high + pad, 5):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 14}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(label_at(left - 8, y(tick) + 4, shown, "end", "tick"))
    for line in lines:
        there = np.isfinite(line.middle)
        known = there & np.isfinite(line.lower) & np.isfinite(line.upper)  # a single split has no interval
        forward = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x[known], line.upper[known], strict=True)]
        back = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x[known], line.lower[known], strict=True)]
        middle = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x[there], line.middle[there], strict=True)]
        parts.append(f'<polygon class="band {line.tone}" points="{" ".join(forward + back[::-1])}"/>')
        parts.append(f'<polyline class="line {line.tone}" points="{" ".join(middle)}"/>')
    parts += x_ticks(float(xs.min()), float(xs.max()), x, height - bottom, width)
    parts.append(label_at((left + width - 14) / 2, height - 6, x_label, "middle", "axis"))
    return drawing(width, height, f"{y_label} over {x_label}", "".join(parts))


def bars(rows: Sequence[Bar], width: int, label: str) -> str:
    """One bar with its interval per row, the name above it and the value at its right, over a common zero."""
    edges = [v for bar in rows for v in (bar.value, bar.lower, bar.upper) if math.isfinite(v)] + [0.0]
    low, high = min(edges), max(edges)
    pad = 0.04 * (high - low) or 1.0
    x, narrow = axis(low - pad, high + pad, 6, width - 6), width < WIDE
    pitch = 64 if narrow else 46
    height = pitch * len(rows) + 48
    parts = []
    for i, bar in enumerate(rows):
        top, middle = 18 + i * pitch, pitch - 14 + i * pitch
        room = int((width - 20 - (0 if narrow else LETTER * len(bar.shown))) / LETTER)
        parts.append(f"<g><title>{escape(plain(f'{bar.label}: {bar.shown}'))}</title>")
        parts.append(label_at(4, top, cut_to(bar.label, room), "start", "name"))
        parts.append(
            label_at(4, top + 17, bar.shown, "start", "amount")
            if narrow
            else label_at(width - 4, top, bar.shown, "end", "amount")
        )
        parts.append(f'<line class="base" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{middle - 10}" y2="{middle + 10}"/>')
        if math.isfinite(bar.value):
            start, end = sorted((x(0), x(bar.value)))
            parts.append(_rect(start, middle - 6, max(end - start, 1), 12, bar.tone))
        if math.isfinite(bar.lower) and math.isfinite(bar.upper):
            parts.append(whisker(x(bar.lower), x(bar.upper), middle))
        parts.append("</g>")
    parts += x_ticks(low - pad, high + pad, x, height - 40, width)
    parts.append(label_at(width / 2, height - 4, cut_to(label, int(width / LETTER)), "middle", "axis"))
    return drawing(width, height, label, "".join(parts))


def meter(value: float, lower: float, upper: float, largest: float, tone: Tone) -> str:
    """A small bar of |value| with its interval, as a share of `largest`."""
    x = axis(0, largest or 1.0, 1, 119)
    inside = ""
    if math.isfinite(value):
        inside += _rect(1, 3, max(x(min(abs(value), largest)) - 1, 1), 8, tone)
    if math.isfinite(lower) and math.isfinite(upper):
        start, end = sorted(min(max(x(v if value > 0 else -v), 1), 119) for v in (lower, upper))
        inside += whisker(start, end, 7, 3)
    return f'<svg class="meter" viewBox="0 0 120 14" aria-hidden="true">{inside}</svg>'


def drawing(width: int, height: int, label: str, inside: str) -> str:
    name = escape(plain(label))
    return f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{inside}</svg>'


def axis(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The straight line that takes [low, high] to [start, end]."""
    span = (high - low) or 1.0
    return lambda v: start + (float(v) - low) / span * (end - start)


def _step(span: float, count: float) -> float:
    """The smallest of 1, 2, 5 × 10ᵏ that cuts the span into `count` parts or fewer."""
    rough = span / max(count, 1)
    power = float(10.0 ** math.floor(math.log10(rough)))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= rough * (1 - 1e-9))


def ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    step = _step(max(high - low, 1e-12), count)
    at = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    decimals = max(0, -math.floor(math.log10(step)))
    if 1e-4 <= step < 1e6:
        return [(v, f"{v:,.{decimals}f}".replace("-", "−")) for v in at]
    return [(v, number(v)) for v in at]


def x_ticks(low: float, high: float, x: Callable[[float], float], y: float, width: int) -> list[str]:
    count = 7 if width > 500 else 4
    parts = [f'<line class="base" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>']
    for tick, shown in ticks(low, high, count):
        half = LETTER * len(shown) / 2
        parts.append(label_at(min(max(x(tick), half), width - half), y + 17, shown, "middle", "tick"))
    return parts


def _y_grid(most: float, y: Callable[[float], float], left: float, width: int) -> list[str]:
    parts = []
    for tick, shown in ticks(0, float(most), 4):
        if tick == int(tick):
            parts.append(f'<line class="grid" x1="{left}" x2="{width - 10}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
            parts.append(label_at(left - 8, y(tick) + 4, shown, "end", "tick"))
    return parts


def label_at(x: float, y: float, text: str, anchor: str, css: str = "") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(plain(text))}</text>'


def _rect(x: float, y: float, width: float, height: float, tone: str, title: str = "") -> str:
    inside = f"<title>{escape(plain(title))}</title>" if title else ""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="bar {tone}" {place}>{inside}</rect>'


def whisker(start: float, end: float, y: float, half: float = 5) -> str:
    ends = "".join(f"M{v:.1f} {y - half:.1f}V{y + half:.1f}" for v in (start, end))
    return f'<path class="whisker" d="M{start:.1f} {y:.1f}H{end:.1f}{ends}"/>'


def cut_to(text: str, letters: int) -> str:
    text = plain(text)
    return text if len(text) <= letters else text[: max(letters - 1, 1)] + "…"
