"""An audit from settings to findings, stage by stage; each stage is kept, so a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import proponent
from proponent.applications.duplicates import Rows, find_duplicates
from proponent.applications.removal_check import run_split
from proponent.applications.removal_summary import summarise, summarise_curve
from proponent.applications.slices import COLUMNS as SLICES
from proponent.applications.slices import Factors, find_misleading_slices
from proponent.attribution import Attribution
from proponent.audit import findings, selfcheck
from proponent.audit.explain import choose_predictions, explained, neighbours_of
from proponent.audit.frames import pack, unpack
from proponent.audit.influence import (
    CERTIFY_ALL,
    certified,
    certified_values,
    encoded_examples,
    fit_exact,
    heldout_queries,
    neighbour_values,
    row_effects,
)
from proponent.audit.labels import label_table
from proponent.audit.model import Chosen, choose_model, choose_strength, fit_quietly, measure
from proponent.audit.prepare import Data, prepare
from proponent.audit.result import Audit
from proponent.audit.settings import Settings
from proponent.audit.trust import trust_in
from proponent.audit.write import write
from proponent.convex.predictor import Predictor
from proponent.errors import InputError, ProponentWarning
from proponent.examples import Description, Examples
from proponent.methods.knn_shapley import KNNShapley
from proponent.methods.leave_one_out import FittedLeaveOneOut
from proponent.progress import track
from proponent.store.stages import Arrays, Stages

Array = np.ndarray[Any, np.dtype[Any]]

REPORTED = 150  # rows per kind whose values get certified bounds
NEAR_ROWS = 50_000  # training rows up to which near duplicates are looked for (exact ones always)
SLICE_NUMBERS = 20_000_000  # rows × parameters that slices look at; of larger sets a random part stands for all
SCORED_QUERIES = 50  # held-out rows whose scores for every training row are written to attribution.zarr


def audit(file: str | Path | Settings, label: str | None = None, out: str | Path = "audit", **options: Any) -> Audit:
    """Find what is wrong with a table of training data, and check it by refitting.

    Args:
        file: the table, or complete Settings.
        label: the label column.
        out: the run directory: config.yaml, issues.csv, values.csv, slices.csv, attribution.zarr, report.html, run.json.
            A killed run started again goes on where it stopped.
        options: further fields of Settings.

    Raises:
        InputError: a file, a column or a model is not usable.
        FingerprintMismatch: `out` holds another audit.
    """
    settings = file if isinstance(file, Settings) else Settings(str(file), str(label), str(out), **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ProponentWarning)
        result, data, scores = _audit(settings)
    told = tuple(
        dict.fromkeys([*result.warnings, *(str(w.message) for w in caught if issubclass(w.category, ProponentWarning))])
    )
    result = replace(result, warnings=told)
    write(result, settings, data.train.table, scores)
    return result


@dataclass(frozen=True)
class _Work:
    """What the stages share: rows, model, and the one exact fit, made when it is first needed."""

    settings: Settings
    data: Data
    chosen: Chosen
    stages: Stages
    fitted: Callable[[], FittedLeaveOneOut | None]
    model: Callable[[], Any]

    @property
    def queries(self) -> Examples:
        return heldout_queries(self.data, self.chosen)

    def frame(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A DataFrame kept as a stage."""
        return unpack(self.stages.get(name, lambda: pack(compute())))


