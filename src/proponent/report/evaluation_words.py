"""An evaluation in words: what came out, how high it could be, and how far to trust it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from proponent.report.words import number, plain

if TYPE_CHECKING:
    import pandas as pd

    from proponent.experiment.evaluation import Evaluation

FEW_SUBSETS, FEW_QUERIES = 30, 10

MEANS = (
    "A method's scores say what a subset of the training examples should do to a query: add up the scores of the "
    "examples in it. The linear datamodeling score (LDS) is the rank correlation between these sums and what retraining "
    "on the subsets did, averaged over queries. 1: the subsets are ordered as retraining orders them. 0: the scores say "
    "nothing. Below 0: they point the wrong way."
)


def span(value: float, lower: float, upper: float, digits: int = 2) -> str:
    """A number with its interval.

    >>> span(0.4312, 0.39, 0.47), span(-0.5, float("nan"), float("nan")), span(float("nan"), 0, 1)
    ('0.43 [0.39, 0.47]', '−0.50', '–')
    """
    if not math.isfinite(value):
        return "–"
    shown = [f"{round(v, digits) + 0.0:.{digits}f}".replace("-", "−") for v in (value, lower, upper)]  # no −0.00
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if math.isfinite(lower + upper) else shown[0]


def of(row: Any, name: str, digits: int = 2) -> str:
    """A number of a row of the table, with its interval where it has one."""
    value, lower, upper = (float(row.get(f"{name}{end}", math.nan)) for end in ("", "_lower", "_upper"))
    return span(value, lower, upper, digits)


def ranked(e: Evaluation) -> pd.DataFrame:
    """The methods that have a score, best first."""
    return e.table.dropna(subset=["lds"]) if "lds" in e.table else e.table.head(0)


def headline(e: Evaluation) -> str:
    """What came out, in one sentence."""
    if not e.best:
        return "No method could be judged."
    row = ranked(e).iloc[0]
    if not float(row["lds_lower"]) > 0:
        return f"No method predicts retraining for certain: the best, {plain(e.best)}, has an LDS of {of(row, 'lds')}."
    return f"{plain(e.best)} predicts best what retraining does: LDS {of(row, 'lds')}."


def rivals(e: Evaluation) -> str:
    """Which methods the best is ahead of, by the intervals of differences."""
    others = ranked(e).iloc[1:]
    if not len(others):
        return ""
    near = others[~(others["versus_best_upper"] < 0)]
    if len(near):
        names = _listed([f"{plain(r['method'])} ({of(r, 'versus_best')})" for r in near.to_dict("records")])
        return f"Not told apart from it, their difference to it being compatible with zero: {names}."
    second = others.iloc[0]
    return f"It is ahead of all others; the next, {plain(second['method'])}, differs by {of(second, 'versus_best')}."


def against_baselines(e: Evaluation) -> str:
    """How the best does beside what every method should beat."""
    rows = ranked(e)
    simple = rows[rows["baseline"]] if len(rows) else rows
    if not len(simple):
        return ""
    row = simple.iloc[0]
    if row["method"] == e.best:
        return f"{plain(e.best)} is a baseline: no method here beats what can be had for nothing."
    return f"Of the baselines, which every method should beat, {plain(row['method'])} does best: {of(row, 'lds')}."


def ceiling(e: Evaluation) -> str:
    """How high a perfect predictor would get."""
    if e.noise_free:
        return (
            "Training is deterministic: one subset under another seed gave the same measurements. A perfect predictor "
            "would reach 1."
        )
    if not math.isfinite(e.ceiling) and e.repeats > 1:
        return (
            f"How high a perfect predictor would get is not known: {e.subsets} subsets are too few to tell the noise of "
            "training from effect. Run it again with more."
        )
    if not math.isfinite(e.ceiling):
        return (
            "How high a perfect predictor would get is not known: training depends on the seed, and each subset was trained "
            "under one. Run it again with --repeats 2 or more, which averages over seeds and gives the noise ceiling."
        )
    share = ""
    if e.best and e.ceiling > 0:
        share = f"; {plain(e.best)} reaches {100 * float(ranked(e).iloc[0]['lds']) / e.ceiling:.0f} % of that"
    return (
        f"Training is noisy: averaged over {e.repeats} seeds a subset, a perfect predictor would reach {e.ceiling:.2f}, the "
        f"noise ceiling{share}."
    )


def trust(e: Evaluation) -> str:
    """What the intervals rest on."""
    counted = f"{e.subsets:,} subsets and {e.n_query:,} {'query' if e.n_query == 1 else 'queries'}"
    told = f"Intervals (95 %) come from drawing anew among {counted}; methods are compared on the same draws."
    if e.best:
        row = ranked(e).iloc[0]
        half = (float(row["lds_upper"]) - float(row["lds_lower"])) / 2
        told += f" That of {plain(e.best)} is ±{number(half, 1)}" if math.isfinite(half) else ""
        told += "; four times as many subsets and queries would about halve it." if math.isfinite(half) else ""
    if e.subsets < FEW_SUBSETS:
        told += f" {e.subsets:,} subsets are a first look: take --subsets 100 for a result to report."
    if e.n_query < FEW_QUERIES:
        told += " So few queries say little about others that could be asked."
    if e.failed:
        told += f" {e.failed:,} trainings failed and are left out."
    return told


def slope(e: Evaluation) -> str:
    """Whether the scores' size can be believed, of the best method that predicts a size."""
    rows = ranked(e)
    sized = rows.dropna(subset=["slope"]) if "slope" in rows else rows.head(0)
    if not len(sized):
        return ""
    row = sized.iloc[0]
    return (
        f"The calibration slope is by how much the truth changes where the prediction changes by 1: {of(row, 'slope')} for "
        f"{plain(row['method'])}. Of subsets that hold {100 * e.fraction:.0f} % of the examples it is usually above 1, because "
        "there one example weighs more. Methods whose scores only rank have none."
    )


def detection(e: Evaluation) -> str:
    """What is found of the examples that are known to be bad."""
    if e.bad is None or "auroc" not in e.table:
        return ""
    row = e.table.sort_values("auroc", ascending=False, kind="stable").iloc[0]
    return (
        f"{e.bad:,} of {e.n_train:,} training examples are known to be bad. AUROC is the chance that a method ranks a bad one "
        f"below a good one, ½ for a coin; {plain(row['method'])} does best: {of(row, 'auroc')}. Scores are averaged over the "
        "queries."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
