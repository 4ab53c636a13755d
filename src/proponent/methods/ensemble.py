"""Ensembles: the mean of a method's scores over several trained models."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xarray as xr

from proponent.attribution import Attribution, Values
from proponent.errors import InputError
from proponent.methods.fitted_gradients import FittedGradients
from proponent.methods.tracin import read_state
from proponent.rows import Rows
from proponent.task import Task


@dataclass(frozen=True)
class Ensemble:
    """The mean of a method's scores over models that were trained in the same way.

    score[q, i] = (1/M) Σ_m score_m[q, i]

    A retrained model differs by its seed as much as by the examples that are left out. What the mean over a few seeds' models
    predicts is the mean over seeds, which is all that there is to predict.

    >>> import torch, proponent as pp
    >>> tasks = [pp.Task(torch.nn.Linear(3, 2)) for _ in range(3)]
    >>> train = torch.randn(6, 3), torch.randint(2, (6,))
    >>> together = Ensemble(pp.GradDot()).fit(tasks, train).score(train).dataset.score
    >>> each = [pp.GradDot().fit(task, train).score(train).dataset.score for task in tasks]
    >>> bool(abs(together - sum(each) / 3).max() < 1e-5)
    True

    The models may be checkpoints of one training run, early ones among them. That is worth almost as much as other seeds:
    each predicts about as well as the last, and errs elsewhere. Their scores shrink as the loss falls, so let them count
    alike by `balanced`.

    Args:
        spec: a method that is fitted to a task, such as `Influence(…)`, `GradDot()` or `RepresenterPoints()`.
        checkpoints: weights of the models, paths or state dicts as in `TracIn`, where `fit` gets the one task that they
            belong to. Each is a copy of the model in memory.
        balanced: divide a model's scores of a query by their standard deviation σ_m[q] before the mean, which is multiplied
            by the mean of all σ_m[q]. All scores of one model are in memory at once.

    Raises:
        InputError: no model, or a checkpoint that does not fit.

    Source: Søgaard et al., Revisiting methods for finding influential examples, 2021; Park et al., TRAK, ICML 2023.
    """

    spec: Any
    checkpoints: Sequence[str | Path | Mapping[str, Any]] | None = None
    balanced: bool = False

    def fit(self, task: Task | Sequence[Task], train: Any) -> Any:
        """Fit the method to each model.

        Args:
            task: one for each model; or one with `checkpoints`.
            train: as in `GradDot.fit`.

        Returns:
            a `FittedGradients` whose members are all the models', where the method gives one, so that everything that it
            does (streams, strongest examples, self-influence) is of the mean; a `FittedEnsemble` otherwise, or if balanced.
        """
        tasks, rows = self._tasks(task), Rows.of(train)
        fitted = [self.spec.fit(each, rows) for each in tasks]
        if not self.balanced and all(isinstance(f, FittedGradients) for f in fitted):
            return together(fitted)
        return FittedEnsemble(fitted, self.balanced)

    def _tasks(self, task: Task | Sequence[Task]) -> list[Task]:
        if self.checkpoints is None:
            tasks = [task] if isinstance(task, Task) else list(task)
        elif isinstance(task, Task):
            tasks = [with_weights(task, checkpoint) for checkpoint in self.checkpoints]
        else:
            raise InputError("several tasks and checkpoints", "one task, whose model they are of", "pass one of both")
        if not tasks:
            raise InputError("no model", "a task for each model, or checkpoints", "pass [task, …]")
        return tasks


@dataclass(frozen=True)
class FittedEnsemble:
    """The mean of what each model gives.

    Args:
        fitted: one for each model.
        balanced: whether each counts alike.
    """

    fitted: Sequence[Any]
    balanced: bool = False

    def score(self, query: Any, *, out: str | Path | None = None, **options: Any) -> Attribution:
        """Mean scores of all training examples for queries.

        Args:
            query: as for each model's own `score`.
            out: a zarr path where the mean is written, once it is there.
            options: of each model's own `score`.
        """
        queries = Rows.of(query)
        first = self.fitted[0].score(queries, **options).dataset
        later = (one.score(queries, **options).dataset["score"] for one in self.fitted[1:])
        mean = self._mean(itertools.chain([first["score"]], later))
        made = Attribution(first[["score"]].assign(score=mean).assign_attrs(self._named(first.attrs)))
        return made if out is None else Attribution.load(made.save(out))

    def self_influence(self) -> Values:
        """Mean of each model's."""
        each = [one.self_influence().dataset for one in self.fitted]
        mean = self._mean(one["value"] for one in each)
        return Values(each[0][["value"]].assign(value=mean).assign_attrs(self._named(each[0].attrs)))

    def perturbation(self, query: Any, rows: Sequence[Any], of: str | None = None) -> xr.DataArray:
        """How the mean scores change per unit change of each input number of a training example, the models' shares kept.

        Args:
            query, rows, of: as for each model's own `perturbation`.
        """
        queries = Rows.of(query)
        each = [one.perturbation(queries, rows, of) for one in self.fitted]
        shares: list[Any] = [1.0] * len(each)
        if self.balanced:
            sizes = [one.score(queries).dataset["score"].std("train") for one in self.fitted]
            shares = [sum(sizes) / len(sizes) / size.where(size > 0, 1.0) for size in sizes]
        mean: xr.DataArray = sum(s * p for s, p in zip(shares, each, strict=True)) / len(each)
        return mean.transpose(*each[0].dims).assign_attrs(each[0].attrs)

    def _mean(self, each: Iterable[xr.DataArray]) -> xr.DataArray:
        """Over the models, one after the other."""
        total: Any = 0.0
        sizes: Any = 0.0
        for one in each:
            deviation = one.std("train") if self.balanced else xr.ones_like(one.isel(train=0, drop=True))
            total = total + one / deviation.where(deviation > 0, 1.0)
            sizes = sizes + deviation
        mean: xr.DataArray = total / len(self.fitted) * (sizes / len(self.fitted))
        return mean.transpose(*one.dims).astype(one.dtype)

    def _named(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        count = len(self.fitted)
        what = "balanced mean" if self.balanced else "mean"
        return {"method": f"{attributes['method']}, {what} of {count} models", "models": count}


def together(fitted: Sequence[FittedGradients]) -> FittedGradients:
    """One, whose members are all, each with its share of the mean."""
    first, count = fitted[0], len(fitted)
    return replace(
        first,
        method=f"{first.method}, mean of {count} models",
        settings={**first.settings, "models": count},
        members=[replace(m, weight=m.weight / count) for each in fitted for m in each.members],
        seconds=sum(each.seconds for each in fitted),
    )


def with_weights(task: Task, checkpoint: str | Path | Mapping[str, Any]) -> Task:
    """The same task of a copy of the model with a checkpoint's weights."""
    net = copy.deepcopy(task.net)
    try:
        net.load_state_dict(checkpoint if isinstance(checkpoint, Mapping) else read_state(checkpoint))
    except RuntimeError as e:
        raise InputError(
            f"a checkpoint that does not fit the model ({e})", "the model's own state dict", "check it"
        ) from e
    return replace(task, model=net)
