"""Does the model get better without the flagged rows? The question is put to refits on rows that the flags never saw."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.metrics import r2_score

from proponent.applications.removal_summary import Outcome, summarise, summarise_curve
from proponent.errors import InputError, ProponentError, ProponentWarning
from proponent.progress import track

Array = np.ndarray[Any, np.dtype[Any]]
Action = Literal["remove", "relabel"]
Score = Callable[[Any, Any, Array], float]

FAILURES = (ValueError, ArithmeticError, ProponentError)  # of a fit or a score: recorded, and the split goes on
MEASURED_SHARE = 1 / 3  # of a fixed evaluation set, anew in every split, so that its own variance shows
FRACTIONS = (0.0, 0.025, 0.05, 0.10, 0.15, 0.20, 0.30)


def accuracy(model: Any, X: Any, y: Array) -> float:
    """Share of rows whose label is predicted."""
    return float(np.mean(np.asarray(model.predict(X)) == y))


def balanced_accuracy(model: Any, X: Any, y: Array) -> float:
    """Mean over classes of the share of the class's rows whose label is predicted."""
    right = np.asarray(model.predict(X)) == y
    return float(np.mean([right[y == c].mean() for c in np.unique(y)]))


def minus_log_loss(model: Any, X: Any, y: Array) -> float:
    """Mean log-probability of the label; a class that the model does not know has probability 1e-15."""
    known = np.searchsorted(model.classes_, y).clip(max=len(model.classes_) - 1)
    p = np.where(model.classes_[known] == y, model.predict_proba(X)[np.arange(len(y)), known], 0.0)
    return float(np.log(np.clip(p, 1e-15, 1)).mean())


def r2(model: Any, X: Any, y: Array) -> float:
    """Share of the labels' variance that the predictions explain."""
    return float(r2_score(y, model.predict(X)))


def minus_mae(model: Any, X: Any, y: Array) -> float:
    """Minus the mean absolute error."""
    return -float(np.mean(np.abs(np.asarray(model.predict(X)) - y)))


@dataclass(frozen=True)
class Flags:
    """What is wrong with a training part, by positions in it.

    Args:
        rows: positions of the rows to remove, or to relabel.
        suggested: (len(rows),) labels to give them, or None.
        ranking: positions, the one to remove first in front; it may end before the last row. None: no removal curve.
    """

    rows: Array
    suggested: Array | None = None
    ranking: Array | None = None


@dataclass(frozen=True)
class Removal:
    """A check by refitting: how models are fitted, scored and their training rows flagged.

    Args:
        fit: (X, y, seed) → model.
        scores: name → score(model, X, y), high = good, such as `accuracy` or `minus_log_loss`.
        flag: (X, y, seed) → what is flagged among these rows → its flags; sees the training part of a split only.
        actions: "remove", "relabel".
        fractions: of the training part to remove for the curve; () for none.
        draws: random removals of as many rows, uniform, averaged.
        train_share: of the rows that a split trains on. The others are evaluated on; where there is a fixed evaluation
            set, a random third of that is.

    Raises:
        InputError: train_share is not between 0 and 1, or there are no draws.
    """

    fit: Callable[[Any, Array, int], Any]
    scores: Mapping[str, Score]
    flag: Callable[[Any, Array, int], Mapping[str, Flags]]
    actions: Sequence[Action] = ("remove", "relabel")
    fractions: Sequence[float] = FRACTIONS
    draws: int = 3
    train_share: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.train_share < 1 or self.draws < 1:
            raise InputError(
                f"train_share {self.train_share} and {self.draws} draws",
                "a train_share between 0 and 1 and at least one draw",
                "use the defaults 0.8 and 3",
            )


