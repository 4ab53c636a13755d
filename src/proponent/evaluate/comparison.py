"""Methods side by side: a row each, a column for every number that judges them, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from proponent.attribution import Attribution, Values
from proponent.errors import InputError, ProponentError, did_you_mean
from proponent.evaluate.datamodeling import LDS, lds
from proponent.evaluate.detect import detection
from proponent.evaluate.left_out import loo_correlation
from proponent.evaluate.resampling import interval, span
from proponent.retrain.ledger import Ledger

Array = np.ndarray[Any, np.dtype[Any]]
Result = Attribution | Values
Metric = Callable[[Any], Any]
"""From a method's result to a judgement: anything with `summary() -> {name: number}`, such as a `Curve`."""

BOUNDS = ("_lower", "_upper")


@dataclass(frozen=True, eq=False)
class Comparison:
    """How methods do, best first.

    Args:
        table: a row per method: method, every metric with its bounds (`lds`, `lds_lower`, `lds_upper`, …), seconds (NaN where
            unknown), and `note`: why a number is missing.
        judgements: method → metric → the full result behind its numbers.
        sorted_by: the column that the methods are sorted by, largest first.
    """

    table: pd.DataFrame = field(repr=False)
    judgements: Mapping[str, Mapping[str, Any]] = field(repr=False)
    sorted_by: str

    def to_pandas(self) -> pd.DataFrame:
        """A row per method."""
        return self.table

    def versus(self, reference: str, *, level: float = 0.95) -> pd.DataFrame:
        """Every method's score minus the reference's, with intervals from common resamples.

        Resamples draw the same subsets and queries for all methods, so that differences are known more sharply than the
        scores themselves.

        Args:
            reference: a method's name.
            level: of the intervals.

        Returns:
            A DataFrame: method, difference, lower, upper; of the linear datamodeling score.

        Raises:
            InputError: no such method, or no linear datamodeling score of it.
        """
        scored = {name: made["lds"] for name, made in self.judgements.items() if isinstance(made.get("lds"), LDS)}
        if reference not in scored:
            raise InputError(
                f"no linear datamodeling score of {reference!r}",
                "a method that has one",
                did_you_mean(reference, scored),
            )
        base = scored.pop(reference)
        rows = []
        for name, one in scored.items():
            lower, upper = interval(one.draws - base.draws, level)
            rows.append({"method": name, "difference": one.mean - base.mean, "lower": lower, "upper": upper})
        return pd.DataFrame(rows, columns=["method", "difference", "lower", "upper"])

    def __str__(self) -> str:
        shown = {str(c): _shown(self.table, str(c)) for c in self.table if not str(c).endswith(BOUNDS)}
        if not any(shown["note"]):
            del shown["note"]
        return str(pd.DataFrame(shown).to_string(index=False))

    __repr__ = __str__


