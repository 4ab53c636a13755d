"""Solvers of the Gauss-Newton matrix on the Fashion-MNIST perceptron 784-128-64-10: time, passes over the data, residuals.

    PROPONENT_DATA=… python benchmarks/solvers.py [--parts dual cg lissa peers]

5,000 training examples. "dual": the rows, their inner products, 17 dampings and the scores of 500 queries, end to end. "cg":
conjugate gradients for 20 queries to a relative residual of 1e-3, with each preconditioner, at two dampings (shares of the trace).
"lissa": passes and the residual that the series reaches for the same queries, by batches and by all examples at a time. "peers":
conjugate gradients of dattri and pyDVL (solver_peers.py, in the interpreter that PROPONENT_PEERS names) and ours for the same
queries, damping and residual; they know the Hessian only, so the damping is one at which it is positive
definite. Times are of one run each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import proponent as pp
from gradient_cases import CASES

SHARES = (1e-3, 1e-4)
FEW, ALONE = 20, 15
"""Queries; iterations that each of them alone takes to a residual of 1e-3 with the Hessian."""


def dual(task: Any, train: Any, query: Any) -> None:
    truth = pp.Ledger.of(
        np.random.default_rng(0).integers(0, 2, (10, len(train[0]))),
        np.random.default_rng(1).normal(size=(10, len(query[0]))),
        train=range(len(train[0])),
        query=range(len(query[0])),
    )
    auto = pp.AutoDamping(ledger=truth, queries=query)
    for rows in (2_500, 5_000):
        for what, damping in (
            ("one damping", pp.Damping(1e-3, scale="trace")),
            ("17 dampings of the grid and scores", auto),
        ):
            start = time.perf_counter()
            scores = pp.Influence(curvature="ggn", solver=pp.Dual(rows), damping=damping).fit(task, train).score(query)
            facts = json.loads(scores.dataset.attrs["solver"])
            left = facts["left_out"]
            print(f"dual, {rows:,} rows, {what}: {time.perf_counter() - start:.1f} s, left out {left:.2%}", flush=True)


def cg(task: Any, train: Any, query: Any) -> None:
    for share in SHARES:
        for name in ("ekfac", "nystrom", "none"):
            _solve(f"cg, {name}", pp.CG(1e-3, most=200, preconditioner=name), share, task, train, query)


def lissa(task: Any, train: Any, query: Any) -> None:
    share = SHARES[0]
    for depth, batch in ((1_000, 64), (4_000, 64), (100, 5_000)):
        solver = pp.LiSSA(depth=depth, batch=batch)
        _solve(f"lissa, {depth:,} batches of {batch:,}", solver, share, task, train, query)
    for tolerance in (0.3, 0.1, 0.03):
        _solve(f"cg to {tolerance}, none", pp.CG(tolerance, preconditioner="none"), share, task, train, query)


def peers(task: Any, train: Any, query: Any) -> None:
    for tolerance in (1e-3, 1e-5):
        solver = pp.CG(tolerance, preconditioner="none")
        damping = _solve(f"ours, Hessian, to {tolerance}", solver, 1e-2, task, train, query, curvature="hessian")
    interpreter = os.environ.get("PROPONENT_PEERS")
    if interpreter is None:
        print("PROPONENT_PEERS names no interpreter with the peers")
        return
    for peer in ("dattri", "pydvl", "pydvl-nystroem"):
        asked = [f"--damping={damping}", f"--queries={FEW}", f"--iterations={ALONE if peer == 'dattri' else 200}"]
        command = [interpreter, str(Path(__file__).with_name("solver_peers.py")), peer, *asked]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr.strip()[-300:], flush=True)


def _solve(what: str, solver: Any, share: float, task: Any, train: Any, query: Any, curvature: str = "ggn") -> float:
    few = tuple(t[:FEW] for t in query)
    damping = pp.Damping(share, scale="trace")
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pp.ProponentWarning)
        scores = pp.Influence(curvature=curvature, solver=solver, damping=damping).fit(task, train).score(few)
    seconds = time.perf_counter() - start
    facts = json.loads(scores.dataset.attrs["solver"])
    passes = facts["passes"]
    residual = scores.dataset["residual"].to_numpy()
    print(
        f"{what}, damping {share:g} × trace: {seconds:.1f} s, {np.sum(passes):.0f} passes, residual {np.median(residual):.1e} "
        f"(worst {residual.max():.1e})",
        flush=True,
    )
    return float(facts["damping"])


PARTS: dict[str, Callable[[Any, Any, Any], None]] = {"dual": dual, "cg": cg, "lissa": lissa, "peers": peers}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    args = parser.parse_args(argv)
    case = CASES["mlp"]()
    task = pp.Task(case.make())
    for part in args.parts:
        PARTS[part](task, case.train, case.query)


if __name__ == "__main__":
    main()
