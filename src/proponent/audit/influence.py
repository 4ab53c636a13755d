"""What each training row does: to the held-out rows, to itself, and with which certainty."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from proponent.audit.model import Chosen, told_in_words
from proponent.audit.prepare import Data, Part
from proponent.convex.removal import Removals
from proponent.examples import Examples
from proponent.methods.knn_shapley import KNNShapley
from proponent.methods.leave_one_out import FittedLeaveOneOut, LeaveOneOut, means_over_queries
from proponent.retrain.recipe import SklearnRecipe
from proponent.store.stages import Arrays

Array = np.ndarray[Any, np.dtype[Any]]

CERTIFY_ALL = 2e9
"""Rows² × parameters up to which every row's value gets its bounds (seconds); beyond, the reported rows do."""


NEIGHBOUR_PAIRS = 60_000_000
"""Pairs of training row and query that KNN-Shapley values look at; of more queries every k-th is taken."""


def encoded_examples(part: Part, inputs: Any = None) -> Examples:
    """A part's rows as the model takes them."""
    return Examples(part.matrix if inputs is None else inputs, part.table.ids, part.labels)


def fit_exact(data: Data, chosen: Chosen) -> FittedLeaveOneOut:
    """Leave-one-out around the model under audit, by one Newton step; `certified` takes the second."""
    with told_in_words(chosen.estimator):
        fitted = LeaveOneOut(steps=1).fit(SklearnRecipe(chosen.estimator), encoded_examples(data.train, chosen.train))
    assert isinstance(fitted, FittedLeaveOneOut)
    return fitted


def certified(fitted: FittedLeaveOneOut) -> FittedLeaveOneOut:
    """The same fit, with a second step and bounds."""
    return replace(fitted, spec=LeaveOneOut(steps=2, tolerance=1e-3))


def heldout_queries(data: Data, chosen: Chosen) -> Examples:
    """The held-out rows that values are measured on."""
    return encoded_examples(data.heldout, chosen.heldout).take(data.queries)


def row_effects(data: Data, fitted: FittedLeaveOneOut, queries: Examples) -> Arrays:
    """Per training row: value, stderr, magnitude, self_influence, and its own prediction with and without it."""
    measured = fitted.fit.queries(queries)

    def effects(removed: Removals) -> tuple[Arrays, Array]:
        score = fitted.measure(measured, removed)["score"]
        return means_over_queries({"score": score}), fitted.own_logits(removed)

    parts, own_logits = zip(*fitted.each(effects, np.arange(len(data.train))), strict=True)
    means = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    within, without = fitted.fit.model.optimum.logits, np.concatenate(own_logits)
    own = fitted.fit.queries(fitted.fit.train).measurement
    problem = fitted.fit.model.problem
    arrays: Arrays = {
        "value": means["score"],
        "stderr": means["stderr"],
        "magnitude": means["magnitude"],
        "self_influence": (own.value(within[:, :, None]) - own.value(without[:, :, None]))[:, 0],
        "cost": np.asarray(float(problem.rows) ** 2 * problem.parameters),
    }
    if data.task == "regression":
        return arrays | {"predicted": without[:, 0], "fitted": within[:, 0]}
    codes = np.searchsorted(data.train.table.classes, data.train.labels)
    inside, outside = class_probabilities(within), class_probabilities(without)
    rows = np.arange(len(codes))
    return arrays | {
        "probability": outside[rows, codes],
        "probability_within": inside[rows, codes],
        "predicted": outside.argmax(axis=1),
        "predicted_within": inside.argmax(axis=1),
    }


def class_probabilities(logits: Array) -> Array:
    """(n, classes) from logits (n, 1) or (n, classes)."""
    if logits.shape[1] > 1:
        return np.asarray(softmax(logits, axis=1))
    p = expit(logits[:, 0])
    return np.stack([1 - p, p], axis=1)


def neighbour_values(data: Data) -> Arrays:
    """Each training row's mean KNN-Shapley value over the held-out queries."""
    few = max(100, NEIGHBOUR_PAIRS // len(data.train))
    queries = encoded_examples(data.heldout).take(data.queries[:: -(-len(data.queries) // few)])
    values = KNNShapley(k=5).fit(encoded_examples(data.train)).values(queries).dataset
    return {"value": np.asarray(values["value"]), "stderr": np.asarray(values["stderr"])}


def certified_values(data: Data, fitted: FittedLeaveOneOut, queries: Examples, rows: Array) -> Arrays:
    """Bounds on the values of these rows (positions) that contain what refitting gives."""
    if len(rows) == 0:
        return {"rows": rows.astype(int), "value": np.empty(0), "lower": np.empty(0), "upper": np.empty(0)}
    found = certified(fitted).values(queries, rows=list(data.train.table.ids[rows])).dataset
    return {"rows": rows, **{name: found[name].to_numpy() for name in ("value", "lower", "upper")}}