def check(
    plan: Removal, X: Any, y: Array, *, evaluation: tuple[Any, Array] | None = None, splits: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Refit without the flagged rows, with the suggested labels and without random rows, and measure on other rows.

    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 2)); truth = (X[:, 0] > 0).astype(int)
    >>> y = np.where(rng.random(300) < 0.2, 1 - truth, truth)
    >>> def wrong(X, y, seed):  # stands for a method that finds label errors
    ...     return {"label errors": Flags(np.flatnonzero((X[:, 0] > 0) != y))}
    >>> plan = Removal(lambda X, y, seed: KNeighborsClassifier(1).fit(X, y), {"accuracy": accuracy}, wrong)
    >>> result = check(plan, X, y, splits=5).iloc[0]
    >>> bool(result["gain_lower"] > 0)
    True

    Args:
        plan: how to fit, to score and to flag.
        X: inputs of n rows: array, sparse matrix, DataFrame or list.
        y: (n,) labels.
        evaluation: (X, y) to evaluate on; None: every split holds rows out.
        splits: how many; the interval uses splits − 1 degrees of freedom.
        seed: split r depends on (seed, r) alone.

    Returns:
        See `summarise`.
    """
    return summarise(_outcomes(replace(plan, fractions=()), X, y, evaluation, splits, seed))


def removal_curve(
    plan: Removal, X: Any, y: Array, *, evaluation: tuple[Any, Array] | None = None, splits: int = 10, seed: int = 0
) -> pd.DataFrame:
    """The measurement as ever more rows are removed, by the ranking and at random.

    Args: see `check`.

    Returns:
        See `summarise_curve`; of the first of the plan's scores.
    """
    return summarise_curve(
        _outcomes(replace(plan, actions=()), X, y, evaluation, splits, seed), next(iter(plan.scores))
    )


def run_split(
    plan: Removal, X: Any, y: Array, r: int, *, evaluation: tuple[Any, Array] | None = None, seed: int = 0
) -> Outcome:
    """One split of a check: flag rows inside the training part, refit, and score on the evaluation part.

    Args:
        plan, X, y, evaluation: see `check`.
        r: the split's number.
        seed: split r depends on (seed, r) alone, so that splits can be stored and run in any order.

    Returns:
        Numbers by name, for `summarise` and `summarise_curve`; NaN where a refit failed (a warning says why).

    Raises:
        InputError: the name of a score or of what is flagged contains "|".
    """
    rng = np.random.default_rng([seed, r])
    labels = np.asarray(y)
    train, rest = _parts(labels, plan.train_share, rng)
    other = (X, labels) if evaluation is None else (evaluation[0], np.asarray(evaluation[1]))
    measured = rest if evaluation is None else _parts(other[1], MEASURED_SHARE, rng)[0]
    flag_seed, fit_seed = (int(s) for s in rng.integers(2**31, size=2))
    orders = tuple(rng.permutation(len(train)) for _ in range(plan.draws))
    split = _Split(plan, take(X, train), labels[train], take(other[0], measured), other[1][measured], fit_seed, orders)
    flags = plan.flag(split.X, split.y, flag_seed)
    if wrong := [name for name in (*plan.scores, *flags) if "|" in name]:
        raise InputError(f"the name {wrong[0]!r}", 'a name without "|"', "choose another name")
    return split.run(flags) | {"train": len(train), "evaluation": len(measured), "fixed": float(evaluation is not None)}


def take(X: Any, at: Array) -> Any:
    """Rows of an array, sparse matrix, DataFrame or list."""
    if hasattr(X, "iloc"):
        return X.iloc[at]
    return X[at] if hasattr(X, "shape") else [X[i] for i in at]


@dataclass(frozen=True)
class _Split:
    """The training and the evaluation part of a split, and the orders in which random rows go."""

    plan: Removal
    X: Any
    y: Array
    X_evaluation: Any
    y_evaluation: Array
    seed: int
    orders: tuple[Array, ...]

    def run(self, flags: Mapping[str, Flags]) -> Outcome:
        before = self.refit(np.empty(0, dtype=int), self.y)
        curve = next((f.ranking for f in flags.values() if f.ranking is not None), np.empty(0, dtype=int))
        counts = {f: round(f * len(self.y)) for f in self.plan.fractions if round(f * len(self.y)) <= len(curve) > 0}
        needed = {*counts.values(), *(len(f.rows) for f in flags.values() if self.plan.actions)}
        random = {k: self.at_random(k) if k else before for k in sorted(needed)}
        outcome = _named("{}|before", before)
        for what, flagged in flags.items():
            for action in self.plan.actions:
                if action == "relabel" and flagged.suggested is None:
                    continue
                k = len(flagged.rows)
                outcome |= {f"{what}|{action}|rows": float(k)}
                outcome |= _named(f"{{}}|{what}|{action}|after", self.act(action, flagged) if k else before)
                outcome |= _named(f"{{}}|{what}|{action}|random", random[k])
        for fraction, k in counts.items():
            outcome |= _named(f"{{}}|curve|{fraction:g}|flagged", self.refit(curve[:k], self.y) if k else before)
            outcome |= _named(f"{{}}|curve|{fraction:g}|random", random[k])
        return outcome

    def act(self, action: Action, flagged: Flags) -> Outcome:
        if action == "remove":
            return self.refit(flagged.rows, self.y)
        labels = self.y.astype(np.result_type(self.y, np.asarray(flagged.suggested)))
        labels[flagged.rows] = flagged.suggested
        return self.refit(flagged.rows[:0], labels)

    def at_random(self, count: int) -> Outcome:
        drawn = [self.refit(order[:count], self.y) for order in self.orders]
        return {name: float(np.mean([d[name] for d in drawn])) for name in self.plan.scores}

    def refit(self, removed: Array, labels: Array) -> Outcome:
        kept = np.delete(np.arange(len(self.y)), removed)
        try:
            model = self.plan.fit(take(self.X, kept), labels[kept], self.seed)
            return {name: float(s(model, self.X_evaluation, self.y_evaluation)) for name, s in self.plan.scores.items()}
        except FAILURES as failure:
            message = f"A refit without {len(removed)} of {len(self.y)} rows failed and does not count: {failure}"
            warnings.warn(message, ProponentWarning, stacklevel=2)
            return dict.fromkeys(self.plan.scores, float("nan"))


def _named(pattern: str, values: Outcome) -> Outcome:
    return {pattern.format(name): value for name, value in values.items()}


def _outcomes(
    plan: Removal, X: Any, y: Array, evaluation: tuple[Any, Array] | None, splits: int, seed: int
) -> list[Outcome]:
    return [
        run_split(plan, X, y, r, evaluation=evaluation, seed=seed) for r in track(range(splits), "refitting", splits)
    ]


def _parts(y: Array, share: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """A random share of the rows, and the others; in every class the same share, to within one row."""
    order = rng.permutation(len(y))
    if y.dtype.kind not in "fc" and len(np.unique(y)) <= max(2, len(y) // 10):
        order = order[np.argsort(y[order], kind="stable")]
    chosen = np.diff(np.floor(np.arange(len(y) + 1) * share + rng.random())) > 0
    return np.sort(order[chosen]), np.sort(order[~chosen])
