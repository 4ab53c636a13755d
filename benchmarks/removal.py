"""Does removing what the audit flags as label errors beat removing as many random rows?

    python benchmarks/removal.py [--repeats 10]

10 % of labels flipped uniformly at random among the other classes, on adult (10,000 rows), spambase, sms-spam and digits.
Each repetition draws a new split (80 % to train on, 20 % to measure on; the latter's labels are left as they are) and new
flips; flags come from the training part alone. The model is the audit's default, its regularisation chosen as the audit
does. Intervals: corrected resampled t (Nadeau and Bengio 2003), because splits overlap.
"""

import argparse

import numpy as np

from data import load
from proponent.applications.label_errors import find_label_errors
from proponent.applications.removal_summary import interval
from proponent.audit.model import STRENGTHS
from proponent.audit.model import fit_quietly as fit
from proponent.examples import Examples

SETS = {"adult": 10_000, "spambase": None, "sms-spam": None, "digits": None}


def flip(y, share, seed):
    """Labels with a share of them replaced by another class, uniformly, and where."""
    rng = np.random.default_rng([seed, 99])
    classes = np.unique(y)
    at = rng.permutation(len(y))[: round(share * len(y))]
    given = y.copy()
    given[at] = classes[(np.searchsorted(classes, y[at]) + rng.integers(1, len(classes), len(at))) % len(classes)]
    return given, at


def model_for(X, y, seed):
    """Logistic regression of the best strength on three folds, as in the audit."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    part = np.random.default_rng([seed, 2]).permutation(len(y))[:5000]
    make = lambda c: LogisticRegression(C=c, max_iter=2000)  # noqa: E731
    scores = [cross_val_score(make(c), X[part], y[part], cv=3, scoring="neg_log_loss").mean() for c in STRENGTHS]
    return make(STRENGTHS[int(np.argmax(scores))])


def repetition(X, y, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    train, rest = order[: int(0.8 * len(y))], order[int(0.8 * len(y)) :]
    given, _ = flip(y[train], 0.1, seed)
    model = model_for(X[train], given, seed)
    found = find_label_errors(Examples(X[train], train, given), task="classification", seed=seed).table
    flagged = np.flatnonzero(found["flagged"])

    def accuracy(keep, labels):
        return float(np.mean(fit(model, X[train][keep], labels[keep]).predict(X[rest]) == y[rest]))

    every = np.arange(len(train))
    relabelled = given.copy()
    relabelled[flagged] = found["suggested"].to_numpy()[flagged].astype(given.dtype)
    before = accuracy(every, given)
    removed = accuracy(np.delete(every, flagged), given)
    random = np.mean(
        [accuracy(np.delete(every, rng.choice(every, len(flagged), replace=False)), given) for _ in range(3)]
    )
    return len(flagged) / len(train), before, removed, random, accuracy(every, relabelled)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    args = parser.parse_args()
    wins = 0
    print(
        f"{'set':10} {'flagged':>8} {'as is':>8} {'removed':>8} {'random':>8} {'relabelled':>10}   gain over random (95 % interval)"
    )
    for name in args.sets:
        X, y = load(name, SETS[name])
        rows = np.array([repetition(X, y, seed) for seed in range(args.repeats)])
        mean = rows.mean(axis=0)
        gain, lower, upper = interval(rows[:, 2] - rows[:, 3], 0.25)
        wins += lower > 0
        print(
            f"{name:10} {mean[0]:8.1%} {mean[1]:8.2%} {mean[2]:8.2%} {mean[3]:8.2%} {mean[4]:10.2%}   "
            f"{gain:+.2%} ({lower:+.2%} to {upper:+.2%}){' *' if lower > 0 else ''}"
        )
    print(f"{wins} of {len(args.sets)} with 95 % confidence (*); n = {args.repeats} repetitions")
