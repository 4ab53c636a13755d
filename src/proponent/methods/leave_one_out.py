"""Leave-one-out scores of linear models by Newton steps, with certificates; of any model by refitting."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from proponent.attribution import Attribution, Values
from proponent.convex.curvature import MAX_DENSE
from proponent.convex.groups import remove_groups
from proponent.convex.problem import dense
from proponent.convex.removal import Neighbourhood, Removals, neighbourhood, remove_each, spread_norms
from proponent.errors import InputError, ProponentWarning, UnsupportedModel
from proponent.examples import Examples
from proponent.methods.convex_fit import ConvexFit, Queries
from proponent.methods.refits import FittedRefits
from proponent.methods.retraining import Retraining
from proponent.progress import track
from proponent.retrain.maps import one_thread, tmap
from proponent.store.matrix import MatrixStore, require_memory

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK = 512
WIDE = 0.01  # of the score
T = TypeVar("T")


@dataclass(frozen=True)
class LeaveOneOut:
    """What each training row does to each query: the measurement with it minus the measurement after removing it and refitting.

    score[q, i] = m_q(θ̂) − m_q(θ̂₋ᵢ),  θ̂₋ᵢ ≈ θ̂ + (H − s_i ℓ''_i x_i x_iᵀ)⁻¹ s_i ℓ'_i x_i, then further Newton steps

    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from proponent.retrain.recipe import SklearnRecipe
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> recipe = SklearnRecipe(make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=1000)))
    >>> scores = LeaveOneOut().fit(recipe, (X[:400], y[:400])).score((X[400:410], y[400:410]))
    >>> scores.shape
    (10, 400)
    >>> bool((scores.dataset.lower <= scores.dataset.upper).all())
    True

    Args:
        steps: 1: one Newton step (approximate leave-one-out, no bounds); 2: one more, with bounds `lower` and `upper`
            that contain the score of the exact refit; "exact": Newton steps until the bounds are tight to 1e-9;
            "refit": n refits of any recipe, without bounds.
        tolerance: rows whose certified distance exceeds this share of their step get more steps (steps=2), and so do
            rows whose bounds are wider than a hundredth of the score for most queries.
        repeats: training seeds for steps="refit": scores are means over them, with a standard error.

    Raises:
        UnsupportedModel: the model is not a smooth convex problem (unless steps="refit").
        NotConverged: its objective has no finite optimum.

    Source: Koh & Liang, Understanding black-box predictions via influence functions, ICML 2017; Rad & Maleki, A scalable
    estimate of the out-of-sample prediction error via approximate leave-one-out, JRSS-B 2020; certificate: see
    `proponent.convex.certificate`.
    """

    steps: Literal[1, 2, "exact", "refit"] = 2
    tolerance: float = 1e-3
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.steps not in (1, 2, "exact", "refit"):
            raise InputError(f"steps={self.steps!r}", "1, 2, 'exact' or 'refit'", "choose one of these")
        if self.repeats < 1 or (self.repeats > 1 and self.steps != "refit"):
            raise InputError(
                f"repeats={self.repeats} with steps={self.steps!r}", "one, or more to refit", "pass steps='refit'"
            )

    def fit(
        self, recipe: Any, train: Any, *, ledger: str | Path | None = None, workers: int | None = None
    ) -> FittedLeaveOneOut | FittedRefits:
        """Fit the recipe once and prepare all removals.

        Args:
            recipe: a SklearnRecipe, or a scikit-learn estimator; any recipe for steps="refit".
            train: Examples, or (inputs, labels).
            ledger: for steps="refit", a directory that keeps every training.
            workers: for steps="refit", models trained at once; None takes what `joblib.parallel_config` says, or 1.
        """
        if self.steps == "refit":
            return FittedRefits(Retraining.of(recipe, train, None, ledger, workers), self.repeats, asdict(self))
        fit = ConvexFit.of(recipe, train)
        problem = fit.model.problem
        if problem.parameters > MAX_DENSE:
            raise UnsupportedModel(
                f"{problem.outputs} classes × {problem.features:,} features = {problem.parameters:,} parameters",
                f"at most {MAX_DENSE:,}, whose curvature can be factorised",
                "use Influence (conjugate gradients), or reduce the features in front, e.g. by TruncatedSVD",
            )
        return FittedLeaveOneOut(self, fit, neighbourhood(fit.model.optimum))


@dataclass(frozen=True)
class FittedLeaveOneOut:
    """Leave-one-out around a fitted linear model."""

    spec: LeaveOneOut
    fit: ConvexFit
    home: Neighbourhood

    def score(self, query: Any, *, rows: Sequence[Any] | None = None, out: str | Path | None = None) -> Attribution:
        """Scores of training rows for queries, with bounds where the method has them.

        Args:
            query: Examples, or (inputs, labels).
            rows: ids of the training rows to score; all of them by default.
            out: a zarr path to stream to; a killed run started again goes on where it stopped.

        Raises:
            InputError: the result is too large for memory and `out` is not given.
        """
        start = time.perf_counter()
        queries = Examples.of(query)
        train = self.fit.train if rows is None else self.fit.train.take(self.fit.train.positions(list(rows)))
        at = self.fit.train.positions(train.ids)
        measured = self.fit.queries(queries)
        names = ("score",) if self.spec.steps == 1 else ("score", "lower", "upper")
        if out is not None:
            store = MatrixStore.open(
                out, queries, train, variables=names, block=BLOCK, method="LeaveOneOut", settings=self._settings()
            )
            for b in track(store.missing(), "leave-one-out"):
                part = list(self._blocks(measured, at[b * BLOCK : (b + 1) * BLOCK]))
                store.write(b, {name: np.hstack([p[name] for p in part]) for name in names})
            return Attribution.load(out)
        require_memory(len(queries), len(train), len(names))
        result = {name: np.empty((len(queries), len(at))) for name in names}
        done = 0
        for part_ in track(self._blocks(measured, at), "leave-one-out"):
            width = part_["score"].shape[1]
            for name in names:
                result[name][:, done : done + width] = part_[name]
            done += width
        self._warn_unknown(train, result["score"])
        seconds = round(self.fit.seconds + time.perf_counter() - start, 3)
        return Attribution.of(
            result.pop("score"),
            query=queries,
            train=train,
            method="LeaveOneOut",
            variables=result,
            attributes={"settings": self._settings(), "seconds": seconds},
        )

    def self_influence(self, rows: Sequence[Any] | None = None) -> Values:
        """What each row does to its own measurement: m_i(θ̂) − m_i(θ̂₋ᵢ), the memorization of a linear model."""
        train = self.fit.train if rows is None else self.fit.train.take(self.fit.train.positions(list(rows)))
        at = self.fit.train.positions(train.ids)
        own = self.fit.queries(train)
        without = self._own_logits(at)
        value = own.measurement.value(own.f[:, :, None]) - own.measurement.value(without[:, :, None])
        return Values.of(
            value[:, 0], train=train, method="LeaveOneOut, self-influence", attributes={"settings": self._settings()}
        )

    def values(self, query: Any, *, rows: Sequence[Any] | None = None) -> Values:
        """Each row's mean score over the queries, without holding the matrix.

        Beside it `stderr`, the standard error of that mean over the queries; `magnitude`, the mean of the absolute scores;
        and, with bounds, `lower` and `upper`.

        Args:
            query: Examples, or (inputs, labels).
            rows: ids of the training rows; all of them by default.
        """
        queries = Examples.of(query)
        train = self.fit.train if rows is None else self.fit.train.take(self.fit.train.positions(list(rows)))
        at = self.fit.train.positions(train.ids)
        measured = self.fit.queries(queries)
        parts = [means_over_queries(part) for part in track(self._blocks(measured, at), "values", -(-len(at) // BLOCK))]
        named = (
            {name: np.concatenate([p[name] for p in parts]) for name in parts[0]} if parts else {"score": np.empty(0)}
        )
        return Values.of(
            named.pop("score"),
            train=train,
            method="LeaveOneOut, mean over queries",
            variables=named,
            attributes={"settings": self._settings()},
        )

    def out_of_sample_logits(self) -> Array:
        """(n, c) each training row's logits by the model refitted without it."""
        return self._own_logits(np.arange(len(self.fit.train)))

    def steps_of(self, rows: Array) -> Array:
        """(rows, parameters) what removing each of these rows (positions) does to the parameters, before minus after."""
        return -np.concatenate(list(self.each(lambda removed: removed.delta.T, rows)))

    def query_gradients(self, query: Any) -> Array:
        """(q, parameters) the gradient of each query's measurement, so that a score is about gradient · step."""
        return self.fit.query_gradients(self.fit.queries(Examples.of(query)))

    def score_groups(self, query: Any, groups: Sequence[Any] | Array | None = None) -> Attribution:
        """Scores of whole groups removed at once (Newton step of the group, by Woodbury, and a second step with bounds).

        Args:
            query: Examples, or (inputs, labels).
            groups: (n,) the group of each training row; by default the training examples' own.
        """
        queries = Examples.of(query)
        member = self.fit.train.groups if groups is None else np.asarray(groups)
        if member is None or len(member) != len(self.fit.train):
            raise InputError("no groups, or not one per training row", f"{len(self.fit.train)} groups", "pass groups=")
        names, code = np.unique(member, return_inverse=True)
        measured = self.fit.queries(queries)
        removed = remove_groups(self.home, [np.flatnonzero(code == g) for g in range(len(names))])
        part = self.measure(measured, removed)
        score = part.pop("score")
        return Attribution.of(
            score,
            query=queries,
            train=names,
            method="LeaveOneOut, groups",
            variables=part,
            attributes={"settings": self._settings()},
        )

    def _settings(self) -> dict[str, Any]:
        return {**asdict(self.spec), "measurement": self.fit.recipe.measurement}

    def removals(self, at: Array) -> Iterator[Removals]:
        """The steps of removing each of these rows (positions) alone, block by block."""
        steps, tolerance = (4, 1e-9) if self.spec.steps == "exact" else (int(self.spec.steps), self.spec.tolerance)
        return remove_each(self.home, at, steps=steps, tolerance=tolerance)

    def each(self, function: Callable[[Removals], T], at: Array) -> Iterator[T]:
        """`function` of every block of removals of these rows (positions), in order, on all cores.

        Blocks do not depend on the number of cores, in memory or on disk, so neither do the bits of a result.
        """
        if self.spec.steps != 1:
            _ = self.home.reach  # shared by all blocks: found once, before they start

        def work(rows: Array) -> list[T]:
            return [function(removed) for removed in self.removals(rows)]

        with one_thread():
            for results in tmap(work, [at[b : b + BLOCK] for b in range(0, len(at), BLOCK)]):
                yield from results

    def _blocks(self, measured: Queries, at: Array) -> Iterator[dict[str, Array]]:
        def part(removed: Removals) -> dict[str, Array]:
            measures = self.measure(measured, removed)
            if self.spec.steps == 1:
                return {"score": measures["score"]}
            return self._tightened(measured, removed.rows, measures)

        return self.each(part, at)

    def _tightened(self, measured: Queries, rows: Array, measures: dict[str, Array]) -> dict[str, Array]:
        """Rows whose bounds are wide beside their scores for most queries, taken further.

        A step that is accurate in the curvature's norm can be far off for queries unlike any training row.
        """
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            share = (measures["upper"] - measures["lower"]) / np.abs(measures["score"])
            wide = np.median(np.nan_to_num(share, nan=0.0), axis=0) > WIDE
        at = np.flatnonzero(wide)
        done = 0
        for removed in remove_each(self.home, rows[at], steps=3, tolerance=1e-8):
            for name, columns in self.measure(measured, removed).items():
                measures[name][:, at[done : done + columns.shape[1]]] = columns
            done += len(removed.rows)
        return measures

    def measure(self, measured: Queries, removed: Removals) -> dict[str, Array]:
        """Scores of a block of removed rows, (q, b), with `lower` and `upper`."""
        problem, m = self.home.problem, measured.measurement
        full = m.value(measured.f[:, :, None])
        f = problem.logits_of_columns(removed.delta, measured.x)
        f += measured.f[:, :, None]
        part = {"score": full - m.value(f)}
        if not np.isinf(removed.distance).all():
            reach = spread_norms(self.home.factor, problem, measured.x, against=m.against)
            with np.errstate(invalid="ignore", over="ignore"):
                width = reach[:, :, None] * np.nan_to_num(removed.distance * removed.stretch, nan=np.inf)
                least, most = m.range(f, width)
            part |= {"lower": np.nan_to_num(full - most, nan=-np.inf), "upper": np.nan_to_num(full - least, nan=np.inf)}
        else:
            part |= {"lower": np.full_like(part["score"], -np.inf), "upper": np.full_like(part["score"], np.inf)}
        return part

    def _own_logits(self, at: Array) -> Array:
        return np.concatenate(list(self.each(self.own_logits, at)))

    def own_logits(self, removed: Removals) -> Array:
        """(b, c) the removed rows' own logits by the models without them."""
        problem, rows = self.home.problem, removed.rows
        delta = removed.delta.reshape(problem.outputs, problem.features, len(rows))
        return self.home.optimum.logits[rows] + np.einsum("bp,cpb->bc", dense(problem.x[rows]), delta, optimize=True)

    def _warn_unknown(self, train: Examples, score: Array) -> None:
        unknown = np.isnan(score).any(axis=0)
        if unknown.any():
            warnings.warn(
                f"{int(unknown.sum())} rows (ids {train.ids[unknown][:5].tolist()}, …) have no score: without them a coefficient "
                "is not determined. Regularise, or drop the column that only they have.",
                ProponentWarning,
                stacklevel=3,
            )


def means_over_queries(part: dict[str, Array]) -> dict[str, Array]:
    """Per removed row: the mean of every variable, and of `score` its `stderr` and the mean `magnitude`."""
    score = part["score"]
    spread = score.std(axis=0, ddof=1) if len(score) > 1 else np.full(score.shape[1], np.nan)
    extra = {"stderr": spread / np.sqrt(len(score)), "magnitude": np.abs(score).mean(axis=0)}
    return {name: column.mean(axis=0) for name, column in part.items()} | extra
