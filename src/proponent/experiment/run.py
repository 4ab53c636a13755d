"""An attribution from settings to answer; scores are streamed to disk, so a killed run goes on where it stopped."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import proponent
from proponent.attribution import Attribution
from proponent.experiment.again import fit_again, self_influence, slopes_of
from proponent.experiment.answer import Answer, Cost
from proponent.experiment.explain import describer_of, explained, neighbour, records, subject_in_words
from proponent.experiment.inputs import checkpoint_marks, fingerprints_of, options_of, rows_of, try_out
from proponent.experiment.load import Experiment, blaming, load
from proponent.experiment.record import Clock, versions, with_warnings, writing
from proponent.experiment.settings import Settings
from proponent.experiment.strict import require_finite_losses, require_none
from proponent.experiment.survey import frequent, survey
from proponent.experiment.write import write
from proponent.memory import peak_memory
from proponent.progress import say
from proponent.store.fingerprint import require_same
from proponent.store.stages import write_atomically

SHOWN = 10
"""Examples of the largest self-influence that are shown."""


def run_experiment(settings: Settings) -> Answer:
    """Attribute what an experiment file defines, and write the run directory.

    Args:
        settings: what to do. A killed run, started again with the same ones, goes on where it stopped.

    Raises:
        InputError: the file lacks a function, its code raises, or the data are not what the model wants.
        FingerprintMismatch: the directory holds the run of another model, other data or settings.
    """
    answer, told = with_warnings(lambda: _answer(settings))
    answer = replace(answer, warnings=told)
    write(answer, settings)
    return answer


def _answer(settings: Settings) -> Answer:
    clock, out = Clock(), Path(settings.out)
    say(f"running {Path(settings.experiment).name}")
    with clock.stage("running the experiment file"):
        experiment = load(settings.experiment)
        rows = rows_of(experiment)
    with clock.stage("trying the model"):
        try_out(experiment)
    with clock.stage("checking what lies in the run directory"):
        options = options_of(settings, experiment)
        marks = fingerprints_of(experiment, rows) | checkpoint_marks(options)
        _claim(out, settings, marks)
    if settings.strict:
        say("looking for losses that are not finite")
        with clock.stage("looking for losses that are not finite"):
            require_finite_losses(experiment, options)
    with clock.stage("scoring"):
        scores, cost = _scores(settings, experiment, options)
    with clock.stage("reading the scores"):
        found = survey(scores, settings.top)
        if settings.strict:
            require_none(found.set_aside, "a loss or gradient")
    selfs, slopes, describer = None, None, describer_of(experiment, rows, scores)
    if settings.self_influence or settings.saliency:
        asked = "self-influence" if settings.self_influence else "saliency"
        say(asked)
        with clock.stage(asked), blaming(experiment.path, "the model"):
            fitted = fit_again(str(scores.dataset.attrs.get("chosen", "")), experiment, options, asked)
            selfs = self_influence(fitted) if settings.self_influence else None
            slopes = slopes_of(fitted, experiment.query, describer.image_shape) if settings.saliency else None
    with clock.stage("describing examples"), blaming(experiment.path, "the model"):
        behind = explained(experiment, scores, found, describer, slopes)
        self_shown = () if selfs is None else tuple(neighbour(r, describer, "value") for r in records(selfs, SHOWN))
    attrs = scores.dataset.attrs
    return Answer(
        title=Path(settings.experiment).name,
        command=settings.command(),
        subject=subject_in_words(experiment),
        method=scores.method,
        reason=str(attrs.get("reason", "")),
        unit=scores.unit,
        sign=str(attrs["sign"]),
        n_train=scores.shape[1],
        n_query=scores.shape[0],
        choices=_decoded(attrs.get("settings")),
        cost=cost,
        seconds=clock.seconds,
        top=found.top,
        sample=found.sample,
        explained=behind,
        frequent=frequent(found.top),
        self_influence=selfs,
        self_shown=self_shown,
        set_aside=found.set_aside,
        damping=_decoded(attrs.get("damping_choice")),
        versions=versions(),
        fingerprints=marks,
    )


def _claim(out: Path, settings: Settings, marks: dict[str, str]) -> None:
    """Refuse a directory where something else was scored, in words that say what differs."""
    made_from, note = settings.deciding() | marks, out / "made_from.json"
    with writing(settings.out):
        out.mkdir(parents=True, exist_ok=True)
        if note.exists() and (out / "attribution.zarr").exists():
            require_same(json.loads(note.read_text()), made_from, str(out))
        write_atomically(note, json.dumps(made_from, indent=1).encode())
        write_atomically(out / "config.yaml", settings.to_yaml().encode())


def _scores(settings: Settings, experiment: Experiment, options: dict[str, Any]) -> tuple[Attribution, Cost]:
    path, start = Path(settings.out) / "attribution.zarr", time.perf_counter()
    resumed = path.exists()
    with peak_memory() as peak, blaming(experiment.path, "the model or the data"):
        made = proponent.attribute(
            experiment.subject, experiment.train, experiment.query, method=settings.method, out=path, **options
        )
    scores = made if path.exists() else Attribution.load(made.save(path))
    attrs = made.dataset.attrs
    predicted = [
        None if attrs.get(k) is None else float(attrs[k]) for k in ("predicted_seconds", "predicted_memory_mb")
    ]
    return scores, Cost(time.perf_counter() - start, peak.megabytes, predicted[0], predicted[1], resumed)


def _decoded(settings: Any) -> dict[str, Any]:
    made = json.loads(settings) if isinstance(settings, str) else settings or {}
    return {k: v for k, v in made.items() if v is not None and k != "weights"}


def plan(path: str) -> Any:
    """What every method would cost on an experiment, and which one "auto" would take.

    Args:
        path: the experiment file.

    Returns:
        `.table` (method, seconds, memory_mb, disk_mb, note), `.choice` and `.reason`.
    """
    say(f"running {Path(path).name}")
    experiment = load(path)
    with blaming(experiment.path, "the model or the data"):
        return proponent.plan(experiment.subject, experiment.train, experiment.query, out="attribution.zarr")
