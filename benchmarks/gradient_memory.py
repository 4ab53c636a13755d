"""Peak memory above model, data and output, at n = 5,000 and 60,000: it must not grow with n.

    python benchmarks/gradient_memory.py [--methods graddot ekfac self-influence]

The Fashion-MNIST MLP, 500 queries; every line is a process of its own, measured after a small run has loaded the libraries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

import proponent as pp
from gradient_cases import CASES
from proponent.memory import peak_memory

METHODS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "graddot": lambda task, train, query: pp.GradDot().fit(task, train).score(query),
    "ekfac": lambda task, train, query: pp.Influence().fit(task, train).score(query),
    "self-influence": lambda task, train, query: pp.Influence().fit(task, train).self_influence(),
    "top": lambda task, train, query: pp.GradDot().fit(task, train).top(query, k=10),
}


def one(method: str, n: int) -> None:
    """MB above what was there before, less the scores themselves."""
    torch.set_num_threads(2)
    case = CASES["mlp-60k"]()
    task, train = pp.Task(case.make()), tuple(t[:n] for t in case.train)
    query = tuple(t[:500] for t in case.query)
    METHODS[method](task, tuple(t[:64] for t in train), tuple(t[:64] for t in query))
    with peak_memory() as peak:
        METHODS[method](task, train, query)
    assert peak.megabytes is not None and peak.before is not None
    output = 0 if method in ("self-influence", "top") else 500 * n * 4 / 2**20
    print(json.dumps({"peak": peak.megabytes, "above": peak.megabytes - peak.before - output}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--one", nargs=2)
    args = parser.parse_args()
    if args.one:
        one(args.one[0], int(args.one[1]))
        return
    print(f"{'method':16}{'n':>8}{'MB above':>10}{'process MB':>12}")
    for method in args.methods:
        for n in (5_000, 60_000):
            command = [sys.executable, __file__, "--one", method, str(n)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(run.stdout.strip().splitlines()[-1])
            print(f"{method:16}{n:8,}{found['above']:10.0f}{found['peak']:12.0f}", flush=True)


if __name__ == "__main__":
    main()
