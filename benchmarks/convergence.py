"""How fast solvers of a Gauss-Newton matrix come to the exact solution, in numbers and as a plot.

    python benchmarks/convergence.py [PLOT.svg]

A trained net of 1,046 parameters with 400 made-up examples, in float64, so that the matrix can be written out. Relative errors
‖s − s*‖ / ‖s*‖ of the scores of 8 queries at a damping of 1e-4 of the trace, against passes over the training examples (conjugate
gradients and LiSSA; a preconditioner's pass counts), or against the rank (Arnoldi and Nyström).
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import proponent as pp
from proponent.report.plots import label_at
from scatter import STYLE

Point = tuple[float, float]
COLORS = ("#3a68a8", "#8a5a00", "#a83a4f", "#2f7d57", "#6b4fa0", "#5c5f66")
RANKS = (10, 50, 100, 200, 400, 800, 1_046)

BUDGETS: dict[str, list[tuple[Any, int | None]]] = {
    "CG, Nyström of rank 100": [(pp.CG(1e-14, most=k, rank=100), None) for k in (1, 2, 4, 8, 12, 16, 24)],
    "CG": [(pp.CG(1e-14, most=k, preconditioner="none"), None) for k in (1, 4, 16, 64, 128, 256)],
    "LiSSA, batches of 40": [(pp.LiSSA(depth=k, batch=40), None) for k in (10, 100, 1_000, 10_000)],
    "LiSSA, all examples": [(pp.LiSSA(depth=k, batch=400), None) for k in (10, 100, 1_000, 8_000)],
    "Arnoldi (rank)": [(pp.Arnoldi(steps=k, rank=k), k) for k in RANKS],
    "Nyström (rank)": [(pp.Nystrom(rank=k), k) for k in RANKS],
}
"""Solvers by budget; the cost where it is not passes."""


def trained() -> tuple[pp.Task, tuple[torch.Tensor, torch.Tensor]]:
    """The net and its data."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 10), nn.Tanh(), nn.Linear(10, 4)).double()
    x = torch.randn(400, 20, dtype=torch.float64)
    y = (x[:, :4] + 0.5 * torch.randn(400, 4, dtype=torch.float64)).argmax(1)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return pp.Task(net.eval()), (x, y)


def errors() -> dict[str, list[Point]]:
    """(cost, relative error) by solver."""
    task, data = trained()
    few = data[0][:8], data[1][:8]

    def solve(solver: Any) -> tuple[np.ndarray, float]:
        spec = pp.Influence(curvature="ggn", solver=solver, damping=pp.Damping(1e-4, scale="trace"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pp.ProponentWarning)
            made = spec.fit(task, data).score(few).dataset
        return made["score"].to_numpy(), float(np.sum(json.loads(made.attrs["solver"]).get("passes", 0)))

    exact, _ = solve(pp.Explicit())
    found: dict[str, list[Point]] = {}
    for name, budgets in BUDGETS.items():
        for solver, cost in budgets:
            made, passes = solve(solver)
            paid = cost or passes + (getattr(solver, "preconditioner", "none") != "none")
            found.setdefault(name, []).append((paid, float(np.linalg.norm(made - exact) / np.linalg.norm(exact))))
        print(f"{name}: " + ", ".join(f"{c:,.0f}: {e:.1e}" for c, e in found[name]), flush=True)
    return found


def draw(found: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Both axes are logarithmic."""
    left, top, wide, high, top_cost, least = 70, 40, 460, 360, 4.2, -13
    x = lambda cost: left + wide * math.log10(cost) / top_cost  # noqa: E731
    y = lambda error: top + high * (2 - math.log10(max(error, 10**least))) / (2 - least)  # noqa: E731
    parts = [label_at(left, 22, "Relative error of scores, by solver", "start", "title")]
    for k in range(5):
        parts.append(f'<line class="grid" x1="{x(10**k):.1f}" x2="{x(10**k):.1f}" y1="{top}" y2="{top + high}"/>')
        parts.append(label_at(x(10**k), top + high + 18, f"{10**k:,}", "middle", "tick"))
    for k in range(2, least - 1, -2):
        parts.append(f'<line class="grid" x1="{left}" x2="{left + wide}" y1="{y(10**k):.1f}" y2="{y(10**k):.1f}"/>')
        parts.append(label_at(left - 8, y(10.0**k) + 4, "1" if k == 0 else f"1e{k}", "end", "tick"))
    for at, (name, curve) in enumerate(found.items()):
        line = " ".join(f"{x(max(c, 1)):.1f},{y(e):.1f}" for c, e in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLORS[at]}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(max(c, 1)):.1f}" cy="{y(e):.1f}" r="3" style="fill:{COLORS[at]}"/>' for c, e in curve
        ]
        parts.append(f'<rect x="{left + wide + 16}" y="{top + 24 * at}" width="14" height="4" fill="{COLORS[at]}"/>')
        parts.append(label_at(left + wide + 36, top + 24 * at + 7, name, "start"))
    parts.append(label_at(left + wide / 2, top + high + 42, "passes over the training examples, or rank", "middle"))
    size = f'width="{left + wide + 220}" height="{top + high + 60}"'
    body = STYLE + '<rect width="100%" height="100%" fill="#fff"/>' + "".join(parts)
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{body}</svg>\n', encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plot", nargs="?", type=Path, default=Path("runs/convergence.svg"))
    args = parser.parse_args(argv)
    found = errors()
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    draw(found, args.plot)
    print(f"drawn: {args.plot}")


if __name__ == "__main__":
    main()
