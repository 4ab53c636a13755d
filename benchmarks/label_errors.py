"""Planted label errors: our scores beside cleanlab's and the plain out-of-fold loss, on the same flips and the same models.

    PROPONENT_DATA=… python benchmarks/label_errors.py [--quick] [--seeds 5] [--sets adult spambase sms-spam digits]

10 % of the labels, drawn uniformly, are flipped to another class drawn uniformly. Two comparisons:

    panel      our default models; the peers get those models' 5-fold out-of-fold probabilities, pooled log-linearly with the
               weights of least out-of-fold log-loss
    logistic   all get one logistic regression (C=1)

"plain" is the out-of-fold loss of the given label; "cleanlab" its default score, self-confidence, which ranks as the plain loss
does; "best of cleanlab" the best of its six rankings (its scores with and without adjusted probabilities, and the rows of
`find_label_issues` before all others), chosen for each set and metric knowing the answer. The precision and recall of
`find_label_issues` stand beside those of our flagged rows. cleanlab 2.9 is imported where it is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from data import load
from proponent.applications.label_errors import find_label_errors
from proponent.applications.out_of_sample import assign_folds, default_classifiers, keys, out_of_sample

SETS = ("adult", "spambase", "sms-spam", "digits")
ROWS = {"adult": 10_000}
QUICK_ROWS = 1_500
RATE = 0.1
VARIANTS = (
    ("self_confidence", False),
    ("self_confidence", True),
    ("normalized_margin", False),
    ("normalized_margin", True),
    ("confidence_weighted_entropy", False),
)
SHOWN = ("ours", "plain", "cleanlab", "best of cleanlab")

try:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
except ImportError:
    find_label_issues = get_label_quality_scores = None


def flip(y: Any, seed: int) -> tuple[Any, Any]:
    """Labels with a tenth of them wrong, and where."""
    random, classes = np.random.default_rng(seed), int(y.max()) + 1
    chosen = random.permutation(len(y))[: round(RATE * len(y))]
    flipped, wrong = y.copy(), np.zeros(len(y), bool)
    flipped[chosen] = (y[chosen] + random.integers(1, classes, len(chosen))) % classes
    wrong[chosen] = True
    return flipped, wrong


def pooled(probabilities: Any, labels: Any) -> Any:
    """Members' probabilities pooled as exp Σ_m a_m log p_m, a ≥ 0 of least log-loss on the given labels."""
    logs = np.log(probabilities)

    def loss(a: Any) -> float:
        return -float(log_softmax(np.tensordot(a, logs, 1), axis=1)[np.arange(len(labels)), labels].mean())

    start = np.full(len(logs), 1 / len(logs))
    best = minimize(loss, start, method="L-BFGS-B", bounds=[(0, 8)] * len(logs)).x if len(logs) > 1 else start
    return np.exp(log_softmax(np.tensordot(best, logs, 1), axis=1))


def peers(probabilities: Any, labels: Any) -> dict[str, Any]:
    """Scores of the plain loss and of cleanlab, high = bad, and cleanlab's issues, true or false."""
    found = {"plain": -np.log(probabilities[np.arange(len(labels)), labels])}
    if get_label_quality_scores is None:
        return found
    for method, adjusted in VARIANTS:
        quality = get_label_quality_scores(labels, probabilities, method=method, adjust_pred_probs=adjusted)
        found[f"{method}{' adjusted' if adjusted else ''}"] = -quality
    found["issues"] = np.asarray(find_label_issues(labels, probabilities))
    found["issues first"] = found["issues"] + found["self_confidence"]
    return found


def judged(score: Any, wrong: Any) -> tuple[float, float]:
    """AUROC, and the fraction of wrong labels among as many rows of highest score."""
    first = np.argsort(-score, kind="stable")[: int(wrong.sum())]
    return float(roc_auc_score(wrong, score)), float(wrong[first].mean())


def flags(flagged: Any, wrong: Any) -> tuple[float, float]:
    """Precision and recall of a set of rows."""
    both = float((flagged & wrong).sum())
    return both / max(float(flagged.sum()), 1.0), both / float(wrong.sum())