def _audit(settings: Settings) -> tuple[Audit, Data, Attribution]:
    data = prepare(settings)
    try:
        stages = Stages.open(Path(settings.out) / "stages", settings.made_from(_contents(settings)))
    except OSError as e:
        raise InputError(f"{e.strerror} for {settings.out!r}", "a writable directory", "name another with --out") from e
    strength = None
    if settings.model is None:
        strength = float(
            stages.get("strength", lambda: {"strength": np.asarray(choose_strength(data, settings.seed))})["strength"]
        )
    chosen = choose_model(settings.model, data, strength)
    work = _work(settings, data, chosen, stages)
    skipped: list[tuple[str, str]] = []

    metrics = stages.get("metrics", lambda: _metrics(work))
    labels = work.frame("label_errors", lambda: _label_errors(work))
    effects = stages.get("effects", lambda: _effects(work))
    nearest = stages.get("knn_shapley", lambda: neighbour_values(data))
    repeated = work.frame("duplicates", lambda: _duplicates(data))
    issues = _issues(work, labels, effects, repeated)
    bounds = stages.get("certified", lambda: _certified(work, effects, issues))
    slices = work.frame("slices", lambda: _slices(work))
    groups = None if data.train.table.groups is None else work.frame("groups", lambda: _groups(work, effects))
    if len(data.train) > NEAR_ROWS:
        skipped.append(
            ("near duplicates", f"{len(data.train):,} training rows; the search takes long beyond {NEAR_ROWS:,}")
        )
    if not chosen.exact:
        reason = f"no exact leave-one-out for {chosen.words}; KNN-Shapley values stand in"
        skipped.append(("harmful, memorized and over-influential rows, slices, certified bounds", reason))
    predictions = work.frame("predictions", lambda: _predictions(work))
    scores = _scores(work, predictions)
    shown = data.heldout.shown.take(data.heldout.shown.positions(predictions["query"].tolist()))
    asked = work.queries.take(work.queries.positions(shown.ids))
    neighbours = work.frame("neighbours", lambda: neighbours_of(scores, work.fitted(), asked))
    checks, curve = _self_check(work)
    if settings.splits == 0:
        skipped.append(("self-check", "left out by --splits 0"))
    values = _values_table(data, labels, effects, nearest, bounds)
    issues = _with_evidence(issues, values)
    result = Audit(
        title=data.train.table.name,
        command=settings.command(),
        task=data.train.table.task,
        label=settings.label,
        classes=data.train.table.classes,
        model=chosen.words,
        n_train=len(data.train),
        n_heldout=len(data.heldout),
        heldout=data.source,
        metrics={k: float(v) for k, v in metrics.items()},
        columns=_columns(data),
        issues=issues,
        values=values,
        groups=groups,
        slices=slices[slices["flagged"].astype(bool)].drop(columns="flagged"),
        checks=checks,
        curve=curve,
        explained=explained(data, neighbours, predictions[["query", "predicted", "probability"]]),
        shown=_shown(data, issues),
        trust=trust_in(data, chosen, labels, issues, checks),
        skipped=tuple(skipped),
        warnings=data.warnings,
        seconds=stages.seconds(),
        versions={name: version(name) for name in ("proponent", "numpy", "scipy", "scikit-learn", "pandas")},
    )
    return result, data, scores


def _work(settings: Settings, data: Data, chosen: Chosen, stages: Stages) -> _Work:
    @cache
    def fitted() -> FittedLeaveOneOut | None:
        return fit_exact(data, chosen) if chosen.exact else None

    @cache
    def model() -> Any:
        """What predicts held-out rows: the optimum that the scores are about, where there is one."""
        exact = fitted()
        if exact is None or (data.task == "classification" and not hasattr(chosen.estimator, "predict_proba")):
            return fit_quietly(chosen.estimator, chosen.train, data.train.labels)
        return Predictor(exact.fit.model, exact.fit.model.optimum.theta)

    return _Work(settings, data, chosen, stages, fitted, model)


def _contents(settings: Settings) -> dict[str, Any]:
    """Fingerprints of the files that the run reads."""
    found: dict[str, Any] = {"proponent": proponent.__version__}
    files = {name: getattr(settings, name) for name in ("file", "test", "features", "test_features")}
    files["model"] = (settings.model or "").partition(":")[0]
    for role, name in files.items():
        if name and Path(name).is_file():
            with Path(name).open("rb") as f:
                found[f"{role} content"] = hashlib.file_digest(f, "blake2b").hexdigest()[:32]
        elif name and Path(name).is_dir():
            listed = sorted((str(p.relative_to(name)), p.stat().st_size) for p in Path(name).rglob("*") if p.is_file())
            found[f"{role} content"] = hashlib.blake2b(repr(listed).encode()).hexdigest()[:32]
    return found


def _label_errors(work: _Work) -> pd.DataFrame:
    train = work.data.train
    return label_table(train.matrix, train.labels, train.table.ids, work.data.task, work.settings.seed)


def _effects(work: _Work) -> Arrays:
    fitted = work.fitted()
    return {} if fitted is None else row_effects(work.data, fitted, work.queries)


def _duplicates(data: Data) -> pd.DataFrame:
    content = data.train.table.frame if data.train.table.pixels is None else data.train.table.pixels
    train = Rows(content, data.train.labels, data.compared if len(data.train) <= NEAR_ROWS else None)
    rows = replace(train, name=lambda i: str(data.train.table.ids[i]))
    tolerance = 0.0 if data.task == "classification" else 0.1 * float(np.std(data.train.labels))
    return find_duplicates(rows, label_tolerance=tolerance).table


