"""Does removing what the audit flags as label errors beat removing as many random rows?

    python benchmarks/removal.py [--repeats 4]

10 % of labels flipped uniformly at random among the other classes, on adult (10,000 rows), spambase, sms-spam and digits.
Five folds, so that every row is held out once per repetition, with its true label; each repetition deals new folds and
new flips, and flags come from the training folds alone. The model is the audit's default; its regularisation is part of
training, so it is chosen anew for every training set, as the audit chooses it (labels with flips want a stronger one).

Interval of the gain: 1.96 standard errors, variance = (over rows, of a row's mean gain over the repetitions) / n
+ (over repetitions, of the gain) / repetitions.
"""

import argparse

import numpy as np

from data import load
from proponent.applications.label_errors import find_label_errors
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

    part = np.random.default_rng([seed, 2]).permutation(len(y))[:3000]
    make = lambda c: LogisticRegression(C=c, max_iter=2000, tol=1e-3)  # noqa: E731
    scores = [cross_val_score(make(c), X[part], y[part], cv=3, scoring="neg_log_loss").mean() for c in STRENGTHS]
    return make(STRENGTHS[int(np.argmax(scores))])


def repetition(X, y, seed):
    """Per row, whether it is predicted right by each variant that held it out: (variants, n); and the share flagged."""
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(y)) % 5
    right, share = np.zeros((len(VARIANTS), len(y))), 0.0
    for k in range(5):
        train, rest = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        given, _ = flip(y[train], 0.1, 10 * seed + k)
        found = find_label_errors(Examples(X[train], train, given), task="classification", seed=seed).table
        flagged = np.flatnonzero(found["flagged"])
        share += len(flagged) / len(train) / 5
        relabelled = given.copy()
        relabelled[flagged] = found["suggested"].to_numpy()[flagged].astype(given.dtype)
        every = np.arange(len(train))
        random = [np.delete(every, rng.choice(every, len(flagged), replace=False)) for _ in range(2)]
        sets = [(every, given), (np.delete(every, flagged), given), *((r, given) for r in random), (every, relabelled)]
        for v, (keep, labels) in enumerate(sets):
            model = fit(model_for(X[train][keep], labels[keep], seed), X[train][keep], labels[keep])
            right[v, rest] = model.predict(X[rest]) == y[rest]
    return right, share


VARIANTS = ("as is", "removed", "random", "random again", "relabelled")


def gain_interval(gains):
    """Mean and 95 % bounds of per-row gains (repetitions, n)."""
    repeats, n = gains.shape
    variance = gains.mean(axis=0).var(ddof=1) / n + (gains.mean(axis=1).var(ddof=1) / repeats if repeats > 1 else 0.0)
    mean, margin = gains.mean(), 1.96 * np.sqrt(variance)
    return mean, mean - margin, mean + margin


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    args = parser.parse_args()
    wins = 0
    print(
        f"{'set':10} {'flagged':>8} {'as is':>8} {'removed':>8} {'random':>8} {'relabelled':>10}   gain over random (95 % interval)"
    )
    for name in args.sets:
        X, y = load(name, SETS[name])
        done = [repetition(X, y, seed) for seed in range(args.repeats)]
        right, share = np.stack([r for r, _ in done]), np.mean([s for _, s in done])
        as_is, removed, random, again, relabelled = right.mean(axis=(0, 2))
        gain, lower, upper = gain_interval(right[:, 1] - right[:, 2:4].mean(axis=1))
        wins += lower > 0
        print(
            f"{name:10} {share:8.1%} {as_is:8.2%} {removed:8.2%} {(random + again) / 2:8.2%} {relabelled:10.2%}   "
            f"{gain:+.2%} ({lower:+.2%} to {upper:+.2%}){' *' if lower > 0 else ''}",
            flush=True,
        )
    print(f"{wins} of {len(args.sets)} with 95 % confidence (*); n = {args.repeats} repetitions of 5 folds")