Models = Callable[[Any, int], list[Any]]


def one(X: Any, y: Any, models: Models, seed: int) -> dict[str, tuple[float, float]]:
    """Every contender on one draw of flips."""
    labels, wrong = flip(y, seed)
    members = models(X, int(y.max()) + 1)
    fold = assign_folds(keys(np.arange(len(y)), seed), labels, 5)
    probabilities = pooled(out_of_sample(members, X, labels, fold), labels)
    scores = peers(probabilities, labels)
    issues = scores.pop("issues", None)
    result = {name: judged(score, wrong) for name, score in scores.items()}
    found = find_label_errors((X, labels), estimators=members, seed=seed).table
    result["ours"] = judged(found.wrong.to_numpy(), wrong)
    result["flags ours"] = flags(found.flagged.to_numpy(), wrong)
    if issues is not None:
        result["flags cleanlab"] = flags(issues, wrong)
    return result


def compare(name: str, models: Models, seeds: int, rows: int | None) -> dict[str, Any]:
    """(seeds, 2) numbers per contender."""
    X, y = load(name, rows)
    draws = [one(X, y, models, seed) for seed in range(seeds)]
    table = {k: np.array([d[k] for d in draws]) for k in draws[0]}
    variants = [k for k in table if k not in ("ours", "plain") and not k.startswith("flags")]
    if variants:
        table["cleanlab"] = table["self_confidence"]
        means = np.array([table[v].mean(axis=0) for v in variants])
        table["best of cleanlab"] = np.stack([table[variants[means[:, j].argmax()]][:, j] for j in (0, 1)], axis=1)
    return table


def show(title: str, tables: dict[str, dict[str, Any]]) -> None:
    """Means ± standard deviations over the draws, and by how much we are ahead."""
    print(f"\n{title}\n{'set':10}{'contender':20}{'AUROC':>18}{'precision at 10 %':>22}{'ours − it':>20}")
    margins: dict[str, list[Any]] = {}
    for name, table in tables.items():
        for who in [w for w in SHOWN if w in table]:
            mean, sd = table[who].mean(axis=0), table[who].std(axis=0)
            ahead = table["ours"].mean(axis=0) - mean
            margins.setdefault(who, []).append(ahead)
            print(f"{name:10}{who:20}{mean[0]:9.4f} ± {sd[0]:.4f}{mean[1]:13.4f} ± {sd[1]:.4f}", end="")
            print("" if who == "ours" else f"{ahead[0]:+12.4f}{ahead[1]:+9.4f}")
        for who in [w for w in ("flags ours", "flags cleanlab") if w in table]:
            precision, recall = table[who].mean(axis=0)
            print(f"{name:10}{who:20}precision {precision:.3f}, recall {recall:.3f}")
    for who, by_set in margins.items():
        if who != "ours":
            mean, least = np.mean(by_set, axis=0), np.min(by_set, axis=0)
            print(f"ours − {who}: mean {mean[0]:+.4f} AUROC, {mean[1]:+.4f} precision; ", end="")
            print(f"least {least[0]:+.4f}, {least[1]:+.4f}")


def logistic(X: Any, classes: int) -> list[Any]:
    """One logistic regression."""
    return [LogisticRegression(max_iter=1000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows of each set, two draws")
    chosen = parser.parse_args()
    if get_label_quality_scores is None:
        print("cleanlab is not installed: only the plain loss is compared (pip install cleanlab==2.9.0)")
    seeds = 2 if chosen.quick else chosen.seeds
    for title, models in (("logistic", logistic), ("panel", default_classifiers)):
        start, tables = time.perf_counter(), {}
        for name in chosen.sets:
            tables[name] = compare(name, models, seeds, QUICK_ROWS if chosen.quick else ROWS.get(name))
        show(f"{title}: {seeds} draws of flips, {time.perf_counter() - start:.0f} s", tables)


if __name__ == "__main__":
    main()
