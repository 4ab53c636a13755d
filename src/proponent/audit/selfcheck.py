"""The audit checks itself: does the model get better without what was flagged, on rows that the flags never saw?

Within each split the flags are made anew from the split's training part, by the audit's own rules; label errors in one
round, without the refits that weigh suspicious rows down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.applications.removal_check import Flags, Removal, accuracy, minus_log_loss, minus_mae, r2, take
from proponent.audit import findings
from proponent.audit.labels import label_table
from proponent.audit.model import WEAKER, Chosen, fit_quietly
from proponent.audit.prepare import Data
from proponent.convex.predictor import refit
from proponent.errors import ProponentError
from proponent.examples import Examples
from proponent.methods.leave_one_out import FittedLeaveOneOut, LeaveOneOut
from proponent.retrain.recipe import SklearnRecipe

Array = np.ndarray[Any, np.dtype[Any]]

NEWTON_PARAMETERS = (
    1_000  # up to here harmful rows are checked too, and with one output on dense rows Newton beats lbfgs
)


@dataclass(frozen=True)
class Pool:
    """All rows of an audit by number, the training rows first, then the held-out rows.

    Splits work on these numbers, because a row has two forms: encoded features, and what the model takes.
    """

    data: Data
    chosen: Chosen

    def heldout(self) -> Array:
        """The numbers of the held-out rows."""
        return np.arange(len(self.data.heldout)) + len(self.data.train)

    def features(self, rows: Array) -> Any:
        """Encoded features of training rows."""
        return take(self.data.train.matrix, rows)

    def inputs(self, rows: Array) -> Any:
        """What the model takes, of rows that are all training rows or all held-out rows."""
        n = len(self.data.train)
        return take(self.chosen.heldout, rows - n) if len(rows) and rows[0] >= n else take(self.chosen.train, rows)


def plan(data: Data, chosen: Chosen, fitted: FittedLeaveOneOut | None) -> Removal:
    """How splits of the self-check are flagged, refitted and scored; their rows are numbers in a `Pool`."""
    pool = Pool(data, chosen)
    names = (
        {"accuracy": accuracy} if data.task == "classification" else {"R²": r2, "minus mean absolute error": minus_mae}
    )
    small = fitted is not None and fitted.fit.model.problem.parameters <= NEWTON_PARAMETERS
    fast = small and fitted is not None and fitted.fit.model.problem.outputs == 1 and not hasattr(chosen.train, "nnz")

    def fit_one(rows: Array, y: Array, penalty: float) -> Any:
        X = pool.inputs(rows)
        complete = data.task == "regression" or len(np.unique(y)) == len(data.train.table.classes)
        if fast and fitted is not None and complete:
            try:
                return refit(fitted.fit.model, X, y, penalty)
            except ProponentError:
                pass  # scikit-learn stops somewhere where there is no optimum, and so would the user's own training
        return fit_quietly(chosen.quick if penalty == 1.0 else chosen.weaker, X, y)

    def fit(rows: Array, y: Array, seed: int) -> Any:
        """How strongly to regularise is part of training: cleaner labels want less, so each training set is asked."""
        if chosen.weaker is None:
            return fit_one(rows, y, 1.0)
        order = np.random.default_rng([seed, 6]).permutation(len(y))
        inner, outer = np.sort(order[len(y) // 5 :]), np.sort(order[: len(y) // 5])
        losses = [_loss(fit_one(rows[inner], y[inner], p), pool.inputs(rows[outer]), y[outer]) for p in (1.0, WEAKER)]
        return fit_one(rows, y, 1.0 if losses[0] <= losses[1] else WEAKER)

    def flag(rows: Array, y: Array, seed: int) -> dict[str, Flags]:
        flags = {"label errors": _label_errors(pool, rows, y, seed)}
        return flags | {"harmful rows": _harmful(pool, rows, y, seed)} if small else flags

    def scored(score: Callable[[Any, Any, Array], float]) -> Callable[[Any, Any, Array], float]:
        return lambda model, rows, y: score(model, pool.inputs(rows), y)

    return Removal(fit, {name: scored(score) for name, score in names.items()}, flag)


def _loss(model: Any, X: Any, y: Array) -> float:
    """Mean log loss, or squared error of a regression."""
    classes = getattr(model, "classes_", None)
    return -minus_log_loss(model, X, y) if classes is not None else float(np.mean((model.predict(X) - y) ** 2))


def _label_errors(pool: Pool, rows: Array, y: Array, seed: int) -> Flags:
    table = label_table(pool.features(rows), y, pool.data.train.table.ids[rows], pool.data.task, seed, rounds=0)
    flagged = table[table["flagged"]]
    order = np.argsort(-table["probability"].to_numpy(), kind="stable")
    return Flags(flagged["at"].to_numpy(dtype=int), flagged["suggested"].to_numpy().astype(y.dtype), order)


def _harmful(pool: Pool, rows: Array, y: Array, seed: int) -> Flags:
    """The audit's rule for harmful rows, on a part to train on and a part to measure on inside the given rows."""
    order = np.random.default_rng([seed, 3]).permutation(len(y))
    inner, outer = np.sort(order[: int(0.8 * len(y))]), np.sort(order[int(0.8 * len(y)) :])
    if pool.data.task == "classification":
        outer = outer[np.isin(y[outer], np.unique(y[inner]))]
    train = Examples.of((pool.inputs(rows[inner]), y[inner]), ids=inner)
    fitted = LeaveOneOut(steps=1).fit(SklearnRecipe(pool.chosen.quick), train)
    assert isinstance(fitted, FittedLeaveOneOut)
    values = fitted.values(Examples.of((pool.inputs(rows[outer]), y[outer]), ids=outer)).dataset
    effects = {"value": values["value"].to_numpy(), "stderr": values["stderr"].to_numpy()}
    return Flags(inner[findings.harmful(effects, pool.data.task)["at"].to_numpy(dtype=int)])
