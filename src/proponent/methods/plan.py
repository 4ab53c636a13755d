"""`plan`: what each method will take on this machine, before the long run, from a short probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from proponent.errors import InputError, ProponentError, did_you_mean
from proponent.memory import peak_memory
from proponent.methods.influence import Influence

PATIENCE = 600.0
"""Seconds that "auto" may predict for a method before it takes a cheaper one."""

GRADIENT_METHODS = ("graddot", "gradcos", "tracin", "identity", "diagonal", "kfac", "ekfac")
PREFERRED = ("ekfac", "kfac", "graddot")
"""What "auto" takes the first of that it can, best first."""

WHY = {
    "ekfac": "influence with EK-FAC curvature: the closest to retraining of the methods that need one trained model only",
    "kfac": "influence with K-FAC curvature: EK-FAC would take too long or can't be had",
    "graddot": "gradient dot products: no curvature can be had in the time",
    "tracin": "TracIn over the checkpoints: curvature at each of them would take too long or can't be had",
}


@dataclass(frozen=True)
class Plan:
    """What each method will take, and which one "auto" takes.

    Args:
        table: a row per method: method, seconds, memory_mb (peak of the whole process), disk_mb (of scores on disk), note.
        choice: the method that "auto" takes.
        reason: why, in one sentence.
    """

    table: pd.DataFrame
    choice: str
    reason: str

    def of(self, method: str) -> Mapping[str, Any]:
        """The row of one method."""
        rows = self.table[self.table["method"] == method]
        return {} if rows.empty else dict(rows.iloc[0])

    def __repr__(self) -> str:
        shown = self.table.to_string(index=False, float_format=lambda x: f"{x:,.2f}", na_rep="–")
        return f"{shown}\nauto takes {self.choice}: {self.reason}"


def plan(
    subject: Any,
    train: Any,
    query: Any,
    methods: Sequence[str] | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Plan:
    """Predict seconds, peak memory and disk of every method.

    The work is rehearsed on the first examples and checkpoints; what grows with their number is scaled up.

    >>> import torch, proponent as pp
    >>> task = pp.Task(torch.nn.Linear(3, 2))
    >>> train = torch.randn(50, 3), torch.randint(2, (50,))
    >>> made = pp.plan(task, train, train)
    >>> made.choice, bool((made.table.seconds.dropna() > 0).all())
    ('ekfac', True)

    Args:
        subject: a Task; a SklearnRecipe or an estimator.
        train, query: as for `attribute`.
        methods: those to predict; all by default.
        out: where the scores are to be streamed to; nothing is written there.
        options: as for `attribute`.

    Raises:
        InputError: an unknown method.
    """
    if not hasattr(subject, "watching"):
        return _plan_of_recipe(subject, train)
    from proponent.methods.probe import Probe

    wanted = list(methods or GRADIENT_METHODS)
    for name in wanted:
        if name not in GRADIENT_METHODS:
            raise InputError(
                f"method {name!r}", f"one of {', '.join(GRADIENT_METHODS)}", did_you_mean(name, GRADIENT_METHODS)
            )
    probe = Probe.of(subject, train, query, options.get("batch_size"), out is not None)
    rows = [_row(name, probe, options) for name in wanted]
    table = pd.DataFrame(rows, columns=["method", "seconds", "memory_mb", "disk_mb", "note"])
    choice, reason = _choose(table, options)
    return Plan(table, choice, reason)


def _row(name: str, probe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    empty = {"method": name, "seconds": float("nan"), "memory_mb": float("nan"), "disk_mb": float("nan")}
    if name == "tracin" and not options.get("checkpoints"):
        return {**empty, "note": "needs checkpoints of the training run"}
    try:
        with peak_memory() as peak:
            seconds = probe.seconds(name, options)
    except ProponentError as e:
        return {**empty, "note": f"can't: {e.got}"}
    held = probe.result_bytes / 2**20
    memory = None if peak.megabytes is None else peak.megabytes + held
    return {"method": name, "seconds": seconds, "memory_mb": memory, "disk_mb": held, "note": ""}


def _choose(table: pd.DataFrame, options: Mapping[str, Any]) -> tuple[str, str]:
    seconds = dict(zip(table["method"], table["seconds"], strict=True))
    several = len(options.get("checkpoints") or ())
    order = (*PREFERRED[:-1], "tracin", *PREFERRED[-1:]) if several else PREFERRED
    can = [name for name in order if name in seconds and seconds[name] == seconds[name]]
    if not can:
        name = str(table["method"].iloc[0])
        return name, "the only method that was asked about"
    name = next((n for n in can if seconds[n] <= PATIENCE), min(can, key=lambda n: seconds[n]))
    over = f", at each of {several} checkpoints" if several and name != "tracin" else ""
    return name, f"{WHY[name]}{over}; {seconds[name]:.2g} s predicted on this machine."


def _plan_of_recipe(recipe: Any, train: Any) -> Plan:
    """Linear models are cheap: what is said is whether a method applies."""
    from proponent.examples import Examples
    from proponent.methods.recipes import choose

    choice, reason = choose(recipe, Examples.of(train))
    rows = []
    for name in ("leave_one_out", "influence", "knn_shapley"):
        note = "" if name == choice or name == "knn_shapley" or choice != "knn_shapley" else "can't: not a linear model"
        rows.append(
            {"method": name, "seconds": float("nan"), "memory_mb": float("nan"), "disk_mb": float("nan"), "note": note}
        )
    return Plan(pd.DataFrame(rows), choice, reason)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work gives."""
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def influence_of(name: str, options: Mapping[str, Any]) -> Influence:
    """The specification of a named curvature with the options that concern it."""
    known = ("curvature", "damping", "weight_decay", "batch_size", "shortcut", "query_rank", "solver")
    taken = {k: options[k] for k in known if k in options}
    return replace(Influence(curvature=name), **taken)
