"""The whole audit, from a file to a run directory: what it promises, what it finds, and that it can be killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge

import make_tables
from make_tables import save
from proponent.attribution import Attribution
from proponent.audit.prepare import prepare
from proponent.audit.result import Audit
from proponent.audit.run import audit
from proponent.audit.settings import Settings
from proponent.errors import FingerprintMismatch, InputError

PROMISED = {
    "issues": "row kind severity reason suggested other",
    "values": "row label value value_lower value_upper knn_shapley self_influence label_probability",
    "slices": "column value n_train n_heldout effect effect_lower effect_upper reason",
    "checks": "action what rows metric before after change change_lower change_upper random_change random_lower "
    "random_upper gain gain_lower gain_upper splits",
    "curve": "fraction flagged flagged_lower flagged_upper random random_lower random_upper",
    "groups": "group rows value value_per_row",
}
MODELS = """
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

def columns():
    return make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["age"]), (OneHotEncoder(), ["job"])
    )

linear = make_pipeline(columns(), LogisticRegression(C=0.5))
forest = make_pipeline(columns(), RandomForestClassifier(20, random_state=0))
"""


def planted_among_first(found: Audit, planted: list[str]) -> float:
    """The share of the planted errors that lie among as many rows of the highest label_error."""
    trained = set(planted) & set(found.values["row"])
    ranked = found.values.sort_values("label_error", ascending=False, kind="stable")["row"]
    return len(trained & set(ranked[: len(trained)])) / len(trained)


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.glob("*.csv"))}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Audit]:
    """An audit of every kind of column, with a group and an id."""
    folder = tmp_path_factory.mktemp("mixed")
    frame = make_tables.mixed()
    frame.loc[3, "note"] = "<script>alert(1)</script> [bold]loud[/bold] and more words"
    settings = Settings(save(folder, frame), "paid", str(folder / "run"), id="id", group="source", splits=2)
    return settings, audit(settings)


# What a run directory holds


def test_a_run_directory_is_complete(mixed: tuple[Settings, Audit]) -> None:
    settings, found = mixed
    out = Path(settings.out)
    assert {p.name for p in out.iterdir()} == {
        *(f"{name}.csv" for name in PROMISED),
        *("attribution.zarr", "config.yaml", "report.html", "run.json", "stages"),
    }
    for name, columns in PROMISED.items():
        table = pd.read_csv(out / f"{name}.csv")
        assert set(columns.split()) <= set(table.columns), name
    assert yaml.safe_load((out / "config.yaml").read_text())["group"] == "source"
    assert Settings.from_yaml(out / "config.yaml") == settings
    facts = json.loads((out / "run.json").read_text())
    assert facts["command"] == settings.command() and facts["rows"] == {
        "train": 128,
        "held out": 32,
        "in the file": 160,
    }
    assert facts["issues"] == found.issues["kind"].value_counts().to_dict()
    assert facts["sign"].startswith("score > 0: including the training example raises")
    assert set(found.columns["kind"]) >= {"number", "category", "date", "text"}


def test_values_cover_every_training_row(mixed: tuple[Settings, Audit]) -> None:
    settings, found = mixed
    values = pd.read_csv(Path(settings.out) / "values.csv")
    assert len(values) == found.n_train == 128 and values["row"].is_unique
    assert (values["value_lower"] <= values["value"]).all() and (values["value"] <= values["value_upper"]).all()
    assert values["label_probability"].between(0, 1).all() and values["label_error"].between(0, 1).all()
    assert set(values["label"]) == {"yes", "no"} and not values.isna().any().any()


def test_issues_are_sorted_and_name_training_rows(mixed: tuple[Settings, Audit]) -> None:
    found = mixed[1]
    assert found.issues["severity"].is_monotonic_decreasing and found.issues["severity"].between(0, 1).all()
    assert set(found.issues["row"]) <= set(found.values["row"]) and set(found.issues["row"]) <= set(found.shown)
    assert (found.issues["reason"].str.len() > 10).all()
    assert {t.kind for t in found.trust} == set(found.issues["kind"])


def test_groups_add_up_their_rows(mixed: tuple[Settings, Audit]) -> None:
    found = mixed[1]
    assert found.groups is not None
    groups = found.groups.set_index("group")
    assert groups["rows"].sum() == 128 and set(groups.index) == {"web", "shop", "app"}
    assert (groups["value_lower"] <= groups["value"]).all() and (groups["value"] <= groups["value_upper"]).all()
    np.testing.assert_allclose(groups["value_per_row"], groups["value"] / groups["rows"])


def test_scores_can_be_loaded_and_explain_predictions(mixed: tuple[Settings, Audit]) -> None:
    settings, found = mixed
    scores = Attribution.load(Path(settings.out) / "attribution.zarr")
    assert scores.shape == (32, 128) and len(found.explained) == 6
    for e in found.explained:
        assert all(n.score > 0 and n.lower <= n.score <= n.upper for n in e.proponents)
        assert all(n.score <= 0 and n.lower <= n.score <= n.upper for n in e.opponents)
        np.testing.assert_allclose(e.proponents[0].score, scores.proponents(e.query, 1)["score"], rtol=0.05)


def test_rows_are_shown_as_a_person_reads_them(mixed: tuple[Settings, Audit]) -> None:
    frame = pd.read_csv(mixed[0].file).set_index("id")
    shown = {**mixed[1].shown, **{e.query: e.shown for e in mixed[1].explained}}
    for row, card in shown.items():
        age = frame.loc[row, "age"]
        assert card.fields["age"] == ("–" if np.isnan(age) else f"{age:.0f}")
        assert card.fields["since"] == frame.loc[row, "since"] and card.fields["note"] == frame.loc[row, "note"]


def test_text_of_the_data_is_never_markup(mixed: tuple[Settings, Audit], tmp_path: Path) -> None:
    frame = pd.read_csv(mixed[0].file)
    frame.loc[3, "paid"] = "no" if frame.loc[3, "paid"] == "yes" else "yes"
    audit(save(tmp_path, frame), "paid", tmp_path / "run", id="id", splits=0)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "[bold]loud[/bold]" in page


# What is true of the numbers


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_bounds_contain_what_a_refit_gives(task: str, tmp_path: Path) -> None:
    frame, label = (make_tables.mixed(), "paid") if task == "classification" else (make_tables.regression(), "y")
    settings = Settings(save(tmp_path, frame), label, str(tmp_path / "run"), splits=0)
    found = audit(settings)
    data = prepare(settings)
    strength = float(np.load(tmp_path / "run" / "stages" / "strength.npz")["strength"])
    X, y, Z, t = data.train.matrix, data.train.labels, data.heldout.matrix, data.heldout.labels
    X, Z = (np.asarray(M.todense()) if hasattr(M, "todense") else M for M in (X, Z))
    tight = dict(C=strength, solver="newton-cholesky", tol=1e-12, max_iter=500)
    model = LogisticRegression(**tight) if task == "classification" else Ridge(alpha=1 / strength)

    def loss(rows: np.ndarray) -> float:
        fitted = clone(model).fit(X[rows], y[rows])
        if task == "regression":
            return float(np.mean((fitted.predict(Z) - t) ** 2))
        p = fitted.predict_proba(Z)[np.arange(len(t)), np.searchsorted(fitted.classes_, t)]
        return float(-np.log(p).mean())

    everyone = np.arange(len(y))
    values = found.values
    extremes = values["value"].abs().sort_values().index
    for i in [*extremes[-4:], *extremes[:2], *extremes[50:54]]:
        true = loss(np.delete(everyone, i)) - loss(everyone)  # minus loss with the row, minus the same without it
        lower, upper = values.loc[i, "value_lower"], values.loc[i, "value_upper"]
        assert lower - 1e-10 <= true <= upper + 1e-10, (i, true, lower, upper)
        assert upper - lower < 0.05 * values["value"].abs().max()


# What is found


def test_flipped_labels_of_breast_cancer_rank_first(tmp_path: Path) -> None:
    frame, planted = make_tables.cancer()
    found = audit(save(tmp_path, frame), "y", tmp_path / "run", splits=2)
    assert planted_among_first(found, planted) >= 0.8
    flagged = found.issues[found.issues["kind"] == "label_error"]
    assert np.mean(flagged["row"].isin(planted)) >= 0.7
    own = found.values.set_index("row")["label"]
    assert (flagged["suggested"] != own[flagged["row"]].to_numpy()).all()
    assert len(found.checks) and found.checks.iloc[0]["splits"] == 2


def test_flipped_labels_of_three_classes_rank_first(tmp_path: Path) -> None:
    frame, planted = make_tables.three_digits()
    found = audit(save(tmp_path, frame), "digit", tmp_path / "run", splits=0)
    assert found.classes == ("digit 0", "digit 1", "digit 2")
    assert planted_among_first(found, planted) >= 0.85
    assert any(check == "self-check" for check, _ in found.skipped) and len(found.checks) == 0
    for name in ("checks", "curve"):
        assert set(PROMISED[name].split()) <= set(pd.read_csv(tmp_path / "run" / f"{name}.csv").columns)


def test_wrong_numbers_rank_first_in_regression(tmp_path: Path) -> None:
    found = audit(save(tmp_path, make_tables.regression()), "y", tmp_path / "run", splits=2)
    assert found.task == "regression" and set(found.metrics) == {"R²", "mean absolute error"}
    assert planted_among_first(found, [str(i) for i in range(0, 50, 5)]) == 1.0
    assert found.checks.iloc[0]["metric"] == "R²" and found.curve["flagged"].notna().all()


def test_a_misleading_slice_and_its_rows_are_found(tmp_path: Path) -> None:
    train, test = make_tables.misleading()
    paths = [save(tmp_path, f.drop(columns="turned"), n) for f, n in ((train, "train.csv"), (test, "test.csv"))]
    found = audit(paths[0], "y", tmp_path / "run", test=paths[1], splits=0)
    worst = found.slices.sort_values("effect").iloc[0]
    assert (worst["column"], worst["value"]) == ("region", "north") and worst["effect_upper"] < 0
    turned = set(train.index[train["turned"]].astype(str))
    harmful = found.issues.loc[found.issues["kind"] == "harmful", "row"]
    assert len(harmful) >= 5 and set(harmful) <= turned
    lowest = found.values.sort_values("value")["row"][:50]
    assert np.mean(lowest.isin(turned)) > 0.9
    assert found.heldout == "the rows of test.csv" and found.n_train == len(train)


def test_repeats_and_contradictions_are_found(tmp_path: Path) -> None:
    frame = make_tables.regression(200).drop(columns="y")
    frame["y"] = np.where(frame["a"] + frame["b"] > 0, "up", "down")
    held = frame.iloc[150:]
    frame = frame.iloc[:150]
    same, opposed = frame.iloc[[4]], frame.iloc[[9]].assign(y=lambda f: np.where(f["y"] == "up", "down", "up"))
    train = pd.concat([frame, same, opposed], ignore_index=True)
    found = audit(save(tmp_path, train), "y", tmp_path / "run", test=save(tmp_path, held, "test.csv"), splits=0)
    pairs = {kind: set(zip(t["row"], t["other"], strict=True)) for kind, t in found.issues.groupby("kind")}
    assert pairs["duplicate"] == {("4", "150"), ("150", "4")}
    assert {("9", "151"), ("151", "9")} <= pairs["conflict"]


def test_a_table_of_one_text_column(tmp_path: Path) -> None:
    frame = make_tables.texts()
    frame.loc[11, "kind"] = "good" if frame.loc[11, "kind"] == "bad" else "bad"
    found = audit(save(tmp_path, frame), "kind", tmp_path / "run", splits=2)
    assert dict(zip(found.columns["column"], found.columns["kind"], strict=True)) == {"text": "text"}
    assert found.values.sort_values("label_error").iloc[-1]["row"] == "11"
    assert found.explained[0].shown.text and len(found.slices) == 0
    assert set(PROMISED["slices"].split()) <= set(pd.read_csv(tmp_path / "run" / "slices.csv").columns)


# What the user brings


def test_a_pipeline_on_the_tables_own_columns(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    path = save(tmp_path, make_tables.mixed())
    found = audit(path, "paid", tmp_path / "run", id="id", model=f"{tmp_path}/models.py:linear", splits=2)
    assert found.model == "LogisticRegression from models.py:linear" and not found.skipped
    assert found.values["value_lower"].notna().all() and found.metrics["accuracy"] > 0.7


def test_a_model_without_exact_answers_names_what_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    path = save(tmp_path, make_tables.mixed())
    found = audit(path, "paid", tmp_path / "run", id="id", model=f"{tmp_path}/models.py:forest", splits=2)
    skipped = " ".join(f"{check}: {reason}" for check, reason in found.skipped)
    for word in ("harmful", "memorized", "over-influential", "slices", "RandomForestClassifier", "KNN-Shapley"):
        assert word in skipped
    assert not set(found.issues["kind"]) & {"harmful", "memorized", "influential"}
    assert (found.values["value"] == found.values["knn_shapley"]).all() and found.values["value_lower"].isna().all()
    assert Attribution.load(tmp_path / "run" / "attribution.zarr").method == "KNNShapley"


def test_embeddings_replace_the_columns(tmp_path: Path) -> None:
    frame = make_tables.texts()
    good = (frame["kind"] == "good").to_numpy()
    np.save(tmp_path / "emb.npy", np.random.default_rng(0).normal(size=(len(frame), 4)) + 3 * good[:, None])
    found = audit(save(tmp_path, frame), "kind", tmp_path / "run", features=f"{tmp_path}/emb.npy", splits=0)
    assert found.metrics["accuracy"] == 1.0 and "on 4 features" in found.model
    assert set(found.columns["used_as"]) == {"not used: replaced by embeddings"}
    with pytest.raises(InputError, match="--test-features"):
        audit(
            save(tmp_path, frame), "kind", tmp_path / "b", features=f"{tmp_path}/emb.npy", test=f"{tmp_path}/table.csv"
        )


# Started again


@pytest.fixture
def finished(mixed: tuple[Settings, Audit], tmp_path: Path) -> Settings:
    """A copy of a finished run directory, its settings pointing there."""
    out = tmp_path / "run"
    shutil.copytree(mixed[0].out, out)
    return replace(mixed[0], out=str(out))


def test_a_second_run_reuses_every_stage(finished: Settings) -> None:
    out, before = Path(finished.out), files(Path(finished.out))
    written = {p: p.stat().st_mtime_ns for p in (out / "stages").iterdir()}
    first = audit(finished)
    report, start = (out / "report.html").read_bytes(), time.perf_counter()
    again = audit(finished)
    assert time.perf_counter() - start < 3
    assert {p: p.stat().st_mtime_ns for p in (out / "stages").iterdir()} == written
    assert files(out) == before and (out / "report.html").read_bytes() == report
    assert again.seconds == first.seconds and again.seconds["label_errors"] > 0


def test_a_damaged_stage_is_computed_again(finished: Settings) -> None:
    out = Path(finished.out)
    before = files(out)
    for name in ("effects", "label_errors", "split_001"):
        stage = out / "stages" / f"{name}.npz"
        stage.write_bytes(stage.read_bytes()[:-50])
    audit(finished)
    assert files(out) == before


def test_what_was_warned_of_is_told_again(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS + "short = make_pipeline(columns(), LogisticRegression(max_iter=1))")
    path, model = save(tmp_path, make_tables.mixed()), f"{tmp_path}/models.py:short"
    first, second = (audit(path, "paid", tmp_path / "run", id="id", model=model, splits=1) for _ in range(2))
    assert len(first.warnings) == 1 and "stops short of its own objective's optimum" in first.warnings[0]
    assert second.warnings == first.warnings


def test_another_input_or_setting_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, make_tables.mixed())
    audit(path, "paid", tmp_path / "run", id="id", splits=0)
    with pytest.raises(FingerprintMismatch, match=r"another seed .*\(0 there, 1 now\).*choose another directory"):
        audit(path, "paid", tmp_path / "run", id="id", splits=0, seed=1)
    save(tmp_path, make_tables.mixed(seed=1))
    with pytest.raises(FingerprintMismatch, match="another file content"):
        audit(path, "paid", tmp_path / "run", id="id", splits=0)
    save(tmp_path, make_tables.mixed())
    audit(path, "paid", tmp_path / "run", id="id", splits=1)  # more of the self-check is the same audit


def test_two_files_of_one_name_are_both_watched(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    frame = make_tables.regression(120)
    path, held = save(tmp_path, frame[:80]), save(tmp_path / "held", frame[80:])
    audit(path, "y", tmp_path / "run", test=held, splits=0)
    save(tmp_path, frame[:79])
    with pytest.raises(FingerprintMismatch, match="another file content"):
        audit(path, "y", tmp_path / "run", test=held, splits=0)


def killed(settings: Settings, when: Callable[[], bool]) -> bool:
    """Whether a run in a process of its own was still running when it was killed."""
    code = "import sys; from proponent.cli import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", code, "audit", "--config", str(Path(settings.out).with_suffix(".yaml"))]
    Path(settings.out).with_suffix(".yaml").write_text(settings.to_yaml())
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet) as process:
        while process.poll() is None and not when():
            time.sleep(0.005)
        running = process.poll() is None
        process.kill()
    return running


def test_a_killed_run_goes_on_to_the_same_bytes(mixed: tuple[Settings, Audit], tmp_path: Path) -> None:
    settings = replace(mixed[0], out=str(tmp_path / "run"))
    stages = tmp_path / "run" / "stages"
    assert killed(settings, (stages / "effects.npz").exists)
    kept = (stages / "label_errors.npz").stat().st_mtime_ns
    assert not (tmp_path / "run" / "issues.csv").exists()
    assert killed(settings, (stages / "split_000.npz").exists)
    audit(settings)
    assert (stages / "label_errors.npz").stat().st_mtime_ns == kept
    assert files(tmp_path / "run") == files(Path(mixed[0].out))
