"""Gradient methods on seven cases: time over the floor, time of the peers over ours, agreement of scores, peak memory.

    python benchmarks/gradients.py [--cases mlp gpt] [--methods graddot tracin ekfac] [--peers kronfluence-ekfac] [--repeat 7]

The floor is one forward and backward pass over the training examples, without an optimiser. Every line is a process of its
own, in which floor and method alternate; times are medians, from a trained model and tensors in memory to all scores.
Peers run in their own interpreter, named by PROPONENT_PEERS (captum 0.9.0, dattri 0.3.0, kronfluence 1.0.1, traker 0.3.2,
pyDVL 0.10.0); see gradient_peers.py. Agreement: of inner products the largest difference over the largest score, of EK-FAC
the Pearson correlation of all scores (each library draws its own labels for the Fisher), over the parameters that the
peer covers. TRAK explains another measurement and is there for its time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import proponent as pp
from gradient_cases import CASES, Case, floor, floor_batch, matrix_layers, other_layers
from proponent.memory import peak_memory

METHODS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "graddot": lambda model: pp.GradDot(),
    "tracin": lambda model: pp.TracIn([model.state_dict()], learning_rates=1.0),
    "ekfac": lambda model: pp.Influence(curvature=pp.EKFAC(), damping=pp.Damping(0.1, scale="mean")),
}

PEERS = {
    "captum-tracin": "graddot",
    "dattri-tracin": "graddot",
    "kronfluence-identity": "graddot",
    "kronfluence-ekfac": "ekfac",
    "pydvl-ekfac": "ekfac",
    "traker": "ekfac",
}
"""The method of ours that a peer is compared with."""

MATRIX_ONLY = ("captum-tracin", "kronfluence-identity", "kronfluence-ekfac")
"""Peers that leave out every layer but Linear and Conv2d."""

HERE = Path(__file__).parent


def ours(case: Case, model: torch.nn.Module, method: str, layers: Sequence[str] | None = None) -> tuple[float, Any]:
    """Seconds and scores (query, train), for all parameters or for some layers'."""
    patterns = None if layers is None else [f"{name}.*" for name in layers]
    start = time.perf_counter()
    task = pp.Task(model, loss=case.loss, parameters=patterns)
    scores = METHODS[method](model).fit(task, case.train).score(case.query).dataset.score.values
    return time.perf_counter() - start, scores


def one(name: str, method: str, repeat: int, out: Path) -> dict[str, Any]:
    """Floors and our runs, alternating, after one run that loads libraries and tells the peak memory."""
    case = CASES[name]()
    model = case.make()
    batch = floor_batch(case, model)
    with peak_memory() as peak:
        _, scores = ours(case, model, method)
    np.save(out / f"{name}-{method}.npy", scores)
    del scores
    seconds, floors = [], []
    for _ in range(repeat):
        floors.append(floor(case, model, batch))
        seconds.append(ours(case, model, method)[0])
    if other_layers(model):
        np.save(out / f"{name}-{method}-matrix.npy", ours(case, model, method, matrix_layers(model))[1])
    held = None if peak.megabytes is None or peak.before is None else peak.megabytes - peak.before
    return {"seconds": seconds, "floors": floors, "peak_mb": held, "floor_batch": batch}


def run(command: Sequence[str], limit: float | None = None) -> dict[str, Any]:
    """The last line of what a process prints, as JSON."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"> {limit:.0f} s"}
    if done.returncode or not done.stdout.strip():
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def agreement(name: str, peer: str, out: Path) -> str:
    """How far a peer's scores are ours."""
    method = PEERS[peer]
    whole, matrix = out / f"{name}-{method}.npy", out / f"{name}-{method}-matrix.npy"
    theirs = out / f"{name}-{peer}.npy"
    own = matrix if peer in MATRIX_ONLY and matrix.exists() else whole
    if peer == "traker" or not (own.exists() and theirs.exists()):
        return "–"
    a, b = np.load(own).ravel(), np.load(theirs).ravel()
    if method == "ekfac":
        return f"r = {np.corrcoef(a, b)[0, 1]:.4f}"
    return f"{np.abs(a - b).max() / np.abs(b).max():.1e}"


