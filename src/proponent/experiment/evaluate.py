"""An evaluation from settings to its run directory: score, retrain on subsets, judge; a killed run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from proponent.attribution import Attribution
from proponent.errors import InputError
from proponent.evaluate.comparison import Comparison, compare, per_query
from proponent.evaluate.datamodeling import LDS
from proponent.evaluate.truth import Truth, aligned
from proponent.experiment.evaluation import Evaluation
from proponent.experiment.evaluation_inputs import Inputs
from proponent.experiment.evaluation_methods import BASELINES, Scorer
from proponent.experiment.evaluation_settings import EvaluationSettings
from proponent.experiment.explain import subject_in_words
from proponent.experiment.inputs import checkpoint_marks, fingerprints_of, try_out
from proponent.experiment.load import blaming, load
from proponent.experiment.record import Clock, versions, with_warnings, writing
from proponent.progress import say
from proponent.report.evaluation_page import write_page
from proponent.retrain.ledger import Ledger
from proponent.retrain.run import retrain
from proponent.retrain.subsets import Subsets, fractions
from proponent.retrain.trained import Trained
from proponent.store.stages import write_atomically

Array = np.ndarray[Any, np.dtype[Any]]

PROBE = 2**31 - 2
"""The seed under which the first subset is trained once more, to see whether seeds matter; no plan comes near it."""

ALIKE = 1e-3
"""Share of the spread among subsets up to which two seeds count as the same."""

ORDER = ["method", "baseline", "lds", "lds_lower", "lds_upper", "lds_of_ceiling", "slope", "slope_lower", "slope_upper"]
ORDER += ["versus_best", "versus_best_lower", "versus_best_upper"]
LAST = ("seconds", "note")

POINTS = 800
"""Pairs of prediction and truth that are drawn."""


def run_evaluation(settings: EvaluationSettings) -> Evaluation:
    """Judge methods by how well they predict what retraining does, and write the run directory.

    Args:
        settings: what to do. A killed run, started again with the same ones, trains only what it had not trained; so does
            one with more subsets.

    Raises:
        InputError: the file lacks a function, its code raises, or every training failed.
        FingerprintMismatch: the directory holds the models of another recipe or other training examples.
    """
    made, told = with_warnings(lambda: _evaluation(settings))
    made = replace(made, warnings=told)
    write(made, settings)
    return made


def _evaluation(settings: EvaluationSettings) -> Evaluation:
    clock, out = Clock(), Path(settings.out)
    say(f"running {Path(settings.experiment).name}")
    with clock.stage("running the experiment file"):
        experiment = load(settings.experiment)
        inputs = Inputs.of(experiment)
        try_out(experiment)
    with clock.stage("checking what lies in the run directory"):
        marks = _marks(inputs)
        _claim(out, settings)
        trained = Trained.open(out / "ledger", inputs.recipe, inputs.train)
    scorer = Scorer(inputs, out / "scores", marks, settings.seed)
    names = scorer.chosen(settings.named())
    with clock.stage("scoring"):
        results = scorer.score_all(names, asked=settings.methods is not None)
    with clock.stage("retraining"):
        ledger, noise_free, new = _retrained(settings, inputs, trained)
    with clock.stage("judging"):
        judged = compare(results, ledger=ledger, is_bad=inputs.bad, noise_free=noise_free, seed=settings.seed)
        table, best = _table(judged, inputs)
        cloud = _cloud(results[best], ledger) if best else pd.DataFrame({"predicted": [], "actual": []})
    return Evaluation(
        title=Path(settings.experiment).name,
        command=settings.command(),
        subject=subject_in_words(experiment),
        n_train=len(inputs.train),
        n_query=len(inputs.query),
        subsets=len(ledger.by_subset()[0]),
        fraction=settings.fraction,
        repeats=settings.repeats,
        models=int((~ledger.failed).sum()),
        failed=int(ledger.failed.sum()),
        trained=new,
        noise_free=noise_free,
        ceiling=judged.judgements[best]["lds"].ceiling if best else float("nan"),
        bad=None if inputs.bad is None else int(inputs.bad.sum()),
        table=table,
        best=best,
        cloud=cloud,
        seconds=clock.seconds,
        versions=versions(),
        fingerprints=marks,
    )


def _marks(inputs: Inputs) -> dict[str, str]:
    """What scores are made from."""
    experiment = inputs.experiment
    marks = fingerprints_of(experiment, {"train": inputs.train, "query": inputs.query})
    with blaming(experiment.path, "reading the checkpoints"):
        options = {"checkpoints": experiment.call("checkpoints") or []}
        rates = experiment.call("learning_rates")
    options |= {} if rates is None else {"learning_rates": rates}
    return marks | {"recipe": inputs.recipe.fingerprint()} | checkpoint_marks(options)


def _claim(out: Path, settings: EvaluationSettings) -> None:
    with writing(settings.out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "config.yaml", settings.to_yaml().encode())


def _retrained(settings: EvaluationSettings, inputs: Inputs, trained: Trained) -> tuple[Ledger, bool, int]:
    """The models of all subsets, whether seeds make no difference to them, and how many were trained now."""
    drawn = fractions(settings.fraction, settings.subsets, seed=settings.seed, repeats=settings.repeats)
    subsets = drawn(len(inputs.train))
    probed = settings.repeats == 1
    if probed:
        included = np.vstack([subsets.included, subsets.included[:1]])
        subsets = Subsets(included, np.append(subsets.seeds, PROBE))
    mark = inputs.query.fingerprint()
    new = sum(not trained.has(mark, key) for key in set(subsets.keys()))
    say(f"training {new:,} models, {len(set(subsets.keys())) - new:,} are there")
    with blaming(inputs.experiment.path, "the recipe"):
        ledger = retrain(inputs.recipe, inputs.train, inputs.query, subsets, ledger=trained, workers=settings.workers)
    if ledger.failed.all():
        raise InputError(
            f"{len(ledger):,} trainings that all failed, the first because of {ledger.errors[0]!r}",
            "a recipe that trains on a subset",
            "correct recipe(), and run it again in another directory",
        )
    return (ledger.select(slice(0, -1)), _alike(ledger), new) if probed else (ledger, False, new)


def _alike(ledger: Ledger) -> bool:
    """Whether the first subset's two seeds, first and last, measure the same beside how subsets differ."""
    first, last, spread = ledger.measured[0], ledger.measured[-1], np.nanstd(ledger.measured, axis=0)
    return bool((np.abs(first - last) <= ALIKE * spread).all())


