"""Data Shapley of logistic regression beside pyDVL 0.10: seconds to the same standard error, with two processes each.

    python benchmarks/shapley_speed.py            # about ten minutes
    python benchmarks/shapley_speed.py --quick    # fewer runs

Breast cancer, features scaled, 200 training rows, 369 queries; the utility is the mean log-likelihood of the queries, or the
accuracy; a subset of one class is worth what a coin is, to both, so that both play one game. Independent runs of each method
give the variance V of a value over runs (in the mean over rows) and the seconds S per run; the time to a standard error goes as
S·V. CPU seconds are of all processes: what a busy machine leaves comparable. Both draw whole random orders; "antithetic" also
their reverses, "truncated" stops an order within 1 % of the utility of all rows (pyDVL after 40 % of it, as in its
TMCShapleyValuation), which is biased. Ours refits to a gradient of 1e-9, pyDVL calls scikit-learn with its default tol of 1e-4.
Seconds are without the start of the processes. The peer runs in its own interpreter, named by PROPONENT_PEERS; see
shapley_peers.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import proponent as pp
from cpu import cpu_seconds
from proponent.retrain.prior import Frequencies
from proponent.retrain.stopping import Budget

ROWS, WANTED = 200, 20
SCORES = {"loss": "neg_log_loss", "correct": "accuracy"}
"""What is measured, and pyDVL's name for it."""

METHODS = ("permutation", "antithetic", "truncated")


@dataclass(frozen=True)
class Runs:
    """Independent runs of one method.

    Args:
        seconds: (runs,) of each.
        cpu: (runs,) CPU seconds of each, of all processes.
        values: (runs, n).
        permutations: (runs,) drawn.
    """

    seconds: np.ndarray
    cpu: np.ndarray
    values: np.ndarray
    permutations: np.ndarray

    @property
    def each(self) -> float:
        """Seconds of a permutation, the median over runs."""
        return float(np.median(self.seconds / self.permutations))

    @property
    def cpu_each(self) -> float:
        """CPU seconds of a permutation, the median over runs."""
        return float(np.median(self.cpu / self.permutations))

    @property
    def variance(self) -> float:
        """Of a value from one permutation, in the mean over rows."""
        return float(self.values.var(axis=0, ddof=1).mean() * self.permutations.mean())


class Coin(pp.SklearnRecipe):
    """Where a subset has one class, what a coin measures."""

    def measure(self, model: Any, query: Any) -> np.ndarray:
        coin = 0.5 if self.measurement == "correct" else np.log(0.5)
        return np.full(len(query), coin) if isinstance(model, Frequencies) else super().measure(model, query)


def data() -> dict[str, np.ndarray]:
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    order = np.random.default_rng(0).permutation(len(y))
    train, query = order[:ROWS], order[ROWS:]
    return {"X": X[train], "y": y[train], "Q": X[query], "t": y[query]}


def ours(
    arrays: dict[str, np.ndarray], measurement: str, method: str, permutations: int, runs: int, workers: int
) -> Runs:
    recipe = Coin(LogisticRegression(), measurement)
    train, query = (arrays["X"], arrays["y"]), (arrays["Q"], arrays["t"])

    def one(seed: int) -> tuple[float, float, np.ndarray]:
        start, used = time.perf_counter(), cpu_seconds()
        stop = Budget(2 + permutations * (ROWS - 1))
        fitted = pp.Shapley(sampler=method, stop=stop, seed=seed, strata=permutations).fit(
            recipe, train, workers=workers
        )
        values = fitted.values(query).dataset.value.values
        return time.perf_counter() - start, cpu_seconds() - used, values

    one(10_000)  # starts the processes
    seconds, cpu, values = zip(*(one(seed) for seed in range(runs)), strict=True)
    return Runs(np.array(seconds), np.array(cpu), np.array(values), np.full(runs, permutations))


def peer(python: str, file: Path, score: str, method: str, permutations: int, runs: int, workers: int) -> Runs | str:
    command = [python, str(Path(__file__).with_name("shapley_peers.py")), str(file), "--score", score]
    command += ["--sampler", "permutation" if method == "truncated" else method]
    command += ["--truncated"] * (method == "truncated")
    command += ["--permutations", str(permutations), "--repeat", str(runs), "--processes", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return Runs(*(np.array(found[name]) for name in ("seconds", "cpu", "values", "permutations")))


def line(name: str, runs: Runs) -> str:
    each = runs.seconds / runs.permutations * 1e3
    spread = f"{each.min():.1f} to {each.max():.1f}"
    return (
        f"  {name:24} {runs.each * 1e3:8.1f} ms a permutation ({spread:>14}), CPU {runs.cpu_each * 1e3:.1f}   "
        f"variance {runs.variance:.3e}   "
        f"time × variance {runs.each * runs.variance:.3e}"
    )


def compare(args: argparse.Namespace, arrays: dict[str, np.ndarray], file: Path, measurement: str) -> bool:
    print(
        f"\nUtility: {SCORES[measurement]} of {len(arrays['t'])} queries, {ROWS} training rows, {args.workers} processes"
    )
    mine = {m: ours(arrays, measurement, m, args.permutations, args.runs, args.workers) for m in args.methods}
    for method, runs in mine.items():
        print(line(f"ours, {method}", runs), flush=True)
    enough = True
    for method in args.methods:
        theirs = peer(args.peer_python, file, SCORES[measurement], method, 16, args.runs, args.workers)
        if isinstance(theirs, str):
            print(f"  pyDVL, {method:17} {theirs[:110]}")
            continue
        print(line(f"pyDVL, {method}", theirs))
        same = mine[method]
        ratio = theirs.each * theirs.variance / (same.each * same.variance)
        r = np.corrcoef(theirs.values.mean(axis=0), same.values.mean(axis=0))[0, 1]
        print(
            f"    {'':22} {theirs.each / same.each:.1f} × our time a permutation ({theirs.cpu_each / same.cpu_each:.1f} × our CPU "
            f"time); {ratio:.1f} × our time to the same standard "
            f"error; r of the values {r:.3f}",
            flush=True,
        )
        enough &= ratio >= WANTED or method != "permutation"
    return enough


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--permutations", type=int, default=128, help="of a run of ours; 16 of pyDVL's")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--scores", nargs="*", choices=SCORES, default=list(SCORES))
    parser.add_argument("--peer-python", default=os.environ.get("PROPONENT_PEERS", ".venv-peers/bin/python"))
    parser.add_argument("--runs", type=int, help="16, or 4 of --quick")
    args = parser.parse_args()
    args.runs = args.runs or (4 if args.quick else 16)
    arrays = data()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(file, **arrays)
        well = [compare(args, arrays, file, score) for score in args.scores]
    sys.exit(0 if all(well) else f"less than {WANTED} times as fast as pyDVL")
