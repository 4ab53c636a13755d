"""Retraining: models trained on subsets, each once, by any number of workers."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from proponent.errors import ProponentError
from proponent.examples import Examples
from proponent.progress import say
from proponent.retrain.job import Done, Work, do, jobs
from proponent.retrain.kept_models import require_packable
from proponent.retrain.ledger import Ledger
from proponent.retrain.maps import WorkersLost, pmap
from proponent.retrain.recipe import as_recipe
from proponent.retrain.subsets import Plan, Subsets, resolve
from proponent.retrain.trained import Trained, as_ledger

Array = np.ndarray[Any, np.dtype[Any]]
PATIENCE = 3
"""Times in a row that workers may die without any result before the run gives up."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by hand; what was trained is in `.ledger`."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(f"stopped with {len(ledger):,} models trained; they are in this exception's .ledger")
        self.ledger = ledger


def retrain(
    recipe: Any,
    train: Any,
    query: Any,
    subsets: Subsets | Plan | Array,
    *,
    ledger: str | Path | Trained | None = None,
    keep_models: bool = False,
    workers: int | None = None,
) -> Ledger:
    """Train a model on every subset and measure every query by it.

    measured[s, q] = m_q(A(subset s, seed s))

    >>> from sklearn.linear_model import Ridge
    >>> from proponent.retrain.subsets import halves
    >>> train, query = (np.arange(8.0)[:, None], np.arange(8.0)), (np.array([[9.0]]), np.array([9.0]))
    >>> retrain(Ridge(), train, query, halves(3))
    Ledger(3 models, 3 subsets of 8 training examples × 1 queries)

    Results depend on the recipe, the examples, the subset and its seed alone: any number of workers, of any of joblib's
    back ends (`joblib.parallel_config(backend="loky" | "threading" | "ray" | "dask")`), gives the same bits. A fit that
    fails is recorded with what its error said, and measured as NaN.

    Args:
        recipe: a SklearnRecipe, TorchRecipe or FunctionRecipe, or a scikit-learn estimator.
        train: Examples, or (inputs, labels).
        query: what is measured by every model.
        subsets: a plan from `proponent.retrain.subsets` such as `halves(200)`, Subsets, or (m, n) counts.
        ledger: a directory that keeps every training as soon as it is done, or the `Trained` opened from one. What it
            holds is not trained again; a killed run started again goes on.
        keep_models: hold the models (`ledger.models`); in a directory too, where the recipe can write them as arrays, so
            that new queries cost predictions only.
        workers: how many train at once; None takes what `joblib.parallel_config` says, or 1, in this process.

    Raises:
        InputError: subsets of other examples, or another run writing to the ledger.
        FingerprintMismatch: the ledger is of another recipe or other training examples.
        Interrupted: Ctrl-C; a KeyboardInterrupt that carries what was trained.
    """
    start = time.perf_counter()
    recipe, train, query = as_recipe(recipe), Examples.of(train), Examples.of(query)
    drawn = resolve(subsets, len(train))
    trained = ledger if ledger is None or isinstance(ledger, Trained) else Trained.open(ledger, recipe, train)
    if keep_models and trained is not None:
        require_packable(recipe, train)
    work = Work(recipe, train, query, None if trained is None else trained.log, keep_models)
    keys = drawn.keys()
    done: dict[bytes, Done] = {}
    try:
        for one in _pieces(work, trained, drawn, keys, workers):
            done[one.outcome.key] = one
    except KeyboardInterrupt:
        raise Interrupted(_ledger(work, [done[key] for key in keys if key in done], start)) from None
    return _ledger(work, [done[key] for key in keys], start)


def _pieces(
    work: Work, trained: Trained | None, drawn: Subsets, keys: list[bytes], workers: int | None
) -> Iterator[Done]:
    """What the ledger has, then what is trained now; again where workers died, until nothing is missing."""
    missing = {key: at for at, key in reversed(list(enumerate(keys)))}
    deaths = 0
    with nullcontext("") if trained is None else trained.log.driving() as token:
        while missing:
            before = len(missing)
            for one in _recovered(work, trained, missing):
                del missing[one.outcome.key]
                yield one
            todo = jobs(work, drawn.take(sorted(missing.values())), token, deaths)
            try:
                for one in _results(work, todo, workers):
                    del missing[one.outcome.key]
                    yield one
            except WorkersLost as lost:
                deaths = deaths + 1 if len(missing) == before else 1
                if deaths == PATIENCE:
                    raise ProponentError(
                        f"workers that died {PATIENCE} times in a row: {lost}",
                        "workers that live to the end of a job",
                        "use fewer workers, or free memory; what was recorded is kept",
                    ) from lost
                say("workers died; going on with new ones")


def _recovered(work: Work, trained: Trained | None, missing: Iterable[bytes]) -> list[Done]:
    """What the ledger holds of the missing, with its models where they are asked for."""
    if trained is None:
        return []
    trained.refresh()
    found = [Done(outcome) for outcome in trained.outcomes(work.mark, list(missing))]
    if not work.keep_models or work.shelf is None:
        return found
    with_models = [Done(one.outcome, work.shelf.take(one.outcome.key)) for one in found]
    return [one for one in with_models if one.model is not None or one.outcome.error]


def _results(work: Work, todo: list[Any], workers: int | None) -> Iterator[Done]:
    for job, results in zip(todo, pmap(functools.partial(do, work), todo, "trainings", workers), strict=True):
        yield from results.of(job.subsets)


def _ledger(work: Work, done: list[Done], start: float) -> Ledger:
    models = [one.model for one in done] if work.keep_models else None
    return as_ledger(
        [one.outcome for one in done], work.train, work.query, models, seconds=round(time.perf_counter() - start, 3)
    )