def _table(judged: Comparison, inputs: Inputs) -> tuple[pd.DataFrame, str]:
    """The comparison with slopes' bounds and differences to the best, and which is the best."""
    table = judged.table
    if "lds" in table:
        table = table.sort_values("lds", ascending=False, kind="stable", ignore_index=True)
    scored = {n: made["lds"] for n, made in judged.judgements.items() if isinstance(made.get("lds"), LDS)}
    names = [str(n) for n in table["method"]]
    best = next((n for n in names if n in scored and np.isfinite(scored[n].mean)), "")
    columns: dict[str, Any] = {"baseline": [n in BASELINES and n not in inputs.own for n in names]}
    for end in ("lower", "upper"):
        columns[f"slope_{end}"] = [getattr(scored[n], f"slope_{end}") if n in scored else np.nan for n in names]
    table = table.assign(**columns)
    if best:
        apart = judged.versus(best)
        apart.columns = ["method", "versus_best", "versus_best_lower", "versus_best_upper"]
        table = table.merge(apart, on="method", how="left")
    first = [c for c in ORDER if c in table]
    return table[[*first, *(c for c in table if c not in (*first, *LAST)), *LAST]], best


def _cloud(result: Any, ledger: Ledger) -> pd.DataFrame:
    """Predicted beside actual, each in standard deviations of its query: those of some, where there are many."""
    truth = Truth.of(ledger)
    scores: Attribution = per_query(result, ledger.dataset["query"].to_numpy())
    score, at = aligned(scores, truth.train, truth.query)
    predicted, actual = (_standard(x) for x in (truth.sums(score), truth.means[:, at].T))
    known = np.isfinite(predicted) & np.isfinite(actual)
    frame = pd.DataFrame({"predicted": predicted[known], "actual": actual[known]})
    return frame if len(frame) <= POINTS else frame.sample(POINTS, random_state=0).reset_index(drop=True)


def _standard(x: Array) -> Array:
    """(q, s) rows about their mean, in their standard deviation; NaN for a constant one."""
    spread = x.std(axis=1, keepdims=True)
    varies = spread > 1e-12 * np.abs(x).max(axis=1, keepdims=True)
    return np.where(varies, (x - x.mean(axis=1, keepdims=True)) / np.where(varies, spread, 1.0), np.nan)


def write(made: Evaluation, settings: EvaluationSettings) -> None:
    """Write evaluation.csv, report.html and run.json; config.yaml, ledger and scores were written on the way."""
    out = Path(settings.out)
    text = made.table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomically(out / "evaluation.csv", text.encode())
    write_page(made, out / "report.html")
    names = ("command", "subject", "subsets", "fraction", "repeats", "models", "failed", "trained", "best", "bad")
    facts = {name: getattr(made, name) for name in names} | {
        "training examples": made.n_train,
        "queries": made.n_query,
        "deterministic training": made.noise_free,
        "ceiling": made.ceiling if np.isfinite(made.ceiling) else None,
        "seed": settings.seed,
        "seconds": made.seconds,
        "warnings": list(made.warnings),
        "fingerprints": made.fingerprints,
        "versions": made.versions,
    }
    write_atomically(out / "run.json", json.dumps(facts, indent=1, ensure_ascii=False, default=str).encode())
