"""How well any additive score can predict logistic regressions of random halves: exact derivatives along their training.

    PROPONENT_DATA=… python benchmarks/unrolled.py [--runs 20]

The setting is "mnist-logistic" of settings.py (dattri's). A run trains on a random half, in no bank, by the same SGD in an order
of its own, and is differentiated backwards: for a query's measurement m, weights θ_t and batches B_t of b rows at rate η,

    Λ_T = ∇m(θ_T),  Λ_t = (I − (η/b) Σ_{i ∈ B_t} ∇²ℓ_i(θ_t)) Λ_{t+1},  effect of row i = −(η/b) Σ_t Pr(i ∈ B_t) ∇ℓ_i(θ_t) · Λ_{t+1}

for every row, in the half or not, as if it were drawn once an epoch; the sum over t takes every 40th step. The mean over runs
tends to the best additive predictor of halves, E[m(S ∪ i) − m(S ∖ i)], up to its own second-order terms, so its linear
datamodeling score tends to what attributions can reach here. If each run adds noise of its own, the score of K runs is
limit / √(1 + c/K); limit and c are fitted to all K, by least squares of 1/score² on 1/K.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import proponent as pp
from proponent.retrain.ledger import Ledger
from settings import Setting, setting, tensors

SEEDS, EVERY, AT_ONCE = 30_000, 40, 100
Step = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    of = setting("mnist-logistic")
    truths = {"all repeats": of.truth(), "one repeat": of.truth(1)}
    total, scores = np.float64(0), {name: [] for name in truths}
    for k in range(1, runs + 1):
        start = time.perf_counter()
        total = total + effects(of, SEEDS + k)
        for name, truth in truths.items():
            scores[name].append(judged(total, truth))
        said = ", ".join(f"{name} {each[-1]:.3f}" for name, each in scores.items())
        print(f"{k} runs: LDS of their mean {said}; {time.perf_counter() - start:.0f} s", flush=True)
    for name, each in scores.items():
        if len(each) > 2:
            print(f"{name}: limit {limit(each):.3f}")


def effects(of: Setting, seed: int) -> np.ndarray:
    """(q, n) of each row on each query's measurement, minus its loss."""
    (x, y), (queries, targets) = ((homogeneous(a), b) for a, b in (tensors(of.train), tensors(of.query)))
    n, size, rate = len(x), of.recipe.batch_size, of.recipe.optimizer.lr
    steps, w = trained(of, x, y, seed)
    epoch = len(steps) // of.recipe.epochs
    # (q · classes, inputs): a query's Λ, one row for each class.
    back = -(residuals(w, queries, targets)[:, :, None] * queries[:, None]).flatten(0, 1)
    found = torch.zeros(len(queries), n)
    for t in range(len(steps) - 1, -1, -1):
        w, batch = steps[t]
        if t % EVERY == EVERY // 2:
            slopes = residuals(w, x, y)
            for q in range(0, len(queries), AT_ONCE):
                at = slice(q * slopes.shape[1], (q + AT_ONCE) * slopes.shape[1])
                along = (back[at] @ x.T).unflatten(0, (-1, slopes.shape[1]))
                found[q : q + AT_ONCE] -= torch.einsum("qcn,nc->qn", along, slopes) * (rate / size * EVERY / epoch)
        own = x[batch]
        p = (own @ w.T).softmax(1).T
        u = (back @ own.T).unflatten(0, (-1, len(p)))
        curved = p * u - p * (p * u).sum(1, keepdim=True)
        back.addmm_(curved.flatten(0, 1), own, alpha=-rate / len(batch))
    return found.double().numpy()


def trained(of: Setting, x: Tensor, y: Tensor, seed: int) -> tuple[list[Step], Tensor]:
    """Weights before each step with its rows, and the last weights, of a run on a random half."""
    rng = np.random.default_rng(seed)
    half = rng.permutation(len(x))[: len(x) // 2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer: Any = next(m for m in of.make_model().modules() if isinstance(m, nn.Linear))
    w = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    steps: list[Step] = []
    for _ in range(of.recipe.epochs):
        order = torch.from_numpy(rng.permutation(half))
        for batch in order.split(of.recipe.batch_size):
            steps.append((w, batch))
            slope = residuals(w, x[batch], y[batch]).T @ x[batch] / len(batch)
            w = w - of.recipe.optimizer.lr * slope
    return steps, w


def residuals(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(n, classes) p − e_y."""
    p = (x @ w.T).softmax(1)
    return p - nn.functional.one_hot(y, p.shape[1])


def homogeneous(x: Tensor) -> Tensor:
    return torch.cat([x.flatten(1), torch.ones(len(x), 1)], 1)


def judged(score: np.ndarray, truth: Ledger) -> float:
    made = functools.partial(pp.Attribution.of, method="unrolled")
    return float(pp.evaluate.lds(made(score, query=range(len(score)), train=range(score.shape[1])), truth).mean)


def limit(scores: list[float]) -> float:
    """The score that infinitely many runs tend to."""
    count = np.arange(1, len(scores) + 1)
    _, at_zero = np.polyfit(1 / count, 1 / np.square(scores), 1)
    return float(at_zero**-0.5)


if __name__ == "__main__":
    main()
