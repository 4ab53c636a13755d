"""`plan` against what happened: predicted over actual seconds and peak memory, for each case of gradient_cases.py.

    python benchmarks/plan.py [--cases mlp gpt] [--methods graddot ekfac]

Every line is a process of its own. Memory is the peak of the whole process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch

import proponent as pp
from gradient_cases import CASES


def one(name: str, method: str) -> None:
    """One case by one method; a JSON line."""
    torch.set_num_threads(2)
    case = CASES[name]()
    task = pp.Task(case.make(), loss=case.loss)
    few = tuple(t[:64] for t in case.train), tuple(t[:8] for t in case.query)
    pp.attribute(task, *few, method=method)  # libraries load on first use
    attrs = pp.attribute(task, case.train, case.query, method=method).dataset.attrs
    kept = ("predicted_seconds", "seconds", "predicted_memory_mb", "memory_mb")
    print(json.dumps({k: attrs[k] for k in kept}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--methods", nargs="*", default=["graddot", "ekfac"])
    parser.add_argument("--one", nargs=2)
    args = parser.parse_args()
    if args.one:
        one(*args.one)
        return
    print(
        f"{'case':14}{'method':10}{'predicted s':>12}{'actual s':>10}{'ratio':>7}{'predicted MB':>14}{'actual MB':>11}{'ratio':>7}"
    )
    for name in args.cases:
        for method in args.methods:
            run = subprocess.run([sys.executable, __file__, "--one", name, method], capture_output=True, text=True)
            if run.returncode:
                print(f"{name:14}{method:10}failed: {run.stderr.strip().splitlines()[-1]}")
                continue
            p, s, pm, m = json.loads(run.stdout.strip().splitlines()[-1]).values()
            print(f"{name:14}{method:10}{p:12.3f}{s:10.3f}{p / s:7.2f}{pm:14.0f}{m:11.0f}{pm / m:7.2f}", flush=True)


if __name__ == "__main__":
    main()
