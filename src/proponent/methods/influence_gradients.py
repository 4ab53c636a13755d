"""Influence functions of a PyTorch model: its gradients, measured in the inverse of a Fisher matrix."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from proponent.attribution import CHANGE
from proponent.capture.blocks import Block, Factors
from proponent.capture.gradients import Capture
from proponent.capture.weights import weights_mark
from proponent.curvature.damping import Damping, damping_of
from proponent.curvature.fisher import InverseFisher, shortcut_errors
from proponent.curvature.kinds import KINDS, Kind, covariances, decomposed, eigenvalues
from proponent.curvature.metric import Identity, Metric
from proponent.curvature.spectrum import Spectrum
from proponent.errors import FingerprintMismatch, InputError, ProponentWarning, did_you_mean
from proponent.methods.fitted_gradients import FittedGradients, Member
from proponent.methods.score import Sizes
from proponent.rows import Rows
from proponent.task import Task

COMPARED = 32
"""Examples as queries, and as many others, on which the shortcuts' error is measured."""

WORSE = 3.0
"""Times the error that was asked for, above which a warning says so."""


def fit_influence(spec: Any, task: Task, train: Any) -> FittedGradients:
    """`Influence.fit` for a task."""
    start, rows = time.perf_counter(), Rows.of(train)
    damping = damping_of(spec.damping)
    curvature = _curvature(spec.curvature)
    with task.watching():
        capture = Capture.of(task, rows)
        sizes = Sizes.of(capture, rows)
        metric, facts = _metric(spec, curvature, capture, rows, sizes, damping)
    return FittedGradients(
        method=f"Influence ({curvature if isinstance(curvature, str) else _name(curvature)})",
        settings=task.settings() | _settings(spec, curvature, damping),
        unit=CHANGE,
        train=rows,
        members=[Member(capture, metric, sizes)],
        scale=1 / len(rows),
        batch=spec.batch_size,
        seconds=time.perf_counter() - start,
        facts=facts,
    )


def _curvature(wish: Any) -> Kind | Spectrum | str:
    if wish is None:
        return KINDS["ekfac"]()
    if isinstance(wish, Kind | Spectrum):
        return wish
    if isinstance(wish, str | Path) and str(wish).endswith(".safetensors"):
        return Spectrum.load(wish)
    if wish == "identity":
        return "identity"
    if wish in KINDS:
        return KINDS[wish]()
    names = ["identity", *KINDS]
    raise InputError(
        f"curvature {wish!r}",
        f"one of {', '.join(names)}, EKFAC(…), KFAC(…), Diagonal(…), or a saved spectrum",
        did_you_mean(str(wish), names),
    )


def _metric(
    spec: Any, curvature: Kind | Spectrum | str, capture: Capture, rows: Rows, sizes: Sizes, damping: Damping
) -> tuple[Metric, dict[str, Any]]:
    if isinstance(curvature, str):
        return Identity(), {}
    batch = spec.batch_size or sizes.batch()
    mark = weights_mark(capture.task)
    facts: dict[str, Any] = {}
    if isinstance(curvature, Spectrum):
        found = curvature
        if found.made_from.get("weights", mark) != mark:
            raise FingerprintMismatch(
                "a spectrum of other weights", "one of this model as it is now", "fit it again, or load its checkpoint"
            )
    else:
        sums, first = covariances(curvature, capture, rows, batch)
        found, second = eigenvalues(curvature, capture, rows, batch, decomposed(curvature, sums))
        found = replace(found, made_from=curvature.made_from(mark))
        facts["curvature_error"] = {"covariances": round(first, 5), "eigenvalues": round(second, 5)}
    blocks = _some_blocks(capture, rows)
    single = single_positions(blocks)
    metric = InverseFisher.of(found, damping, spec.weight_decay, single, spec.shortcut, spec.query_rank)
    if metric.expansions or metric.rank is not None:
        half = min(COMPARED, len(rows))
        facts["shortcut"] = shortcut_errors(
            metric, blocks, slice(0, half), slice(len(rows[: 2 * COMPARED]) - half, None)
        )
        error = facts["shortcut"]["relative_error"]
        if metric.rank is None and error > WORSE * spec.shortcut:
            warnings.warn(
                f"scores within about {error:.1%} of the exact ones, where {spec.shortcut:.1%} was asked for: "
                "these gradients are not like those that the curvature was fitted to; shortcut=0 scores exactly",
                ProponentWarning,
                stacklevel=4,
            )
    return metric, facts


def _name(curvature: Kind | Spectrum) -> str:
    return "a fitted spectrum" if isinstance(curvature, Spectrum) else type(curvature).__name__


def _settings(spec: Any, curvature: Kind | Spectrum | str, damping: Damping) -> dict[str, Any]:
    """What decides the scores, for the record."""
    made: dict[str, Any] = {"curvature": curvature if isinstance(curvature, str) else _name(curvature)}
    if isinstance(curvature, Kind):
        made |= vars(curvature)
    if isinstance(curvature, Spectrum):
        made |= {"spectrum": dict(curvature.made_from)}
    return made | {
        "damping": vars(damping),
        "weight_decay": spec.weight_decay,
        "shortcut": spec.shortcut,
        "query_rank": spec.query_rank,
    }


def single_positions(blocks: Mapping[str, Block]) -> frozenset[str]:
    """Names of the blocks that have one position an example."""
    return frozenset(n for n, b in blocks.items() if isinstance(b, Factors) and b.positions == 1)


def _some_blocks(capture: Capture, rows: Rows) -> dict[str, Any]:
    """Gradients of the examples on which the shortcuts' error is measured."""
    return capture.gradients(capture.task.batch(rows, slice(0, min(len(rows), 2 * COMPARED))), capture.task.losses)[1]
