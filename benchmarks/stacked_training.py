"""Half-subset models trained as a stack, beside a tuned PyTorch loop that trains them one by one: times and their ratio.

    python benchmarks/stacked_training.py [--cases digits fashion] [--models 200] [--sample 8] [--repeats 3]

Two MLPs with ReLU, SGD with momentum 0.9 at a constant rate of 0.05, batches of 64, 20 epochs, float32, on two threads or two
processes of one thread each:

    digits    64-32-10 on half of scikit-learn's 1,797 digits
    fashion   784-128-64-10 on half of the first 5,000 images of Fashion-MNIST (generated data where it is not there)

The loop holds the subset as one tensor, draws each epoch's order with randperm, indexes its batches, sets gradients to None
and takes torch's fused SGD, its quickest on a CPU. It is timed on --sample models and scaled to all; with one thread, with
two, and as two processes that train half of the models each. Ours trains all models on digits, on fashion the first 48 of
them, scaled; once in this process with two threads, and once by `pp.retrain` with two workers, whose time includes measuring
500 queries, and for which the processes are started before. Sides alternate; the least of --repeats is taken. The mean
accuracy on the 500 queries, which on digits are training examples of some models, is that of the same --sample subsets.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import proponent as pp
from knn_shapley import data as fashion_mnist
from proponent.retrain.subsets import halves

EPOCHS, BATCH, RATE, MOMENTUM, THREADS = 20, 64, 0.05, 0.9, 2


def perceptron(widths: Sequence[int]) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Case:
    """A training set, queries, and the widths of the model."""

    name: str
    x: Any
    y: Any
    query: tuple[Any, Any]
    widths: tuple[int, ...]

    @property
    def recipe(self) -> Any:
        return pp.TorchRecipe(
            functools.partial(perceptron, self.widths),
            optimizer=pp.SGD(lr=RATE, momentum=MOMENTUM),
            schedule="constant",
            epochs=EPOCHS,
            batch_size=BATCH,
            measurement="correct",
        )


def case(name: str) -> Case:
    """One of the two."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        x = np.float32(x / 16)
        return Case(name, x, y, (x[:500], y[:500]), (64, 32, 10))
    found, arrays = fashion_mnist()
    query = arrays["qx"], arrays["qy"]
    return Case(f"fashion ({found})", arrays["x"], arrays["y"], query, (784, 128, 64, 10))


def loop(case: Case, rows: Tensor, seed: int) -> nn.Module:
    """One model by the plain loop."""
    torch.manual_seed(seed)
    model, order = perceptron(case.widths), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)
    x, y = torch.from_numpy(case.x)[rows], torch.from_numpy(case.y)[rows]
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(rows), generator=order).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def loops(case: Case, included: Any, threads: int) -> tuple[float, float]:
    """Seconds of the loop over some subsets, and the models' mean accuracy."""
    torch.set_num_threads(threads)
    rows = [torch.from_numpy(np.flatnonzero(row)) for row in included]
    start = time.perf_counter()
    models = [loop(case, own, seed) for seed, own in enumerate(rows)]
    seconds = time.perf_counter() - start
    x, y = (torch.from_numpy(np.asarray(a)) for a in case.query)
    return seconds, statistics.mean(float((m(x).argmax(1) == y).double().mean()) for m in models)


def two_processes(pool: ProcessPoolExecutor, case: Case, included: Any) -> float:
    """Seconds until both processes have trained half of the subsets each."""
    start = time.perf_counter()
    list(pool.map(loops, [case] * THREADS, np.array_split(included, THREADS), [1] * THREADS))
    return time.perf_counter() - start


def in_this_process(case: Case, included: Any) -> float:
    """Seconds of `fit_many` with two threads."""
    torch.set_num_threads(THREADS)
    train, seeds = pp.Examples.of((case.x, case.y)), np.arange(len(included))
    start = time.perf_counter()
    case.recipe.fit_many(train, included, seeds)
    return time.perf_counter() - start


def by_two_workers(case: Case, included: Any, sample: int) -> tuple[float, float]:
    """Seconds of `pp.retrain` with two workers, measuring included, and the mean accuracy of the loop's subsets."""
    with joblib.parallel_config(backend="loky"):
        joblib.Parallel(n_jobs=THREADS)(joblib.delayed(_warm)() for _ in range(4 * THREADS))
        start = time.perf_counter()
        ledger = pp.retrain(case.recipe, (case.x, case.y), case.query, included, workers=THREADS)
        return time.perf_counter() - start, float(ledger.measured[:sample].mean())


def _warm() -> int:
    time.sleep(0.2)
    return len(torch.ones(2) + pp.TorchRecipe(lambda: nn.Linear(2, 2)).batch)


def compare(case: Case, models: int, sample: int, repeats: int) -> None:
    """Time all sides in turn, and print them."""
    included = halves(models, seed=0)(len(case.x)).included
    ours = included if case.name == "digits" else included[:48]
    times: dict[str, list[float]] = {}

    def scaled(side: str, seconds: float, trained: int) -> None:
        times.setdefault(side, []).append(seconds * models / trained)

    with ProcessPoolExecutor(THREADS) as pool:
        two_processes(pool, case, included[:2])
        for _ in range(repeats):
            for threads in range(1, THREADS + 1):
                seconds, plain = loops(case, included[:sample], threads)
                scaled(f"loop, {threads} thread{'s'[: threads - 1]}", seconds, sample)
            scaled(f"loop, {THREADS} processes", two_processes(pool, case, included[: 2 * sample]), 2 * sample)
            scaled(f"stack, {THREADS} threads", in_this_process(case, ours), len(ours))
            seconds, stacked = by_two_workers(case, ours, sample)
            scaled(f"stack, {THREADS} workers, measuring too", seconds, len(ours))
    report(case, models, {side: min(seconds) for side, seconds in times.items()}, (plain, stacked))


def report(case: Case, models: int, least: dict[str, float], accuracy: tuple[float, float]) -> None:
    """Times and ratios."""
    print(
        f"{case.name}: {models} models {'-'.join(map(str, case.widths))}, {len(case.x) // 2:,} examples each, {EPOCHS} epochs"
    )
    for side, seconds in least.items():
        print(f"  {side:36s} {seconds:8.2f} s")
    by_loop = min(seconds for side, seconds in least.items() if side.startswith("loop") and "thread" in side)
    processes = least[f"loop, {THREADS} processes"]
    for side, seconds in least.items():
        if side.startswith("stack"):
            print(f"  {side}: {by_loop / seconds:.1f} × the better loop, {processes / seconds:.1f} × its two processes")
    print(f"  mean accuracy {accuracy[0]:.2%} by the loop, {accuracy[1]:.2%} by the stack (other seeds)", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=["digits", "fashion"])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for name in args.cases:
        compare(case(name), args.models, args.sample, args.repeats)
