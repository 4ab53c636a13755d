"""The page of an attribution: one file that opens offline; queries, the examples behind them, method and cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from proponent.report import plots, words
from proponent.report.cards import Limits, picture_uri, show
from proponent.report.html import fill, write_fitting
from proponent.report.plots import meter
from proponent.report.saliency import by_pixel, colours

if TYPE_CHECKING:
    from proponent.experiment.answer import Answer, Cost, Explained, Neighbour

STEPS = (
    Limits(explained=20, neighbours=8, pixels=96),
    Limits(explained=20, neighbours=6, fields=40, characters=2000, pixels=64),
    Limits(explained=12, neighbours=4, fields=24, characters=1000, pixels=48),
    Limits(explained=8, neighbours=3, fields=16, characters=500, pixels=32),
)
TEXTS = 5  # texts or rows beside a query; of pictures more can be taken in at a glance
OPEN = 4  # queries that are unfolded
NAMED = 12  # ids of what was set aside


def write_page(answer: Answer, path: str | Path) -> None:
    """Write the page of an attribution.

    A page beyond 1.5 MB shows fewer and smaller examples; all of them stand in the tables beside it.

    Args:
        answer: the finished attribution.
        path: where to write; the folder must exist.
    """
    write_fitting(lambda limits: render(answer, limits), STEPS, path)


def render(answer: Answer, limits: Limits) -> str:
    """The page as text."""
    view = {
        "answer": answer,
        "queries": [_query(e, limits) for e in answer.explained[: limits.explained]],
        "queries_more": answer.n_query - min(len(answer.explained), limits.explained),
        "opened": OPEN,
        "cost": _cost(answer.cost),
        "histogram": _histogram(answer),
        "share": _share(answer),
        "frequent": _frequent(answer.frequent) if answer.n_query > 2 else [],
        "selfs": [_side(n, limits, _scale(answer.self_shown)) for n in answer.self_shown],
        "selfs_pictures": bool(answer.self_shown) and answer.self_shown[0].shown.kind == "image",
        "set_aside": [_aside(axis, ids) for axis, ids in answer.set_aside.items()],
        "damping": _damping(answer.damping),
        "choices": [(words.plain(k).replace("_", " "), words.cell(_choice(v))) for k, v in answer.choices.items()],
        "seconds": [(words.upfirst(stage), f"{v:,.1f}") for stage, v in answer.seconds.items()],
        "total": f"{sum(answer.seconds.values()):,.1f}",
    }
    return fill("attribution.html", view, ("report.css", "attribution.css"))


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(0.042), duration(3.21), duration(200), duration(9000)
    ('0.04 s', '3.2 s', '3 min 20 s', '2 h 30 min')
    """
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min"


def size(megabytes: float) -> str:
    """An amount of memory.

    >>> size(0.2), size(312.4), size(20480)
    ('0.2 MB', '312 MB', '20 GB')
    """
    if megabytes >= 1024:
        return f"{megabytes / 1024:.3g} GB"
    return f"{megabytes:.1f} MB" if megabytes < 10 else f"{megabytes:.0f} MB"


def _query(e: Explained, limits: Limits) -> dict[str, Any]:
    """One query with both sides, bars on a common scale."""
    pictures = bool(e.proponents + e.opponents) and all(n.shown.kind == "image" for n in e.proponents + e.opponents)
    most = limits.neighbours if pictures else min(limits.neighbours, TEXTS)
    sides = e.proponents[:most], e.opponents[:most]
    scale = _scale(sides[0] + sides[1])
    return {
        "id": words.plain(e.query),
        "label": words.plain(e.label),
        "predicted": words.plain(e.predicted),
        "measured": e.measured,
        "wrong": bool(e.predicted and e.label) and e.predicted != e.label,
        "shown": show(e.shown, "label", limits, name=f"query {words.plain(e.query)}"),
        "pictures": pictures,
        "saliency": _saliency(e, limits),
        "times": words.times(scale[1]) if scale[1] else "",
        "sides": [
            (name, stance, [_side(n, limits, scale) for n in side])
            for name, stance, side in (
                ("Proponents", "raise its measurement", sides[0]),
                ("Opponents", "lower it", sides[1]),
            )
        ],
    }


