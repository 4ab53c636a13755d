"""TRAK: its time with every projection, over the floor and beside traker; how well inner products are kept; LDS by ridge.

    PROPONENT_DATA=… python benchmarks/trak_time.py [--parts time products accuracy] [--threads 2] [--peers traker-4096]

The perceptron 784-128-64-10 on 5,000 images of Fashion-MNIST, 500 test images as queries, k = 4,096.

time      from a trained model and tensors in memory to all scores. Each projection is a process of its own, in which it and the
          floor (one forward and backward pass over the training examples) alternate; medians. Processor seconds are those of
          all threads: with --threads 1 other work on the machine does not count. traker 0.3.2 runs in the peers' interpreter,
          named by PROPONENT_PEERS; on a CPU it draws its dense matrix in blocks.
products  ⟨Pg, Pg′⟩ of 1,000 training examples with 200 queries: root mean square of its error over ‖g‖‖g′‖, times √k, which for a
          Gaussian matrix is 1 where gradients are orthogonal; and the correlation with ⟨g, g′⟩.
accuracy  linear datamodeling score (LDS) against the bank of `banks.py` with the margin as measurement: 100 random halves, each
          retrained under `--bank-repeats` seeds; of one model and of the mean of three, by ridge, and beside other methods and
          traker, of one model. The ridge is read off the same halves that judge it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import proponent as pp
from banks import bank, modules
from gradient_cases import CASES, floor, floor_batch
from gradients import run
from proponent.capture.gradients import Capture
from proponent.curvature.metric import Identity
from proponent.curvature.projection import PROJECTIONS, projection_of
from proponent.methods.score import prepare, stream
from proponent.methods.trak_models import Features
from proponent.rows import Rows

K = 4096
RIDGES = (0.01, 0.1, 0.3, 1.0, 3.0)
HERE = Path(__file__).parent


def one(name: str, repeat: int) -> dict[str, list[float]]:
    """Times of one projection, after one run that loads libraries."""
    case = CASES["mlp"]()
    model = case.make()
    batch, spec = floor_batch(case, model), pp.TRAK(projection=None if name == "none" else name, dimension=K)

    def scored() -> Any:
        return spec.fit(pp.Task(model), case.train).score(case.query)

    made: dict[str, list[float]] = {"seconds": [], "cpu": [], "floors": [], "floor_cpu": []}
    scored()
    for _ in range(repeat):
        for work, seconds, cpu in (
            (lambda: floor(case, model, batch), "floors", "floor_cpu"),
            (scored, "seconds", "cpu"),
        ):
            start, busy = time.perf_counter(), time.process_time()
            work()
            made[seconds].append(time.perf_counter() - start)
            made[cpu].append(time.process_time() - busy)
    return made


def times(args: argparse.Namespace) -> None:
    """The table of times."""
    print(f"\nseconds of 5,000 training examples × 500 queries, k = {K:,}, {args.threads} threads")
    print(f"  {'projection':14s} {'seconds':>9s} {'processor':>10s} {'floor':>9s} {'× floor, processor':>19s}")
    CASES["mlp"]().make()
    rows: list[tuple[str, Sequence[str]]] = [
        (name, [sys.executable, __file__, "--one", name, "--repeat", str(args.repeat), "--threads", str(args.threads)])
        for name in args.projections
    ]
    options = ["--repeat", "1", "--limit", str(args.limit), "--threads", str(args.threads), "--out", args.out]
    rows += [(p, [args.peer_python, str(HERE / "gradient_peers.py"), "mlp", p, *options]) for p in args.peers]
    for name, command in rows:
        found = run(command)
        if "error" in found:
            print(f"  {name:14s} {found['error'][:100]}", flush=True)
            continue
        seconds, cpu, base = (statistics.median(found[key]) for key in ("seconds", "cpu", "floors"))
        ratio = f"{cpu / statistics.median(found['floor_cpu']):19.1f}" if "floor_cpu" in found else ""
        print(f"  {name:14s} {seconds:9.2f} {cpu:10.2f} {base:9.3f} {ratio}", flush=True)


def products(args: argparse.Namespace) -> None:
    """How well inner products are kept."""
    case = CASES["mlp"]()
    task = pp.Task(case.make())
    train, query = (Rows.of(tuple(t[:count] for t in part)) for part, count in ((case.train, 1000), (case.query, 200)))
    with task.watching():
        capture = Capture.of(task, train)
        _, blocks = capture.gradients(task.batch(train, slice(0, 1)), task.losses)
        exact = next(stream(capture, prepare(capture, Identity(), query, 200), train, [slice(0, 1000)], 1.0))[1].numpy()
        lengths = [
            torch.stack(
                [b.norm2() for b in capture.gradients(task.batch(rows, slice(0, len(rows))), task.losses)[1].values()]
            )
            .sum(0)
            .sqrt()
            .numpy()
            for rows in (query, train)
        ]
    print(f"\ninner products of 1,000 × 200 gradients projected to k = {K:,}")
    print(f"  {'projection':14s} {'error·√k/lengths':>17s} {'correlation':>12s}")
    for name in (n for n in args.projections if n != "none"):
        features = Features(capture, projection_of(name).sketch(K, 0, blocks), 1000)
        got = (features.together(query) @ features.together(train).T).numpy()
        error = ((got - exact) / np.outer(*lengths)).std() * K**0.5
        print(f"  {name:14s} {error:17.2f} {np.corrcoef(got.ravel(), exact.ravel())[0, 1]:12.4f}", flush=True)


def attributions(
    tasks: Sequence[pp.Task], train: Any, query: Any, projections: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Names and scores."""
    damping = pp.Damping(0.1, scale="mean")
    influence = pp.Influence(pp.EKFAC(), damping=damping)
    specs: dict[str, Any] = {
        "GradDot": pp.GradDot(),
        "EK-FAC": influence,
        "EK-FAC, RelatIF, parameters": pp.RelatIF(influence),
        "EK-FAC, RelatIF, loss": pp.RelatIF(influence, over="loss"),
        "EK-FAC, over the gradient": pp.RelatIF(influence, over="gradient"),
        "representer points": pp.RepresenterPoints(),
        "representer points, Jacobian": pp.RepresenterPoints(jacobian=True),
    }
    for name, spec in specs.items():
        yield name, pp.Ensemble(spec).fit(tasks, train).score(query)
    for name in projections:
        for ridge in RIDGES:
            spec = pp.TRAK(projection=None if name == "none" else name, dimension=K, ridge=ridge)
            yield f"TRAK, {name}, ridge {ridge:g}", spec.fit(tasks, train).score(query)


