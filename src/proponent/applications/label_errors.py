"""Which training labels are wrong, by models that did not see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.utils.multiclass import type_of_target

from proponent.applications.label_noise import LabelNoise, fit_label_noise
from proponent.applications.out_of_sample import (
    assign_folds,
    default_classifiers,
    default_regressors,
    keys,
    out_of_sample,
)
from proponent.applications.outliers import leverage, outlier_probability, pool, robust_scale
from proponent.errors import InputError
from proponent.examples import Examples

Array = np.ndarray[Any, np.dtype[Any]]

FLAGGED = 0.5  # the probability of being wrong above which a row is flagged: half of the least certain flags are right
LEAST_TRUST = 0.01  # a row is never quite left out of the refits, so that no class can vanish


@dataclass(frozen=True)
class LabelErrors:
    """How likely each training label is wrong, and what it should be.

    Args:
        table: one row per training row, in the order given. Classification: row (its id), label, wrong (the probability
            that the label is wrong), suggested (the likeliest other class), confidence (its probability from the
            features alone), flagged. Regression: row, label, wrong, suggested (the out-of-sample prediction),
            residual (label − suggested, in robust standard deviations), flagged.
        rate: estimated fraction of wrong labels among all.
        classes: the classes in the order of the columns of `probabilities`; empty for regression.
        probabilities: (n, C) out-of-sample probabilities of the true class; None for regression.
        notes: what should be known about these results, in words.
    """

    table: pd.DataFrame
    rate: float
    classes: tuple[Any, ...]
    probabilities: Array | None
    notes: tuple[str, ...]

    def flagged(self) -> pd.DataFrame:
        """The flagged rows, most surely wrong first."""
        return self.table[self.table.flagged].sort_values("wrong", ascending=False, kind="stable")


def find_label_errors(
    train: Examples | tuple[Any, Any],
    *,
    estimators: Sequence[Any] | None = None,
    task: Literal["auto", "classification", "regression"] = "auto",
    folds: int = 5,
    rounds: int = 2,
    seed: int = 0,
) -> LabelErrors:
    """The probability that each training label is wrong, from models fitted on other rows whose labels look right.

    Round 0 predicts every row by models fitted on the other folds and fits P(given | true) and the pooling of the models
    to the given labels (see `fit_label_noise`). Each further round deals new folds and refits with every row weighted
    by its probability of being right. At the end the noise model pools the predictions of all rounds. Where round 0 shows no
    evidence of wrong labels, it is the last.
    Scores follow the rows' ids, not their order, and do not depend on what the classes are called.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> names = np.array(["setosa", "versicolor", "virginica"])[y]
    >>> names[[3, 60]] = ["virginica", "setosa"]
    >>> errors = find_label_errors((X, names))
    >>> errors.flagged().set_index("row").loc[[3, 60], "suggested"].to_dict()
    {3: 'setosa', 60: 'versicolor'}

    Args:
        train: Examples, or a pair (X, y): X numeric, (n, d), dense or sparse. Sample weights multiply the rows' weights.
        estimators: scikit-learn classifiers with `predict_proba`, or regressors; a panel of linear models and, on dense
            features, boosted trees where None.
        task: "auto" takes labels with fractions for regression, all others for classes.
        folds: rows are predicted by models fitted on folds − 1 of as many parts; at least 2.
        rounds: refits with the suspicious rows weighted down; 0 for none.
        seed: deals the folds.

    Raises:
        InputError: no labels, missing labels, features that are not finite numbers, fewer than two classes or `folds` rows.

    Source: Northcutt et al., Confident Learning, JAIR 2021 (out-of-sample probabilities); Bootkrajang and Kabán,
    Label-Noise Robust Logistic Regression, ECML 2012 (weighting by the posterior of a clean label).
    """
    X, y, examples = _checked(Examples.of(train), folds, rounds)
    kind = task if task != "auto" else "regression" if type_of_target(y).startswith("continuous") else "classification"
    order = np.argsort(keys(examples.ids, seed), kind="stable")  # the computation sees the rows in an order of its own
    weights = np.ones(len(y)) if examples.weights is None else examples.weights
    shuffled = (X[order], y[order], weights[order])
    back = np.argsort(order)
    deal = _Deal(examples.ids[order], folds, rounds, seed)
    if kind == "regression":
        return _numbers(*shuffled, estimators, deal).put(back, examples)
    return _classes(*shuffled, estimators, deal).put(back, examples)


@dataclass(frozen=True)
class _Deal:
    """Which rows are predicted together, in each round."""

    ids: Array
    folds: int
    rounds: int
    seed: int

    def fold(self, codes: Array, turn: int) -> Array:
        return assign_folds(keys(self.ids, self.seed + 7919 * (turn + 1)), codes, self.folds)


@dataclass(frozen=True)
class _Found:
    """Columns in the order of the computation, put back into the order of the rows at the end."""

    columns: dict[str, Array]
    rate: float
    classes: tuple[Any, ...] = ()
    probabilities: Array | None = None
    notes: tuple[str, ...] = ()

    def put(self, back: Array, examples: Examples) -> LabelErrors:
        columns = {"row": examples.ids, "label": examples.labels} | {k: v[back] for k, v in self.columns.items()}
        probabilities = None if self.probabilities is None else self.probabilities[back]
        return LabelErrors(pd.DataFrame(columns), self.rate, self.classes, probabilities, self.notes)


def _classes(X: Any, y: Array, weights: Array, estimators: Sequence[Any] | None, deal: _Deal) -> _Found:
    names, first, codes = np.unique(y, return_index=True, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"the one class {names[0]!r}", "at least two classes", "choose another label")
    by_first = np.argsort(first)  # classes by first appearance: what they are called cannot matter
    codes, names = np.argsort(by_first)[codes], names[by_first]
    counts = np.bincount(codes)
    judged = counts[codes] >= deal.folds
    if not judged.any():
        raise InputError(
            f"at most {counts.max()} rows per class", f"at least {deal.folds} in one", "lower folds or add rows"
        )
    members = default_classifiers(X, len(names)) if estimators is None else estimators
    probabilities, noise = _denoised(members, X, codes, weights, deal, weights * judged)
    true, wrong = noise.true(probabilities), noise.wrong(probabilities, codes)
    rate = float(np.average(wrong[judged], weights=_positive(weights[judged])))
    unknown = min(rate, FLAGGED / 2)  # too few rows to tell: as likely wrong as the average row
    wrong = np.where(judged, wrong, unknown)
    others = true.copy()
    others[np.arange(len(codes)), codes] = -1
    suggested = others.argmax(axis=1)
    columns = {
        "wrong": wrong,
        "suggested": names[suggested],
        "confidence": true[np.arange(len(codes)), suggested],
        "flagged": wrong > FLAGGED,
    }
    alphabetical = np.argsort(by_first)
    few = sorted(str(c) for c in names[counts < deal.folds])
    note = f"not judged, because fewer than {deal.folds} rows have the label: {', '.join(few)}"
    return _Found(columns, rate, tuple(names[alphabetical].tolist()), true[:, alphabetical], (note,) if few else ())


def _denoised(
    members: Sequence[Any], X: Any, codes: Array, weights: Array, deal: _Deal, judged: Array
) -> tuple[Array, LabelNoise]:
    """Out-of-sample probabilities of all rounds, (rounds · members, n, C), and the noise model that pools them."""
    turns: list[Array] = []
    trust = None
    for turn in range(deal.rounds + 1):
        turns.append(out_of_sample(members, X, codes, deal.fold(codes, turn), weights=weights, keep=trust))
        noise = fit_label_noise(turns[-1], codes, judged, evident=turn > 0)
        if turn == 0 and not noise.evident():
            return turns[0], noise
        trust = np.maximum(1 - noise.wrong(turns[-1], codes), LEAST_TRUST)
    everything = np.concatenate(turns)
    return everything, fit_label_noise(everything, codes, judged, evident=True)


def _numbers(X: Any, y: Array, weights: Array, estimators: Sequence[Any] | None, deal: _Deal) -> _Found:
    members = default_regressors(X) if estimators is None else estimators
    y = y.astype(float)
    strata = np.zeros(len(y), int)
    hats = leverage(X)
    trust: Array | None = None
    predictions: list[Array] = []
    for turn in range(deal.rounds + 1):
        each = out_of_sample(members, X, y, deal.fold(strata, turn), weights=weights, keep=trust)
        prediction = pool(each, y)
        predictions = [*predictions, prediction][-max(deal.rounds, 1) :]
        residual = (y - prediction) / np.sqrt(1 + hats)
        trust = np.maximum(1 - outlier_probability(residual / robust_scale(residual)), LEAST_TRUST)
    suggested = np.mean(predictions, axis=0)
    residual = (y - suggested) / np.sqrt(1 + hats)
    residual = residual / robust_scale(residual)
    wrong = outlier_probability(residual)
    columns = {"wrong": wrong, "suggested": suggested, "residual": residual, "flagged": wrong > FLAGGED}
    return _Found(columns, float(np.average(wrong, weights=_positive(weights))))


def _positive(weights: Array) -> Array:
    return weights if weights.sum() > 0 else np.ones(len(weights))


def _checked(examples: Examples, folds: int, rounds: int) -> tuple[Any, Array, Examples]:
    if examples.labels is None:
        raise InputError("examples without labels", "labels to judge", "pass a pair (X, y) or Examples with labels")
    X = examples.inputs
    X = X.tocsr() if sparse.issparse(X) else np.asarray(X)
    if X.ndim != 2 or X.dtype.kind not in "fiub":
        raise InputError(
            f"inputs of shape {X.shape}, dtype {X.dtype}", "numbers, shape (n, d)", "encode texts, images, categories"
        )
    X = X.astype(np.float64)
    numbers = X.data if sparse.issparse(X) else X
    missing = int(pd.isna(examples.labels).sum())
    for count, what, do in (
        (int((~np.isfinite(numbers)).sum()), "features that are not finite", "impute the missing values first"),
        (missing, "missing labels", "leave out the rows without a label"),
    ):
        if count:
            raise InputError(f"{count} {what}", "finite features and a label in every row", do)
    if folds < 2 or rounds < 0 or len(examples) < 2 * folds:
        raise InputError(
            f"folds={folds}, rounds={rounds} for {len(examples)} rows",
            "folds ≥ 2, rounds ≥ 0 and at least 2 · folds rows",
            "lower folds or add rows",
        )
    return X, examples.labels, examples