def _saliency(e: Explained, limits: Limits) -> dict[str, Any] | None:
    """The strongest proponent's picture and the colours of its slopes, where they are of one size."""
    if e.slopes is None or not e.proponents or not np.isfinite(e.slopes).all():
        return None
    first, flat = e.proponents[0], by_pixel(e.slopes)
    if first.shown.image is None or first.shown.image.shape[:2] != flat.shape:
        return None
    return {
        "id": words.plain(first.id),
        "shown": show(first.shown, "label", limits, name=f"training example {words.plain(first.id)}"),
        "map": picture_uri(colours(e.slopes), limits),
        "largest": words.number(float(np.abs(flat).max())),
    }


def _scale(neighbours: tuple[Neighbour, ...]) -> tuple[float, int]:
    """The largest |score|, and the power of ten that the scores are written in."""
    largest = max((abs(n.score) for n in neighbours if np.isfinite(n.score)), default=1.0)
    return largest, words.power_of_ten(largest)


def _side(n: Neighbour, limits: Limits, scale: tuple[float, int]) -> dict[str, Any]:
    largest, power = scale
    return {
        "id": words.plain(n.id),
        "label": words.plain(n.label),
        "score": words.signed(n.score / 10.0**power),
        "bar": meter(n.score, np.nan, np.nan, largest, "helps" if n.score > 0 else "hurts"),
        "shown": show(n.shown, "label", limits, name=f"training example {words.plain(n.id)}", teaser=200),
    }


def _cost(cost: Cost) -> list[tuple[str, str, str]]:
    """What, taken, predicted."""
    guess, peak = (None, None) if cost.resumed else (cost.predicted_seconds, cost.predicted_memory_mb)
    rows = [("time", duration(cost.seconds), "–" if guess is None else duration(guess))]
    if cost.memory_mb is not None:
        rows.append(("peak memory of the process", size(cost.memory_mb), "–" if peak is None else size(peak)))
    return rows


def _histogram(answer: Answer) -> Markup:
    sample, power = answer.sample, 0
    if len(sample):
        power = words.power_of_ten(float(np.quantile(np.abs(sample), 0.99)))
    label = f"score{', ' + words.times(power) if power else ''} (positive = proponent)"
    return Markup(plots.responsive(lambda width: plots.histogram(sample / 10.0**power, width, label)))


def _damping(choice: Mapping[str, Any]) -> dict[str, Any]:
    """The damping in words, and the curve that it was chosen by."""
    if not choice:
        return {}
    value, scale = float(choice["value"]), str(choice["scale"])
    times = {"mean": " × each layer's mean eigenvalue", "trace": " × the sum of the eigenvalues"}.get(scale, "")
    shown = {"value": f"{value:.3g}{times}", "reason": words.plain(choice["reason"]), "curve": Markup("")}
    if choice.get("tried"):
        x, y = np.log10(np.array(choice["tried"])), np.array(choice["agreement"])
        line, chosen = plots.Line("", x, y, y, y, "plain"), np.array([np.log10(value)] * 2)
        ends = np.array([y.min(), y.max()])
        mark = plots.Line("", chosen, ends, ends, ends, "random")
        label = f"damping{times.replace(' × ', ', as a multiple of ')} (powers of ten)"
        shown["curve"] = Markup(
            plots.responsive(
                lambda width: plots.curve([mark, line], width, label, "rank correlation with retrained models")
            )
        )
    return shown


def _share(answer: Answer) -> str:
    """How many of all scores are positive."""
    return f"{100 * float((answer.sample > 0).mean()):.0f} %" if len(answer.sample) else "–"


def _frequent(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of the table, where some example stands behind more than one query."""
    return [
        {str(k): words.plain(v) if k in ("id", "label") else words.cell(v) for k, v in row.items()}
        for row in frame[frame["queries"] > 1].to_dict("records")
    ]


def _aside(axis: str, ids: list[Any]) -> tuple[str, str]:
    many = "training example" if axis == "train" else "query"
    noun = many if len(ids) == 1 else {"query": "queries"}.get(many, many + "s")
    named = ", ".join(words.plain(i) for i in ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
    return f"{len(ids):,} {noun}", named


def _choice(value: Any) -> Any:
    """A setting as a cell: what is inside a mapping is spelt out."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value
