"""Does memorization find labels that are wrong? Feldman's estimator on a network; and what it costs with a linear model.

    python benchmarks/memorization.py [--draws 3 4 5] [--count 400] [--measurement correct] [--epochs 100] [--workers 2]

scikit-learn's digits, all 1,797 of them, a tenth of the labels replaced by another class drawn uniformly, anew for each draw;
a perceptron 64-32-10 with ReLU, AdamW at rate .01 falling along a cosine, batch 64. `Downsampling` trains it on `count` subsets of
70 % of the rows: a row's memorization is what models that saw it measure of it, minus what those that did not see it do. The
AUROC is that of the replaced labels by their memorization, with DeLong's 95 % interval; "all" has Student's over the draws.
Epochs were chosen on draw 0: after 40 the network has learned only half of the replaced labels that it saw.

Then the wall time of `Downsampling(count=2000)` with logistic regression (C = 1) on digits as they are, for 200 queries, on
`workers` processes; the first call starts the processes and is part of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from torch import nn

import proponent as pp
from data import load
from proponent.retrain.torch_recipe import AdamW, TorchRecipe

Array = np.ndarray[Any, np.dtype[Any]]
SHARE, QUERIES = 0.1, 200


def network() -> nn.Module:
    """A perceptron 64-32-10."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def draw(seed: int) -> tuple[tuple[Array, Array], Array]:
    """Digits with a tenth of their labels wrong, and where."""
    (x, y), rng = load("digits"), np.random.default_rng(seed)
    wrong = np.zeros(len(y), bool)
    wrong[rng.permutation(len(y))[: round(SHARE * len(y))]] = True
    given = np.where(wrong, (y + rng.integers(1, 10, len(y))) % 10, y)
    return (x.astype(np.float32), given), wrong


def memorization(seed: int, args: argparse.Namespace) -> float:
    """A row of the table; returns the AUROC."""
    train, wrong = draw(seed)
    recipe = TorchRecipe(network, optimizer=AdamW(lr=0.01), epochs=args.epochs, measurement=args.measurement)
    start = time.perf_counter()
    spec = pp.Downsampling(fraction=0.7, count=args.count, seed=seed)
    values = spec.fit(recipe, train, workers=args.workers).self_influence()
    seconds = time.perf_counter() - start
    found = pp.evaluate.detection(values, wrong, lowest_is_bad=False)
    interval = f"[{found.auroc_lower:.4f}, {found.auroc_upper:.4f}]"
    means = f"{values.value[wrong].mean():15.3f}{values.value[~wrong].mean():9.3f}"
    print(f"{seed:6}{found.auroc:10.4f} {interval:18}{found.auprc:8.3f}{means}{seconds:9.1f}", flush=True)
    return found.auroc


def linear(count: int, workers: int) -> None:
    """The wall time of many subsets with logistic regression."""
    x, y = load("digits")
    order = np.random.default_rng(0).permutation(len(y))
    query, train = order[:QUERIES], order[QUERIES:]
    recipe = pp.SklearnRecipe(LogisticRegression(max_iter=2000))
    start = time.perf_counter()
    pp.Downsampling(count=count).fit(recipe, (x[train], y[train]), workers=workers).score((x[query], y[query]))
    seconds = time.perf_counter() - start
    size = f"{len(train):,} rows, {QUERIES} queries, {workers} processes"
    print(f"\nDownsampling K = {count:,}, logistic regression on digits ({size}): {seconds:.1f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", nargs="*", type=int, default=[3, 4, 5], help="0 chose the settings")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--measurement", default="correct", choices=["correct", "probability", "loss"])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--linear", type=int, default=2_000, help="subsets of the linear model; 0 leaves it out")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    if args.draws:
        print(f"digits, perceptron 64-32-10, K = {args.count}, measuring {args.measurement!r}, {args.epochs} epochs")
        print(f"{'draw':>6}{'AUROC':>10} {'95 %':18}{'AUPRC':>8}{'mean: wrong':>15}{'right':>9}{'seconds':>9}")
        found = np.array([memorization(seed, args) for seed in args.draws])
        if len(found) > 1:
            margin = t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
            print(f"{'all':>6}{found.mean():10.4f} ± {margin:.4f}")
    if args.linear:
        linear(args.linear, args.workers)


if __name__ == "__main__":
    main()