def line(who: str, found: dict[str, Any], reference: float | None, agrees: str) -> str:
    """A row of the table."""
    if "error" in found:
        return f"  {who:22s} {found['error'][:110]}"
    seconds, times = statistics.median(found["seconds"]), found["seconds"]
    floors = statistics.median(found["floors"])
    spread = f"{min(times):.3g} to {max(times):.3g}" if len(times) > 1 else "one run"
    ratio = "" if reference is None else f"{seconds / reference:.1f}"
    memory = "" if found["peak_mb"] is None else f"{found['peak_mb']:,.0f}"
    floored = f"{seconds / floors:.2f}"
    return (
        f"  {who:22s} {seconds:9.4g} {spread:>18s} {floors:9.4g} {floored:>8s} {ratio:>8s} {agrees:>12s} {memory:>9s}"
    )


HEADER = (
    f"  {'':22s} {'seconds':>9s} {'range':>18s} {'floor, s':>9s} {'× floor':>8s} {'× ours':>8s} {'agreement':>12s} "
    f"{'peak MB':>9s}"
)


def compare(name: str, args: argparse.Namespace, out: Path) -> bool:
    """The table of a case; whether all of ours ran."""
    repeat = args.repeat or (3 if name == "gpt" else 7)
    case = CASES[name]()
    case.make()  # trained here, where it is missing, so that no process that is measured trains it
    print(f"\n{name}: {len(case.train[0]):,} training examples × {len(case.query[0]):,} queries, {case.loss}")
    print(HEADER, flush=True)
    medians: dict[str, float] = {}
    failed = False
    for method in args.methods:
        command = [sys.executable, __file__, "--one", name, method, "--repeat", str(repeat), "--out", str(out)]
        found = run([*command, "--threads", str(args.threads)])
        failed |= "error" in found
        if "seconds" in found:
            medians[method] = statistics.median(found["seconds"])
        print(line(f"ours, {method}", found, None, ""), flush=True)
    for peer in (p for p in args.peers if PEERS[p] in args.methods):
        command = [args.peer_python, str(HERE / "gradient_peers.py"), name, peer, "--repeat", str(min(repeat, 3))]
        command += ["--limit", str(args.limit), "--threads", str(args.threads), "--out", str(out)]
        found = run(command, args.limit + 120)
        print(line(peer, found, medians.get(PEERS[peer]), agreement(name, peer, out)), flush=True)
    for file in out.glob(f"{name}-*.npy"):
        file.unlink()
    return not failed


def has_peers(python: str) -> bool:
    """Whether that interpreter is there and has the peers."""
    names = "captum, dattri, kronfluence, pydvl, trak"
    try:
        return subprocess.run([python, "-c", f"import {names}"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeat", type=int, help="of ours; 7 by default, 3 for gpt. Of the peers at most 3")
    parser.add_argument("--limit", type=int, default=600, help="seconds for all runs of a peer on a case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", default=os.environ.get("PROPONENT_PEERS", ".venv-peers/bin/python"))
    parser.add_argument("--one", nargs=2, metavar=("CASE", "METHOD"), help="run one line of ours, and print it as JSON")
    parser.add_argument("--out", type=Path, help="folder for the scores of --one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        out = args.out or Path(tempfile.mkdtemp())
        print(json.dumps(dict(zip(("case", "method"), args.one, strict=True)) | one(*args.one, args.repeat or 7, out)))
        return
    if args.peers and not has_peers(args.peer_python):
        print(
            f"The peers are not installed at {args.peer_python}: no ratios. Name their interpreter by PROPONENT_PEERS."
        )
        args.peers = []
    with tempfile.TemporaryDirectory() as folder:
        well = [compare(name, args, Path(folder)) for name in args.cases]
    sys.exit(0 if all(well) else "one of ours did not run")


if __name__ == "__main__":
    main()
