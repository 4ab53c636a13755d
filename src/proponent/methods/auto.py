"""`attribute`: scores in one call, by a method that says why it was chosen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from proponent.attribution import Attribution
from proponent.errors import InputError, did_you_mean
from proponent.examples import Examples
from proponent.memory import peak_memory
from proponent.methods import recipes
from proponent.methods.plan import GRADIENT_METHODS, influence_of, plan
from proponent.retrain.recipe import SklearnRecipe

RECIPE_METHODS = ("auto", "leave_one_out", "influence", "knn_shapley")
OPTIONS = ("damping", "weight_decay", "batch_size", "shortcut", "query_rank", "solver", "checkpoints", "learning_rates")
UNPLANNED = ("ggn", "hessian", "fisher", "empirical_fisher")
"""Methods of a task that are taken by name only: what they cost is not predicted."""


def attribute(
    subject: Any, train: Any, query: Any, method: str = "auto", out: str | Path | None = None, **options: Any
) -> Attribution:
    """Which training examples stand behind the queries' measurements.

    >>> from sklearn.linear_model import Ridge
    >>> import numpy as np
    >>> X, y = np.arange(8.0).reshape(4, 2) ** 2, np.array([0.0, 1.0, 2.0, 4.0])
    >>> attribute(Ridge(), (X, y), (X[:2], y[:2])).dataset.attrs["reason"]
    'Leave-one-out by two Newton steps with certified bounds: the model is convex, so this is exact within the bounds.'

    Args:
        subject: a Task; a SklearnRecipe, or a scikit-learn estimator or pipeline.
        train, query: of a task: (inputs …, targets), a mapping, a dataset or a DataLoader; else Examples or (inputs, labels).
        method: "auto"; of a task "graddot", "gradcos", "tracin", "identity", "diagonal", "kfac", "ekfac", "ggn", "hessian",
            "fisher", "empirical_fisher"; of a recipe
            "leave_one_out", "influence", "knn_shapley". The result's `reason` says why "auto" chose what it did, and
            `predicted_seconds`, `predicted_memory_mb` beside `seconds`, `memory_mb` how good the plan was.
        out: a path to stream the scores to.
        options: of a task: damping, weight_decay, shortcut, query_rank, solver (as in `Influence`), checkpoints of
            the training run (of which every method but TracIn takes the balanced mean, see `Ensemble`), learning_rates (as in
            `TracIn`), batch_size.

    Raises:
        InputError: an unknown method or option.
        UnsupportedModel: the named method does not apply to the model.
    """
    start = time.perf_counter()
    if hasattr(subject, "watching"):  # a Task: asking for its class would load torch
        scores, facts = _task_scores(subject, train, query, method, out, options)
    else:
        _require(method, RECIPE_METHODS, options)
        recipe = subject if isinstance(subject, SklearnRecipe) else SklearnRecipe(subject)
        scores, reason = recipes.run(recipe, Examples.of(train), Examples.of(query), method, out)
        facts = {"reason": reason, "seconds": round(time.perf_counter() - start, 3)}
    return replace(scores, dataset=scores.dataset.assign_attrs(facts))


def _require(method: str, known: tuple[str, ...], options: Mapping[str, Any], taken: tuple[str, ...] = ()) -> None:
    if method not in known:
        raise InputError(f"method {method!r}", f"one of {', '.join(known)}", did_you_mean(method, known))
    for name in options:
        if name not in taken:
            wanted = f"one of {', '.join(taken)}" if taken else "no options: a recipe has its own"
            raise InputError(f"option {name!r}", wanted, did_you_mean(name, taken) if taken else "leave it out")


def _task_scores(
    task: Any, train: Any, query: Any, method: str, out: Any, options: dict[str, Any]
) -> tuple[Attribution, dict[str, Any]]:
    from proponent.rows import Rows

    _require(method, ("auto", *GRADIENT_METHODS, *UNPLANNED), options, OPTIONS)
    rows, queries = Rows.of(train), Rows.of(query)
    planned: Mapping[str, Any] = {}
    chosen, reason = method, f"{method}, as asked."
    if method not in UNPLANNED:
        made = plan(task, rows, queries, None if method == "auto" else [method], out, **options)
        if method == "auto":
            chosen, reason = made.choice, f"{made.reason[0].upper()}{made.reason[1:]}"
        planned = made.of(chosen)
    start = time.perf_counter()
    with peak_memory() as peak:
        scores = gradient_method(chosen, options).fit(task, rows).score(queries, out=out)
    facts = {
        "chosen": chosen,
        "reason": reason,
        "seconds": round(time.perf_counter() - start, 3),
        "predicted_seconds": planned.get("seconds"),
        "memory_mb": peak.megabytes,
        "predicted_memory_mb": planned.get("memory_mb"),
    }
    return scores, {k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items() if v is not None and v == v}


def gradient_method(name: str, options: Mapping[str, Any]) -> Any:
    """The specification of a method for tasks, with the options that concern it; the mean over checkpoints that are given."""
    checkpoints = options.get("checkpoints")
    if name == "tracin":
        from proponent.methods.tracin import TracIn

        if not checkpoints:
            raise InputError("TracIn without checkpoints", "checkpoints=[…] of the training run", "pass their paths")
        batch = {"batch_size": options["batch_size"]} if "batch_size" in options else {}
        return TracIn(checkpoints, options.get("learning_rates"), **batch)
    spec = _of_one_model(name, options)
    if not checkpoints:
        return spec
    from proponent.methods.ensemble import Ensemble

    return Ensemble(spec, checkpoints, balanced=True)


def _of_one_model(name: str, options: Mapping[str, Any]) -> Any:
    batch = {"batch_size": options["batch_size"]} if "batch_size" in options else {}
    if name in ("graddot", "gradcos"):
        from proponent.methods.grad_dot import GradCos, GradDot

        return (GradDot if name == "graddot" else GradCos)(**batch)
    return influence_of(name, options)