def _issues(work: _Work, labels: pd.DataFrame, effects: Arrays, repeated: pd.DataFrame) -> pd.DataFrame:
    data = work.data
    parts = [findings.mislabelled(labels, data.train.labels, data.task), findings.repeated(repeated)]
    if effects:
        parts += [
            findings.harmful(effects, data.task),
            findings.memorized(effects, data.train.labels, data.train.table.classes),
            findings.influential(effects),
        ]
    found = pd.concat(parts, ignore_index=True)
    found = found.sort_values(
        ["severity", "at", "kind"], ascending=[False, True, True], kind="stable", ignore_index=True
    )
    ids = data.train.table.ids.astype(str)
    partner = found["partner"].to_numpy(dtype=int)
    return found.assign(row=ids[found["at"].to_numpy(dtype=int)], other=np.where(partner >= 0, ids[partner], ""))


def _certified(work: _Work, effects: Arrays, issues: pd.DataFrame) -> Arrays:
    fitted = work.fitted()
    rows = issues.groupby("kind").head(REPORTED)["at"].unique() if len(issues) else np.empty(0, dtype=int)
    if fitted is None:
        return {"rows": np.empty(0, dtype=int), "value": np.empty(0), "lower": np.empty(0), "upper": np.empty(0)}
    if float(effects["cost"]) <= CERTIFY_ALL:
        rows = np.arange(len(work.data.train))
    return certified_values(work.data, fitted, work.queries, np.sort(np.asarray(rows, dtype=int)))


