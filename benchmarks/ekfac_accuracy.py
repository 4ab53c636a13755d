"""What EK-FAC scores depend on: the short sums, the random signs, how many examples the curvature is fitted to.

    python benchmarks/ekfac_accuracy.py [--cases mlp cnn gpt]

Pearson correlation of all scores with those of the same model without the shortcut, of another seed, of the exact Fisher, and of
curvatures fitted to fewer examples. Damping .1 × each block's mean eigenvalue. And how much the sampled matrix varies in the
logits, E ‖v vᵀ − H‖² / ‖H‖² over the first training examples: v by random signs, and as the gradient at a drawn target.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import proponent as pp
from gradient_cases import CASES
from proponent.losses import root_of_softmax

POSITIONS = 2_000


def scores(task: Any, case: Any, kind: Any = None, **options: Any) -> Any:
    spec = pp.Influence(curvature=kind or pp.EKFAC(), damping=pp.Damping(0.1, scale="mean"), **options)
    return spec.fit(task, case.train).score(case.query).dataset.score.values.ravel()


def rows(name: str) -> dict[str, tuple[Any, Any]]:
    """What is compared with what."""
    case = CASES[name]()
    task = pp.Task(case.make(), loss=case.loss)
    base = scores(task, case)
    if name == "gpt":
        every = scores(task, case, pp.EKFAC(positions=None))
        some = {f"{k} examples": (scores(task, case, pp.EKFAC(positions=None, examples=k)), every) for k in (500, 250)}
        return {"default (400 examples)": (base, every), **some}
    return {
        "short sums": (base, scores(task, case, shortcut=0.0)),
        "another seed": (base, scores(task, case, pp.EKFAC(seed=1))),
        "exact Fisher": (base, scores(task, case, pp.EKFAC(fisher="exact"))),
    }


def variances(case: Any) -> tuple[float, float]:
    """Of random signs, and of drawn targets; signs vary by (tr H)² + ‖H‖² − 2 Σ_j ‖column j of the root‖⁴."""
    task = pp.Task(case.make(), loss=case.loss)
    with torch.no_grad(), task.watching():
        batch = tuple(t[: POSITIONS // case.train[1][0].numel()] for t in case.train)
        logits, _ = task._loss.positions(task._loss.output(task.net, batch), batch)
        p = logits.flatten(0, 1).double().softmax(1)
    one = torch.eye(p.shape[1], dtype=p.dtype)
    columns = root_of_softmax(p[:, None].expand(-1, len(one), -1), one)
    h = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    size, trace = h.square().sum((1, 2)), h.diagonal(dim1=1, dim2=2).sum(1)
    signs = trace**2 + size - 2 * columns.square().sum(2).square().sum(1)
    drawn = (p * (one - p[:, None]).square().sum(2) ** 2).sum(1) - size
    return float(signs.sum() / size.sum()), float(drawn.sum() / size.sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", default=["mlp", "cnn"])
    torch.set_num_threads(2)
    for name in parser.parse_args().cases:
        signs, drawn = variances(CASES[name]())
        print(f"{name:10}variance: random signs {signs:.2f}, drawn targets {drawn:.2f}", flush=True)
        for what, (one, other) in rows(name).items():
            print(f"{name:10}{what:26}r = {np.corrcoef(one, other)[0, 1]:.5f}", flush=True)


if __name__ == "__main__":
    main()
