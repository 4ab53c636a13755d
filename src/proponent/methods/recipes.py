"""Which method explains a scikit-learn model, and why."""

from __future__ import annotations

from typing import Any

from proponent.attribution import Attribution
from proponent.errors import UnsupportedModel
from proponent.examples import Examples
from proponent.methods.influence import Influence
from proponent.methods.knn_shapley import KNNShapley
from proponent.methods.leave_one_out import LeaveOneOut
from proponent.retrain.recipe import SklearnRecipe

SECOND_STEP_LIMIT = 4e9
"""Rows² × parameters up to which the second step and its bounds take about a minute."""

FACTORISED = 6_000
"""Parameters up to which the curvature is factorised."""


def choose(recipe: Any, train: Examples) -> tuple[str, str]:
    """The method that "auto" takes, and the reason in one sentence."""
    recipe = recipe if isinstance(recipe, SklearnRecipe) else SklearnRecipe(recipe)
    try:
        problem = Influence().fit(recipe, train).fit.model.problem
    except UnsupportedModel as e:
        return (
            "knn_shapley",
            f"KNN-Shapley, because {e.got} has no exact leave-one-out; it values the examples for a nearest-neighbour model.",
        )
    if problem.parameters > FACTORISED:
        return (
            "influence",
            f"Influence functions by conjugate gradients: {problem.parameters:,} parameters are too many to factorise.",
        )
    if float(problem.rows) ** 2 * problem.parameters > SECOND_STEP_LIMIT:
        return (
            "one_step",
            f"Leave-one-out by one Newton step: bounds for {problem.rows:,} rows would take more than a minute.",
        )
    return (
        "leave_one_out",
        "Leave-one-out by two Newton steps with certified bounds: the model is convex, so this is exact within the bounds.",
    )


def run(recipe: Any, train: Examples, query: Examples, method: str, out: Any = None) -> tuple[Attribution, str]:
    """Scores and the reason for the method."""
    asked = {"influence": "Influence functions", "knn_shapley": "KNN-Shapley", "leave_one_out": "Leave-one-out"}
    chosen, reason = choose(recipe, train) if method == "auto" else (method, f"{asked[method]}, as asked.")
    if chosen == "influence":
        return Influence().fit(recipe, train).score(query), reason
    if chosen == "knn_shapley":
        return KNNShapley().fit(train).score(query), reason
    fitted: Any = LeaveOneOut(steps=1).fit(recipe, train) if chosen == "one_step" else LeaveOneOut().fit(recipe, train)
    return fitted.score(query, out=out), reason