def compare(
    methods: Mapping[str, Result | Callable[[], Result]],
    *,
    ledger: Ledger | None = None,
    truth: Attribution | Ledger | None = None,
    is_bad: Any = None,
    lowest_is_bad: bool = True,
    metrics: Mapping[str, Metric] | None = None,
    noise_free: bool = False,
    sort: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Comparison:
    """A table of methods and metrics with intervals and cost, best first.

    >>> from proponent.evaluate import baselines
    >>> from proponent.retrain.subsets import halves
    >>> effects = np.random.default_rng(0).normal(size=(2, 20))
    >>> included = halves(50)(20).included
    >>> ledger = Ledger.of(included, included @ effects.T, train=range(20), query=["a", "b"])
    >>> scores = Attribution.of(effects, query=["a", "b"], train=range(20), method="planted", attributes={"seconds": 2.0})
    >>> chance = Attribution.of(-effects, query=["a", "b"], train=range(20), method="turned", attributes={"seconds": 1.0})
    >>> print(compare({"turned": chance, "planted": scores}, ledger=ledger, noise_free=True))
     method                     lds lds_of_ceiling  slope seconds
    planted    1.000 [1.000, 1.000]          1.000  1.000    2.00
     turned -1.000 [-1.000, -1.000]         -1.000 -1.000    1.00

    Args:
        methods: by name, results or functions that make them; a function is timed. One that raises an error of this library
            gets a row that says why.
        ledger: retrained models: gives the linear datamodeling score. Values, which are alike for all queries, are judged as
            scores that are the same for every query.
        truth: leave-one-out truth (see `loo_correlation`): gives correlations.
        is_bad: (n,) which training examples are bad: gives AUROC, AUPRC, precision and recall.
        lowest_is_bad: whether low values speak against a row.
        metrics: more, by name: functions from a result to a judgement, such as
            `lambda values: removal_curve(values, recipe, train, query)`.
        noise_free: see `lds`.
        sort: the column to sort by, largest first; the first metric by default.
        bootstrap: resamples for intervals; 0 for none.
        seed: of the resamples, the same for all methods.

    Raises:
        InputError: nothing to judge by, no methods, or an unknown column to sort by.
    """
    judges = dict(_judges(ledger, truth, is_bad, lowest_is_bad, noise_free, bootstrap, seed)) | dict(metrics or {})
    if not methods or not judges:
        raise InputError(
            f"{len(methods)} methods and {len(judges)} metrics",
            "at least one of each",
            "pass methods={name: result}, and a ledger, truth, is_bad or metrics to judge by",
        )
    rows, judgements = [], {}
    for name, method in methods.items():
        row, judgements[name] = _judged(name, method, judges)
        rows.append(row)
    table = pd.DataFrame(rows)
    numbers = [c for c in table if c not in ("method", "seconds", "note")]
    sort = sort or str(next(iter(numbers), "seconds"))
    if sort not in table:
        raise InputError(f"sort={sort!r}", "a column of the table", did_you_mean(sort, table.columns))
    table = table[["method", *numbers, "seconds", "note"]]
    return Comparison(table.sort_values(sort, ascending=False, kind="stable", ignore_index=True), judgements, sort)


def _judges(
    ledger: Ledger | None,
    truth: Attribution | Ledger | None,
    is_bad: Any,
    lowest_is_bad: bool,
    noise_free: bool,
    bootstrap: int,
    seed: int,
) -> Mapping[str, Metric]:
    resample = {"bootstrap": bootstrap, "seed": seed}
    judges: dict[str, Metric] = {}
    if ledger is not None:
        of_ledger = ledger
        queries = ledger.dataset["query"].to_numpy()
        judges["lds"] = lambda r: lds(per_query(r, queries), of_ledger, noise_free=noise_free, **resample)
    if truth is not None:
        of_truth = truth
        asked = truth.dataset["query"].to_numpy()
        judges["loo"] = lambda r: loo_correlation(per_query(r, asked), of_truth, **resample)
    if is_bad is not None:
        judges["detection"] = lambda r: detection(r, is_bad, lowest_is_bad=lowest_is_bad, **resample)
    return judges


def per_query(result: Result, queries: Array) -> Attribution:
    """An attribution as it is; values as scores that are the same for every query."""
    if isinstance(result, Attribution):
        return result
    score = np.broadcast_to(result.value, (len(queries), len(result.value)))
    train, unit = result.dataset["train"].to_numpy(), str(result.dataset.attrs["unit"])
    return Attribution.of(score, query=queries, train=train, method=result.method, unit=unit)


def _judged(
    name: str, method: Result | Callable[[], Result], judges: Mapping[str, Metric]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A method's row, and the judgements behind it."""
    row: dict[str, Any] = {"method": name, "seconds": np.nan, "note": ""}
    start, made, notes = time.perf_counter(), {}, []
    try:
        result = method() if callable(method) else method
    except ProponentError as error:
        return row | {"note": str(error)}, {}
    known = result.dataset.attrs.get("seconds")
    row["seconds"] = float(known) if known is not None else time.perf_counter() - start if callable(method) else np.nan
    for metric, judge in judges.items():
        try:
            made[metric] = judge(result)
        except ProponentError as error:
            notes.append(f"{metric}: {error}")
            continue
        row |= made[metric].summary()
    return row | {"note": " ".join(notes)}, made


def _shown(table: pd.DataFrame, column: str) -> list[str]:
    """A column as text: numbers with their intervals, unknown ones empty."""
    values = table[column]
    if values.dtype.kind not in "fi":
        return [str(v) for v in values]
    digits = 2 if column == "seconds" else 3
    none = np.full(len(table), np.nan)
    lower, upper = (table.get(f"{column}{end}", none) for end in BOUNDS)
    return [span(*one, digits) if np.isfinite(one[0]) else "" for one in zip(values, lower, upper, strict=True)]
