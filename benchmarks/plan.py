"""`plan` against what happened: predicted over actual seconds and peak memory, for each case of gradient_cases.py.

    python benchmarks/plan.py [--cases mlp gpt] [--methods graddot ekfac] [--checkpoints 3] [--examples 300]

Every line is a process of its own. Memory is the peak of the whole process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from typing import Any

import torch

import proponent as pp
from gradient_cases import CASES


def one(name: str, method: str, checkpoints: int, examples: int | None) -> None:
    """One case by one method; a JSON line.

    Args:
        checkpoints: as many copies of the model's weights, read from files; 0 for the model itself.
        examples: training examples, the first; all where None.
    """
    torch.set_num_threads(2)
    case = CASES[name]()
    task = pp.Task(case.make(), loss=case.loss)
    few = tuple(t[:64] for t in case.train), tuple(t[:8] for t in case.query)
    if method != "tracin":
        pp.attribute(task, *few, method=method)  # libraries load on first use
    train = tuple(t[:examples] for t in case.train)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = (
            {"checkpoints": [f"{folder}/{k}.pt" for k in range(checkpoints)]} if checkpoints else {}
        )
        for path in options.get("checkpoints", ()):
            torch.save(task.model.state_dict(), path)
        if method == "tracin":
            options["learning_rates"] = 0.1
        attrs = pp.attribute(task, train, case.query, method=method, **options).dataset.attrs
    kept = ("predicted_seconds", "seconds", "predicted_memory_mb", "memory_mb")
    print(json.dumps({k: attrs[k] for k in kept}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--methods", nargs="*", default=["graddot", "ekfac"])
    parser.add_argument("--checkpoints", type=int, default=0)
    parser.add_argument("--examples", type=int)
    parser.add_argument("--one", nargs=2)
    args = parser.parse_args()
    if args.one:
        one(*args.one, args.checkpoints, args.examples)
        return
    print(
        f"{'case':14}{'method':10}{'predicted s':>12}{'actual s':>10}{'ratio':>7}{'predicted MB':>14}{'actual MB':>11}{'ratio':>7}"
    )
    for name in args.cases:
        for method in args.methods:
            words = [sys.executable, __file__, "--one", name, method, "--checkpoints", str(args.checkpoints)]
            words += ["--examples", str(args.examples)] if args.examples else []
            run = subprocess.run(words, capture_output=True, text=True)
            if run.returncode:
                print(f"{name:14}{method:10}failed: {run.stderr.strip().splitlines()[-1]}")
                continue
            p, s, pm, m = json.loads(run.stdout.strip().splitlines()[-1]).values()
            print(f"{name:14}{method:10}{p:12.3f}{s:10.3f}{p / s:7.2f}{pm:14.0f}{m:11.0f}{pm / m:7.2f}", flush=True)


if __name__ == "__main__":
    main()
