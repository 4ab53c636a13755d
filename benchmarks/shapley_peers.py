"""Shapley values by pyDVL, in the peers' interpreter: one JSON line with seconds and values of independent runs.

    python benchmarks/shapley_peers.py data.npz --score neg_log_loss --sampler permutation --permutations 16 --repeat 10

Needs pyDVL 0.10.0. Its documented fast settings: whole permutations as the unit of work (no batching, which its documentation
advises against), joblib workers that are up before the clock starts, no cache (subsets of permutations do not come
again), warnings off. Seconds are of `ShapleyValuation.fit` alone.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import joblib
import numpy as np
from pydvl.valuation import (
    AntitheticPermutationSampler,
    Dataset,
    MinUpdates,
    ModelUtility,
    PermutationSampler,
    RelativeTruncation,
    ShapleyValuation,
    SupervisedScorer,
)
from sklearn.linear_model import LogisticRegression

from cpu import cpu_seconds

SAMPLERS = {"permutation": PermutationSampler, "antithetic": AntitheticPermutationSampler}


def values(
    data, score: str, sampler: str, truncated: bool, permutations: int, seed: int
) -> tuple[float, float, float, list[float]]:
    """Seconds, CPU seconds, the permutations that were drawn (some more than asked for: those under way), and the values."""
    train, query = Dataset(data["X"], data["y"]), Dataset(data["Q"], data["t"])
    default = 0.5 if score == "accuracy" else float(np.log(0.5))  # a coin, where a subset has one class
    utility = ModelUtility(
        LogisticRegression(), SupervisedScorer(score, query, default=default), show_warnings=False, catch_errors=True
    )
    truncation = RelativeTruncation(rtol=0.01, burn_in_fraction=0.4) if truncated else None
    drawn = SAMPLERS[sampler](truncation=truncation, seed=seed)
    valuation = ShapleyValuation(utility, drawn, MinUpdates(permutations), show_warnings=False)
    start, used = time.perf_counter(), cpu_seconds()
    valuation.fit(train)
    seconds, used = time.perf_counter() - start, cpu_seconds() - used
    return seconds, used, float(valuation.result.counts.mean()), valuation.result.values.tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--score", default="neg_log_loss")
    parser.add_argument("--sampler", choices=SAMPLERS, default="permutation")
    parser.add_argument("--truncated", action="store_true")
    parser.add_argument("--permutations", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    arrays = dict(np.load(args.data))
    setting = (args.score, args.sampler, args.truncated)
    with joblib.parallel_config(backend="loky", n_jobs=args.processes):
        values(arrays, *setting, 2 * args.processes, 10_000)
        runs = [values(arrays, *setting, args.permutations, seed) for seed in range(args.repeat)]
    print(json.dumps(dict(zip(("seconds", "cpu", "permutations", "values"), zip(*runs, strict=True), strict=True))))
