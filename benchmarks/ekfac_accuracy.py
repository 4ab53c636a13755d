"""What EK-FAC scores depend on: the short sums, the drawn targets, how many examples the curvature is fitted to.

    python benchmarks/ekfac_accuracy.py [--cases mlp cnn gpt]

Pearson correlation of all scores with those of the same model without the shortcut, of another seed, of the exact Fisher, and of
curvatures fitted to fewer examples. Damping .1 × each block's mean eigenvalue.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import proponent as pp
from gradient_cases import CASES


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", default=["mlp", "cnn"])
    torch.set_num_threads(2)
    for name in parser.parse_args().cases:
        for what, (one, other) in rows(name).items():
            print(f"{name:10}{what:26}r = {np.corrcoef(one, other)[0, 1]:.5f}", flush=True)


if __name__ == "__main__":
    main()
