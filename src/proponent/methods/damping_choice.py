"""The damping that a few retrained models, the training run or the spectrum speak for; with the curve and the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import rankdata

from proponent.curvature.damping import FRACTION, SHARE, AutoDamping, Damping
from proponent.errors import InputError
from proponent.progress import track
from proponent.rows import Rows

Array = np.ndarray[Any, np.dtype[Any]]
Sums = Callable[[Rows, Sequence[Damping], Array], Array]
"""(queries, dampings, (S, n) included) → sums of the included examples' scores, (dampings, q, S)."""

LAYERS = Damping(FRACTION, scale="mean")
WHOLE = Damping(SHARE, scale="trace")

STEPS = np.arange(-6, 7)
"""Half decades around the usual damping that are tried."""

FINER = np.array([-2, -1, 1, 2]) / 3
"""Of a step, around the best of these."""


@dataclass(frozen=True)
class Choice:
    """A damping, why, and what was tried.

    Args:
        damping: that is used.
        reason: in one sentence.
        tried: values on the scale of the damping, in order.
        agreement: the mean rank correlation with the retrained models at each.
    """

    damping: Damping
    reason: str
    tried: tuple[float, ...] = ()
    agreement: tuple[float, ...] = ()

    def facts(self) -> dict[str, Any]:
        """For the record."""
        known = {"value": self.damping.value, "scale": self.damping.scale, "reason": self.reason}
        return known | ({"tried": list(self.tried), "agreement": list(self.agreement)} if self.tried else {})


def choose(auto: AutoDamping, usual: Damping, sums: Sums, train: Rows) -> Choice:
    """The damping.

    Args:
        auto: what there is to choose by.
        usual: what the spectrum alone says.
        sums: of scores, at several dampings.
        train: training examples, in the ledger's order or with its ids.
    """
    if auto.retrained:
        return _by_models(auto, usual, sums, train)
    run = auto.by_run()
    if run is not None:
        return Choice(run, f"1/(ηT) of the training run: {run.value:.3g}.")
    what = "a tenth of each layer's mean eigenvalue" if usual.scale == "mean" else "a thousandth of the trace"
    return Choice(usual, f"{what}: neither retrained models nor the training run were given.".capitalize())


def _by_models(auto: AutoDamping, usual: Damping, sums: Sums, train: Rows) -> Choice:
    ledger, queries = auto.ledger, Rows.of(auto.queries)
    if ledger is None:
        ledger = _retrained(auto, train)
    included, measured = _truth(ledger, train, len(queries))
    varies = np.ptp(measured, axis=0) > 0
    told = varies if varies.any() else np.ones_like(varies)  # a query that does not vary says nothing
    found: dict[float, Array] = {}
    coarse = [usual.value * 10 ** (k / 2) for k in STEPS]

    def try_(values: Sequence[float]) -> None:
        made = sums(queries, [replace(usual, value=v) for v in values], included)
        found.update({v: agreements(one.T[:, told], measured[:, told]) for v, one in zip(values, made, strict=True)})

    try_(coarse)
    try_(_around({v: float(each.mean()) for v, each in found.items()}))
    heights = {v: float(found[v].mean()) for v in sorted(found)}
    best = _cautious(_peak(heights), usual.value, found)
    left = 1 - float((included > 0).mean())
    reason = (
        f"Of {len(found)} dampings the one nearest to the usual whose scores agree as well as any with {len(included)} models "
        f"retrained without {left:.0%} of the training examples: mean rank correlation up to {max(heights.values()):.3f} over "
        f"{len(queries)} queries."
    )
    return Choice(replace(usual, value=best), reason, tuple(heights), tuple(round(h, 5) for h in heights.values()))


def _cautious(peak: float, usual: float, found: dict[float, Array]) -> float:
    """The peak, or what is nearest to the usual damping of all that is within a standard error of the best.

    A few noisy models tell little between dampings where the curve is flat, and its highest point may lie far out.
    """
    best = max(found.values(), key=lambda each: float(each.mean()))
    lost = {v: best - each for v, each in found.items()}
    alike = [v for v, d in lost.items() if d.mean() <= d.std(ddof=1) / np.sqrt(len(d))] if len(best) > 1 else []
    return float(min([peak, *alike], key=lambda v: abs(np.log(v / usual))))


def _retrained(auto: AutoDamping, train: Rows) -> Any:
    from proponent.retrain.run import retrain
    from proponent.retrain.subsets import fractions

    data, asked = _arrays(train), _arrays(Rows.of(auto.queries))
    return retrain(auto.recipe, data, asked, fractions(auto.fraction, auto.subsets, seed=auto.seed))


def _arrays(rows: Rows) -> tuple[Array, ...]:
    made = rows.take(0, len(rows))
    if not isinstance(made, tuple):
        raise InputError(
            f"examples of type {type(made).__name__} to retrain on",
            "arrays (inputs, targets)",
            "retrain by yourself, and pass ledger=pp.retrain(…)",
        )
    return tuple(t.numpy(force=True) for t in made)


def _truth(ledger: Any, train: Rows, queries: int) -> tuple[Array, Array]:
    """(S, n) the distinct subsets and (S, q) their models' mean measurements."""
    if ledger.included.shape[1] != len(train) or ledger.measured.shape[1] != queries:
        raise InputError(
            f"a ledger of {ledger.included.shape[1]} training examples and {ledger.measured.shape[1]} queries",
            f"the {len(train)} training examples of the fit and the {queries} queries of AutoDamping",
            "retrain on the same data: pp.retrain(recipe, train, queries, subsets=pp.halves(50))",
        )
    rows, which = ledger.by_subset()
    if len(rows) < 5:
        raise InputError(f"{len(rows)} subsets to choose a damping by", "at least 5, better 50", "retrain more")
    means = [
        np.nanmean(ledger.measured[which == k], axis=0) for k in track(range(len(rows)), "ledger", total=len(rows))
    ]
    return rows.astype(np.float64), np.stack(means)


def agreements(predicted: Array, measured: Array) -> Array:
    """(q,) each query's rank correlation over subsets, of sums of scores and measurements; 0 where nothing varies.

    Args:
        predicted, measured: (S, q).
    """
    a, b = (_centred_ranks(x) for x in (predicted, measured))
    sizes = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.asarray((a * b).sum(0) / np.where(sizes > 0, sizes, 1.0))


def _centred_ranks(columns: Array) -> Array:
    ranks = rankdata(columns, axis=0)
    return ranks - ranks.mean(0)


def _around(found: dict[float, float]) -> list[float]:
    best = max(found, key=lambda v: found[v])
    return [best * 10 ** (k / 2) for k in FINER]


def _peak(found: dict[float, float]) -> float:
    """The maximum of a parabola through the agreement near the best, in the logarithm: less noisy than the best itself."""
    values = np.array(sorted(found))
    heights = np.array([found[v] for v in values])
    at = int(heights.argmax())
    x = np.log10(values)
    near = np.abs(x - x[at]) <= 0.51
    if near.sum() < 4:
        return float(values[at])
    a, b, _ = np.polyfit(x[near] - x[at], heights[near], 2)
    return float(values[at] * 10 ** float(np.clip(-b / (2 * a), -0.34, 0.34))) if a < 0 else float(values[at])
