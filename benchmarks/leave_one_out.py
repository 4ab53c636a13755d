"""Leave-one-out of logistic regression: exactness and certificates against true refits, and speed against scikit-learn refits.

    python benchmarks/leave_one_out.py            # both, about five minutes
    python benchmarks/leave_one_out.py --quick    # a tenth of the refits

Exactness: n = 2,000, d = 50, C = 1, float64, 50 queries, all (row, query) pairs; the truth is one refit per row by plain
Newton steps to a decrement of 1e-13 (tests/truth/linear.py), independent of the package.
Speed: n = 5,000, d = 100, 500 queries; the comparison is n refits of scikit-learn's LogisticRegression (lbfgs, warm-started
from the full fit), timed on a random subset of rows and scaled; at tol = 1e-8, which leave-one-out differences need, and
at the default 1e-4, where most refits stop at once and the differences are noise. Ours includes fitting the model.
"""

import argparse
import resource
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from proponent.methods.leave_one_out import LeaveOneOut
from proponent.retrain.recipe import SklearnRecipe

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from truth.linear import refit_binary


def generated(n: int, d: int, q: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    X, Q = rng.normal(size=(n, d)), rng.normal(size=(q, d))
    w = 2 * rng.normal(size=d) / np.sqrt(d)
    draw = lambda Z: np.where(rng.random(len(Z)) < expit(Z @ w), 1.0, -1.0)  # noqa: E731
    return X, draw(X), Q, draw(Q)


def exactness(share: float) -> None:
    n, d, q = 2000, 50, 50
    X, y, Q, t = generated(n, d, q)
    X1, Q1, penalty = np.c_[X, np.ones(n)], np.c_[Q, np.ones(q)], np.r_[np.ones(d), 0.0]
    rows = np.sort(np.random.default_rng(1).permutation(n)[: int(share * n)])
    loss = lambda theta: -np.logaddexp(0.0, -t * (Q1 @ theta))  # noqa: E731
    full = refit_binary(X1, y, np.ones(n), penalty)
    truth = np.empty((q, len(rows)))
    for k, i in enumerate(rows):
        keep = np.delete(np.arange(n), i)
        truth[:, k] = loss(full) - loss(refit_binary(X1[keep], y[keep], np.ones(n - 1), penalty, start=full))
    print(f"Exactness: n = {n:,}, d = {d}, {q} queries, {truth.size:,} (row, query) pairs against refits")
    for steps in (1, 2, "exact"):
        fitted = LeaveOneOut(steps=steps).fit(SklearnRecipe(LogisticRegression(C=1.0)), (X, y))
        found = fitted.score((Q, t), rows=rows).dataset
        score = found["score"].to_numpy()
        r = np.corrcoef(score.ravel(), truth.ravel())[0, 1]
        slope = np.polyfit(score.ravel(), truth.ravel(), 1)[0]
        line = f"  steps = {steps!s:5}  1 - Pearson {1 - r:.1e}   slope {slope:.7f}"
        if "lower" in found:
            lower, upper = found["lower"].to_numpy(), found["upper"].to_numpy()
            inside = ((lower <= truth) & (truth <= upper)).mean()
            width = np.median((upper - lower) / np.abs(score))
            line += f"   truth inside the bounds {inside:.4%}   median width {width:.3%} of the score"
        print(line)


def speed(repeats: int, refits: int) -> None:
    n, d, q = 5000, 100, 500
    X, y, Q, t = generated(n, d, q, seed=2)
    recipe = SklearnRecipe(LogisticRegression(C=1.0))
    rows = np.random.default_rng(3).permutation(n)[:refits]
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for tol in (1e-8, 1e-4):
            times.setdefault(f"refits, tol {tol:g}", []).append(n * refit_seconds(X, y, Q, rows, tol))
        for steps in (1, 2):
            start = time.perf_counter()
            LeaveOneOut(steps=steps).fit(recipe, (X, y)).score((Q, t))
            times.setdefault(f"steps = {steps}", []).append(time.perf_counter() - start)
    print(f"\nSpeed: n = {n:,}, d = {d}, {q} queries; medians of {repeats}, in turn")
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"  {name:18} {median[name]:9.3f} s   (min {min(values):.3f}, max {max(values):.3f})")
    for steps, wanted in ((1, 1000), (2, 30)):
        ratios = [median[f"refits, tol {tol:g}"] / median[f"steps = {steps}"] for tol in (1e-8, 1e-4)]
        ours = f"{ratios[0]:,.0f} times as fast as refits at 1e-8, {ratios[1]:,.0f} times at 1e-4"
        print(f"  steps = {steps}: {ours}; wanted {wanted:,}")


def refit_seconds(X, y, Q, rows, tol: float) -> float:
    """Seconds per warm-started refit with its predictions."""
    model = LogisticRegression(C=1.0, tol=tol, max_iter=1000, warm_start=True).fit(X, y)
    coef, intercept = model.coef_.copy(), model.intercept_.copy()
    keep = np.ones(len(X), dtype=bool)
    start = time.perf_counter()
    for i in rows:
        model.coef_, model.intercept_ = coef.copy(), intercept.copy()
        keep[i] = False
        model.fit(X[keep], y[keep]).decision_function(Q)
        keep[i] = True
    return (time.perf_counter() - start) / len(rows)


def memory() -> None:
    n, d, q = 5000, 100, 500
    X, y, Q, t = generated(n, d, q, seed=2)
    recipe = SklearnRecipe(LogisticRegression(C=1.0))
    tracemalloc.start()
    scores = LeaveOneOut().fit(recipe, (X, y)).score((Q, t))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    output = sum(v.nbytes for v in scores.dataset.data_vars.values())
    print(f"\nMemory: peak {peak / 2**20:.0f} MiB, of it {output / 2**20:.0f} MiB output (score, lower, upper): ")
    print(f"  {(peak - output) / 2**20:.0f} MiB above data and output; wanted < 500 MB")
    print(f"  peak resident size of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    exactness(0.1 if quick else 1.0)
    speed(1 if quick else 3, 10 if quick else 40)
    memory()
