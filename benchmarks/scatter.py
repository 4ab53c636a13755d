"""A scatter of predicted against actual changes, as one SVG file, drawn with the parts of the report's plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from proponent.report.plots import axis, label_at, ticks

STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#1c1d1f}.tick{fill:#5c5f66;font-size:12px}.title{font-weight:600}"
    ".grid{stroke:#e2dfd8}.same{stroke:#85898f;stroke-dasharray:4 4}circle{fill:#3a68a8;fill-opacity:.55}</style>"
)


def scatter(path: Path, title: str, predicted: np.ndarray, actual: np.ndarray, below: str) -> None:
    """Actual changes across, predicted ones up, on one scale, with the line where they are the same.

    Args:
        path: of the SVG.
        title, below: above and beneath the plot.
    """
    side, left, top = 420, 70, 40
    ends = [float(v) for v in (min(predicted.min(), actual.min()), max(predicted.max(), actual.max()))]
    pad = 0.06 * (ends[1] - ends[0]) or 1.0
    low, high = ends[0] - pad, ends[1] + pad
    x, y = axis(low, high, left, left + side), axis(low, high, top + side, top)
    parts = [label_at(left, 22, title, "start", "title")]
    for at, shown in ticks(low, high, 5):
        parts.append(f'<line class="grid" x1="{left}" x2="{left + side}" y1="{y(at):.1f}" y2="{y(at):.1f}"/>')
        parts.append(f'<line class="grid" y1="{top}" y2="{top + side}" x1="{x(at):.1f}" x2="{x(at):.1f}"/>')
        parts.append(label_at(left - 8, y(at) + 4, shown, "end", "tick"))
        parts.append(label_at(x(at), top + side + 18, shown, "middle", "tick"))
    parts.append(f'<line class="same" x1="{x(low)}" y1="{y(low)}" x2="{x(high)}" y2="{y(high)}"/>')
    parts += [f'<circle cx="{x(a):.1f}" cy="{y(p):.1f}" r="3"/>' for a, p in zip(actual, predicted, strict=True)]
    parts.append(label_at(left + side / 2, top + side + 42, "actual difference in the query's loss", "middle"))
    parts.append(label_at(left, top + side + 64, below, "start", "tick"))
    parts.append(
        f'<g transform="translate(16 {top + side / 2}) rotate(-90)">{label_at(0, 0, "predicted", "middle")}</g>'
    )
    size = f'width="{left + side + 20}" height="{top + side + 80}"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    body = STYLE + background + "".join(parts)
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{body}</svg>\n', encoding="utf-8")
