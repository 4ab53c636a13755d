"""`attribute`: scores in one call, by a method that says why it was chosen."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from proponent.attribution import Attribution
from proponent.errors import InputError, UnsupportedModel, did_you_mean
from proponent.examples import Examples
from proponent.methods.influence import Influence
from proponent.methods.knn_shapley import KNNShapley
from proponent.methods.leave_one_out import LeaveOneOut
from proponent.retrain.recipe import SklearnRecipe

METHODS = ("auto", "leave_one_out", "influence", "knn_shapley")

SECOND_STEP_LIMIT = 4e9
"""Rows² × parameters up to which the second step and its bounds take about a minute."""


def attribute(recipe: Any, train: Any, query: Any, method: str = "auto") -> Attribution:
    """Which training examples stand behind the queries' measurements.

    >>> from sklearn.linear_model import Ridge
    >>> import numpy as np
    >>> X, y = np.arange(8.0).reshape(4, 2) ** 2, np.array([0.0, 1.0, 2.0, 4.0])
    >>> attribute(Ridge(), (X, y), (X[:2], y[:2])).dataset.attrs["reason"]
    'Leave-one-out by two Newton steps with certified bounds: the model is convex, so this is exact within the bounds.'

    Args:
        recipe: a SklearnRecipe, or a scikit-learn estimator or pipeline.
        train: Examples, or (inputs, labels).
        query: Examples, or (inputs, labels).
        method: "auto", "leave_one_out", "influence" or "knn_shapley". The result's `reason` says why "auto" chose what it did.

    Raises:
        InputError: an unknown method.
        UnsupportedModel: the named method does not apply to the model.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r}", f"one of {', '.join(METHODS)}", did_you_mean(method, METHODS))
    start = time.perf_counter()
    recipe = recipe if isinstance(recipe, SklearnRecipe) else SklearnRecipe(recipe)
    train, query = Examples.of(train), Examples.of(query)
    scores, reason = _run(recipe, train, query, method)
    seconds = round(time.perf_counter() - start, 3)
    return replace(scores, dataset=scores.dataset.assign_attrs(reason=reason, seconds=seconds))


def _run(recipe: SklearnRecipe, train: Examples, query: Examples, method: str) -> tuple[Attribution, str]:
    if method == "influence":
        return Influence().fit(recipe, train).score(query), "Influence functions, as asked."
    if method == "knn_shapley":
        return KNNShapley().fit(train).score(query), "KNN-Shapley, as asked."
    if method == "leave_one_out":
        return LeaveOneOut().fit(recipe, train).score(query), "Leave-one-out, as asked."
    try:
        fitted = Influence().fit(recipe, train)
    except UnsupportedModel as e:
        return (
            KNNShapley().fit(train).score(query),
            f"KNN-Shapley, because {e.got} has no exact leave-one-out; it values the examples for a nearest-neighbour model.",
        )
    problem = fitted.fit.model.problem
    if problem.parameters > 6_000:
        return fitted.score(
            query
        ), f"Influence functions by conjugate gradients: {problem.parameters:,} parameters are too many to factorise."
    if float(problem.rows) ** 2 * problem.parameters > SECOND_STEP_LIMIT:
        scores = LeaveOneOut(steps=1).fit(recipe, train).score(query)
        return (
            scores,
            f"Leave-one-out by one Newton step: bounds for {problem.rows:,} rows would take more than a minute.",
        )
    return (
        LeaveOneOut().fit(recipe, train).score(query),
        "Leave-one-out by two Newton steps with certified bounds: the model is convex, so this is exact within the bounds.",
    )
