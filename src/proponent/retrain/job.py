"""What one worker does: train models on some subsets, measure them, and record them before it reports."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.examples import Examples
from proponent.retrain.kept_models import ModelShelf
from proponent.retrain.recipe import Failure, fit_many, measure_many
from proponent.retrain.subsets import Subsets
from proponent.retrain.trained import Outcome
from proponent.store.log import RecordLog

Array = np.ndarray[Any, np.dtype[Any]]
ONE_BY_ONE = 16
"""Subsets a worker takes at a time where each is trained, and recorded, alone."""


@dataclass(frozen=True)
class Work:
    """What all jobs of a run have in common.

    Args:
        log: where outcomes are recorded; None keeps them in memory.
        keep_models: give the models with the outcomes, and put them on the log's shelf.
    """

    recipe: Any
    train: Examples
    query: Examples
    log: RecordLog | None
    keep_models: bool

    @functools.cached_property
    def mark(self) -> str:
        """Names the queries in records."""
        return self.query.fingerprint()

    @functools.cached_property
    def together(self) -> int:
        """Subsets that are trained, and recorded, together."""
        return together(self.recipe, self.train)

    @property
    def shelf(self) -> ModelShelf | None:
        """Where models lie beside the log."""
        return None if self.log is None else ModelShelf(self.log.directory / "models", self.recipe)


@dataclass(frozen=True)
class Job:
    """Subsets for one worker.

    Args:
        token: of the run that hands the job out.
        name: of the file that its outcomes are recorded in.
    """

    subsets: Subsets
    token: str
    name: str


@dataclass(frozen=True, slots=True)
class Done:
    """An outcome, and the model where models are kept."""

    outcome: Outcome
    model: Any = None


@dataclass(frozen=True)
class Results:
    """What came of a job's subsets, as few arrays: they travel between processes.

    Args:
        measured: (m, q); NaN where a fit failed.
        errors: (m,) why it failed, or "".
        models: (m,) where models are kept, or none.
    """

    measured: Array
    errors: list[str]
    models: list[Any]

    def of(self, subsets: Subsets) -> list[Done]:
        """The outcomes of these subsets, those of the job; none where it was not wanted."""
        models = self.models or [None] * len(self.errors)
        rows = zip(subsets.keys(), subsets.included, subsets.seeds.tolist(), strict=True)
        return [
            Done(Outcome(*row, measured, error), model)
            for row, measured, error, model in zip(rows, self.measured, self.errors, models, strict=False)
        ]


def together(recipe: Any, train: Examples) -> int:
    """Subsets that a recipe trains together."""
    return int(recipe.batch_on(train) if hasattr(recipe, "batch_on") else getattr(recipe, "batch", 1))


def jobs(work: Work, subsets: Subsets, token: str, attempt: int) -> list[Job]:
    """The subsets cut into jobs, always alike, so that a batch is made of the same subsets however many workers there are."""
    size = work.together if work.together > 1 else ONE_BY_ONE
    starts = range(0, len(subsets), size)
    return [Job(subsets.take(slice(at, at + size)), token, f"{token}-{attempt}-{at:08d}") for at in starts]


def do(work: Work, job: Job) -> Results:
    """Train, measure and record a job's subsets; nothing where the run that gave the job is gone."""
    with work.log.working(job.token) if work.log else nullcontext(True) as wanted:
        parts = range(0, len(job.subsets), work.together) if wanted else []
        trained = [_train(work, job.subsets.take(slice(at, at + work.together)), job.name) for at in parts]
    return Results(
        np.concatenate([part.measured for part in trained]) if trained else np.empty((0, len(work.query))),
        [error for part in trained for error in part.errors],
        [model for part in trained for model in part.models],
    )


def _train(work: Work, subsets: Subsets, name: str) -> Results:
    keys = subsets.keys()
    models = [work.shelf.take(key) if work.shelf else None for key in keys]
    new = [at for at, model in enumerate(models) if model is None]
    if new:
        fresh = fit_many(work.recipe, work.train, subsets.included[new], subsets.seeds[new])
        for at, model in zip(new, fresh, strict=True):
            models[at] = model
    results = Results(*_measure(work, models), models if work.keep_models else [])
    if work.shelf and work.keep_models:
        for at in new:
            work.shelf.put(keys[at], models[at])
    if work.log:
        work.log.append(name, [done.outcome.record(work.mark) for done in results.of(subsets)])
    return results


def _measure(work: Work, models: list[Any]) -> tuple[Array, list[str]]:
    """(m, q) measurements and, of each model, why it counts as failed."""
    measured = measure_many(work.recipe, models, work.query)
    errors = [model.reason if isinstance(model, Failure) else "" for model in models]
    for at in np.flatnonzero(~np.isfinite(measured).all(axis=1)):
        errors[at] = errors[at] or f"{int((~np.isfinite(measured[at])).sum())} measurements that are not finite"
        measured[at] = np.nan
    return measured, errors