def _slices(work: _Work) -> pd.DataFrame:
    fitted, data = work.fitted(), work.data
    if fitted is None or data.train.table.pixels is not None:
        return pd.DataFrame(columns=[*SLICES, "flagged"])
    kinds = data.train.table.kinds
    columns = [c for c in data.train.table.frame.columns if kinds[c] in ("number", "category")]
    if not columns:
        return pd.DataFrame(columns=[*SLICES, "flagged"])
    n, parameters = len(data.train), fitted.fit.model.problem.parameters
    rng = np.random.default_rng([work.settings.seed, 5])
    rows = np.sort(rng.permutation(n)[: max(2000, SLICE_NUMBERS // parameters)])
    factors = Factors(fitted.steps_of(rows) * (n / len(rows)), fitted.query_gradients(work.queries))
    train = data.train.table.frame[columns].iloc[rows].reset_index(drop=True)
    heldout = data.heldout.table.frame[columns].iloc[data.queries].reset_index(drop=True)
    pair = (data.train.labels[rows], data.heldout.labels[data.queries]) if data.task == "classification" else None
    found = find_misleading_slices(train, heldout, factors, labels=pair)
    return found.assign(n_train=(found["n_train"] * (n / len(rows))).round().astype(int))


def _groups(work: _Work, effects: Arrays) -> pd.DataFrame:
    fitted, member = work.fitted(), work.data.train.table.groups
    assert member is not None
    names, counts = np.unique(member, return_counts=True)
    table = pd.DataFrame({"group": names.astype(object), "rows": counts})
    if fitted is None:
        return table.assign(value=np.nan, value_per_row=np.nan)
    total = pd.Series(effects["value"]).groupby(member).sum().reindex(names).to_numpy()
    if 1 < len(names) <= 200:
        scores = fitted.score_groups(work.queries, member).dataset
        table["value"] = scores["score"].mean("query").to_numpy()
        table["value_lower"] = scores["lower"].mean("query").to_numpy()
        table["value_upper"] = scores["upper"].mean("query").to_numpy()
    else:
        table["value"] = total
    return table.assign(value_per_row=table["value"] / counts).sort_values("value", kind="stable", ignore_index=True)


def _predictions(work: _Work) -> pd.DataFrame:
    """Held-out predictions to explain, the worst and the most doubtful: query, predicted, probability."""
    model, queries = work.model(), work.queries
    predicted = np.asarray(model.predict(queries.inputs))
    if work.data.task == "regression":
        loss = (predicted - np.asarray(queries.labels, dtype=float)) ** 2
        at = choose_predictions(loss, -np.abs(loss - np.median(loss)))
        words = [f"{p:.6g}" for p in predicted[at]]
        return pd.DataFrame({"query": queries.ids[at], "predicted": words, "probability": np.full(len(at), np.nan)})
    if not hasattr(model, "predict_proba"):
        at = choose_predictions((predicted != queries.labels).astype(float), np.zeros(len(queries)))
        return pd.DataFrame({"query": queries.ids[at], "predicted": predicted[at].astype(str), "probability": np.nan})
    p = model.predict_proba(queries.inputs)
    own = p[np.arange(len(p)), np.searchsorted(model.classes_, np.asarray(queries.labels))]
    at = choose_predictions(-own, -p.max(axis=1))
    sure = p[at].max(axis=1)
    return pd.DataFrame({"query": queries.ids[at], "predicted": predicted[at].astype(str), "probability": sure})


def _scores(work: _Work, predictions: pd.DataFrame) -> Attribution:
    """Scores of every training row for some held-out rows, the explained ones first; kept as attribution.zarr."""
    path = Path(work.settings.out) / "attribution.zarr"
    if path.exists():
        return Attribution.load(path)
    first = list(predictions["query"])
    rest = [q for q in work.queries.ids if q not in set(first)][: max(0, SCORED_QUERIES - len(first))]
    asked = work.queries.take(work.queries.positions([*first, *rest]))
    fitted = work.fitted()
    if fitted is None:
        neighbours = encoded_examples(work.data.heldout).take(encoded_examples(work.data.heldout).positions(asked.ids))
        scores = KNNShapley(k=5).fit(encoded_examples(work.data.train)).score(neighbours)
    else:
        problem = fitted.fit.model.problem
        small = float(problem.rows) ** 2 * problem.parameters <= CERTIFY_ALL
        scores = (certified(fitted) if small else fitted).score(asked)
    scores.save(path)
    return scores


def _self_check(work: _Work) -> tuple[pd.DataFrame, pd.DataFrame]:
    settings, data, chosen = work.settings, work.data, work.chosen
    rng = np.random.default_rng([settings.seed, 4])
    rows = np.sort(rng.permutation(len(data.train))[: settings.check_rows])
    y = data.train.labels[rows]
    other = None if settings.test is None else (selfcheck.Pool(data, chosen).heldout(), data.heldout.labels)

    @cache
    def plan() -> Any:
        return selfcheck.plan(data, chosen, work.fitted())

    def split(r: int) -> Arrays:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProponentWarning)  # said once, of the model itself
            found = run_split(plan(), rows, y, r, evaluation=other, seed=settings.seed)
        return {name: np.asarray(value) for name, value in found.items()}

    outcomes = []
    for r in track(range(settings.splits), "checking by refits", settings.splits):
        kept = work.stages.get(f"split_{r:03d}", partial(split, r))
        outcomes.append({name: float(value) for name, value in kept.items()})
    metric = "accuracy" if data.task == "classification" else "R²"
    return summarise(outcomes), summarise_curve(outcomes, metric)


def _values_table(data: Data, labels: pd.DataFrame, effects: Arrays, nearest: Arrays, bounds: Arrays) -> pd.DataFrame:
    n = len(data.train)
    nothing = np.full(n, np.nan)
    value = effects.get("value", nearest["value"]).copy()
    lower, upper = nothing.copy(), nothing.copy()
    value[bounds["rows"]], lower[bounds["rows"]], upper[bounds["rows"]] = (
        bounds["value"],
        bounds["lower"],
        bounds["upper"],
    )
    return pd.DataFrame(
        {
            "row": data.train.table.ids.astype(str),
            "label": data.train.labels.astype(str),
            "value": value,
            "value_lower": lower,
            "value_upper": upper,
            "value_stderr": effects.get("stderr", nearest["stderr"]),
            "knn_shapley": nearest["value"],
            "self_influence": effects.get("self_influence", nothing),
            "label_probability": labels["label_probability"].to_numpy(dtype=float),
            "label_error": labels["probability"].to_numpy(dtype=float),
        }
    )


def _with_evidence(issues: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    evidence = values.drop(columns=["row", "label"]).iloc[issues["at"].to_numpy(dtype=int)].reset_index(drop=True)
    first = issues[["row", "kind", "severity", "reason", "suggested", "other"]].reset_index(drop=True)
    return pd.concat([first, evidence], axis=1)


def _metrics(work: _Work) -> Arrays:
    work.fitted()  # first of all, so that a model without an optimum is refused before anything long is done
    found = measure(work.model(), work.chosen.heldout, work.data.heldout.labels, work.data.task)
    return {name: np.asarray(value) for name, value in found.items()}


def _columns(data: Data) -> pd.DataFrame:
    table = data.train.table
    rows = []
    for column, kind in table.kinds.items():
        there = column in table.frame.columns
        rows.append(
            {
                "column": column,
                "kind": kind,
                "distinct": int(table.frame[column].nunique()) if there else 0,
                "missing": float(table.frame[column].isna().mean()) if there else 0.0,
                "used_as": data.encoded.used_as.get(column, "not used"),
            }
        )
    return pd.DataFrame(rows)


def _shown(data: Data, issues: pd.DataFrame) -> dict[str, Description]:
    named = issues.groupby("kind").head(60)
    train = data.train.shown
    rows = [str(row) for row in pd.unique(pd.concat([named["row"], named["other"]])) if row]
    return {row: train.describe(row) for row in rows}