def accuracy(args: argparse.Namespace) -> None:
    """LDS of one model and of three."""
    truth = bank("mlp", "margin", repeats=args.bank_repeats, workers=args.threads)
    train, query = ((torch.from_numpy(np.float32(x)), torch.from_numpy(y)) for x, y in (truth.train, truth.query))
    tasks = [pp.Task(module, measurement="margin") for module in modules(truth)]
    several = attributions(tasks, train, query, args.accuracy_of)
    warnings.filterwarnings("ignore", message="gradients projected to")  # the column of effective dimensions says so
    print(f"\nLDS of the margin: {truth.ledger}")
    print(f"  {'':32s} {'one model':>22s} {f'mean of {len(tasks)}':>22s} {'effective dimension':>20s}")
    for (name, first), (_, mean) in zip(attributions(tasks[:1], train, query, args.accuracy_of), several, strict=True):
        found = [pp.evaluate.lds(scores, truth.ledger) for scores in (first, mean)]
        cells = " ".join(f"{f'{f.mean:.3f} [{f.lower:+.3f}, {f.upper:+.3f}]':>22s}" for f in found)
        print(f"  {name:32s} {cells} {first.dataset.attrs.get('effective_dimension', '')!s:>20s}", flush=True)
    for peer in args.peers:
        found = [pp.evaluate.lds(_of_peer(peer, tasks[0], train, query, args), truth.ledger)]
        print(f"  {peer:32s} {f'{found[0].mean:.3f} [{found[0].lower:+.3f}, {found[0].upper:+.3f}]':>22s}", flush=True)
    print(f"  {'noise ceiling':32s} {found[0].ceiling:.3f}")


def _of_peer(peer: str, task: pp.Task, train: Any, query: Any, args: argparse.Namespace) -> Any:
    """A peer's scores of the bank's first model; the case's data are the bank's, with more queries."""
    case, weights = CASES["mlp"](), Path(args.out) / "bank-model.pt"
    assert torch.equal(case.train[0], train[0]) and torch.equal(case.query[0][: len(query[0])], query[0])
    torch.save({name: w.detach().clone() for name, w in task.net.state_dict().items()}, weights)
    options = ["--repeat", "1", "--limit", str(args.limit), "--threads", str(args.threads), "--out", args.out]
    command = [args.peer_python, str(HERE / "gradient_peers.py"), "mlp", peer, *options, "--weights", str(weights)]
    found = run(command)
    assert "error" not in found, found
    scores = np.load(Path(args.out) / f"mlp-{peer}.npy")[: len(query[0])]
    return pp.Attribution.of(scores, query=range(len(query[0])), train=range(len(train[0])), method=peer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"time": times, "products": products, "accuracy": accuracy}
    names = ["none", "kronecker", "sjlt", "fjlt", "rademacher", "gaussian"]
    assert set(names[1:]) == set(PROJECTIONS)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--projections", nargs="+", choices=names, default=names)
    parser.add_argument("--accuracy-of", nargs="*", choices=names, default=["none", "sjlt", "kronecker"])
    parser.add_argument("--peers", nargs="*", choices=["traker", "traker-4096"], default=["traker-4096"])
    parser.add_argument("--peer-python", default=os.environ.get("PROPONENT_PEERS", ".venv-peers/bin/python"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1200, help="seconds for the peer")
    parser.add_argument("--bank-repeats", type=int, default=2)
    parser.add_argument("--out", default="/tmp", help="folder for the peer's scores")
    parser.add_argument("--one", help="time one projection, and print it as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(one(args.one, args.repeat)))
        return
    if args.peers and {"time", "accuracy"} & set(args.parts):
        try:
            subprocess.run([args.peer_python, "-c", "import trak"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            print(f"traker is not installed at {args.peer_python}: no comparison with it.")
            args.peers = []
    for part in args.parts:
        parts[part](args)


if __name__ == "__main__":
    main()
