"""The command: its help, its exit codes, and each mistake told in one sentence without a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

import make_tables
import proponent.audit.run
from make_tables import save
from proponent.cli import app

MODELS = """
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

short = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1))
free = LogisticRegression(C=float("inf"), max_iter=1000)
chooses = LogisticRegressionCV(cv=3, l1_ratios=(0,), use_legacy_attributes=False)
ridge = Ridge()
three = 3
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def told(result: Result) -> str:
    """The one sentence of a refused run."""
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output and result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and re.fullmatch(r"Error: Got .+; wanted .+\. What to do: .+[.?]", lines[0]), lines
    assert "?." not in lines[0]
    return lines[0]


def seen(result: Result) -> str:
    """What a finished run printed, its lines joined."""
    assert result.exit_code == 0, (result.exception, result.stderr)
    return " ".join(result.stdout.split())


def plain(n: int = 60) -> pd.DataFrame:
    """Two numbers and a class that the first decides."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=n), "weight": rng.normal(size=n)})
    return frame.assign(income=np.where(frame["size"] > 0, "high", "low"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a table in it."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path, plain())
    return tmp_path


# Help and usage


def test_help_names_every_command_and_option() -> None:
    top, audit = run("--help"), run("audit", "--help")
    assert top.exit_code == audit.exit_code == run("demo", "--help").exit_code == 0
    assert "audit" in top.stdout and "demo" in top.stdout and "Which training data" in top.stdout
    for option in ("label", "out", "test", "features", "group", "id", "model", "task", "rows", "splits", "config"):
        assert f"--{option} " in audit.stdout
    assert "audits/NAME by default" in audit.stdout and "goes on where it stopped" in " ".join(audit.stdout.split())


def test_wrong_usage_exits_with_2() -> None:
    assert run("audit", "table.csv", "--labl", "income").exit_code == 2
    assert run("audit", "table.csv", "--label", "income", "--rows", "ten").exit_code == 2
    assert run("audits").exit_code == 2 and run().exit_code == 2


def test_the_command_is_installed() -> None:
    code = "import sys; from proponent.cli import app; sys.argv[0] = 'proponent'; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, "audit", "no.csv", "--label", "y"], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("Error: Got no file 'no.csv'") and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


# Mistakes


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tabel.csv", "--label", "income"], "no file 'tabel.csv'; .* did you mean 'table.csv'?"),
        (["table.csv", "--label", "incme"], "no label column 'incme' in table.csv; .* did you mean 'income'?"),
        (["table.csv", "--label", "income", "--group", "x"], "no group column 'x' .* choose one of: size, weight"),
        (["table.csv", "--label", "income", "--task", "clustering"], "'clustering'; wanted 'classification' or"),
        (["table.csv", "--label", "income", "--task", "regression"], "labels such as .*'high'.*; wanted numbers"),
        (["table.csv", "--label", "income", "--rows", "20"], "20 usable rows in table.csv; wanted at least 40"),
        (["table.csv", "--label", "income", "--rows", "0"], "rows = 0; wanted a whole number of at least 1"),
        (["table.csv", "--label", "income", "--splits", "-1"], "splits = -1; wanted a whole number of at least 0"),
        (["table.csv", "--label", "income", "--seed", "-1"], "seed = -1"),
        (["table.csv", "--label", "income", "--queries", "0"], "queries = 0"),
        (["table.csv", "--label", "income", "--check-rows", "5"], "check_rows = 5; wanted .* at least 40"),
        (["table.csv", "--label", "income", "--features", "e.npy"], "no file 'e.npy'; wanted an .npy file"),
        (["table.csv", "--label", "income", "--test", "t.csv"], "no file 't.csv'"),
        (["table.csv", "--label", "income", "--out", "table.csv"], "for 'table.csv'; .* name another with --out"),
        (["table.csv"], "no table or no label; wanted both"),
        (["--config", "no.yaml"], "no.yaml .*; wanted a run's config.yaml"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(words: list[str], sentence: str) -> None:
    assert re.search(sentence.replace("?", r"\?"), told(run("audit", *words)))
    assert not Path("audits").exists() or not list(Path("audits").rglob("*.csv"))


@pytest.mark.parametrize(
    ("frame", "words", "sentence"),
    [
        (pd.DataFrame(), [], "the empty file bad.csv"),
        (plain(0), [], "bad.csv without a row below its header"),
        (plain().assign(income="high"), [], "one class only, 'high', in the label column 'income'"),
        (
            plain().assign(income=range(60)).astype({"income": str}).assign(income=lambda f: "c" + f["income"]),
            [],
            "60 cla",
        ),
        (plain().assign(id=[*range(59), 7]), ["--id", "id"], "1 repeated ids in the column 'id', such as '7'"),
        (plain().assign(size=1, weight=np.nan), [], "no usable column beside 'income'"),
    ],
)
def test_a_bad_table_is_told_in_a_sentence(here: Path, frame: pd.DataFrame, words: list[str], sentence: str) -> None:
    if frame.empty and len(frame.columns) == 0:
        (here / "bad.csv").write_text("")
    else:
        save(here, frame, "bad.csv")
    assert sentence in told(run("audit", "bad.csv", "--label", "income", *words))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("free", "no optimum after .* wanted an objective with a finite minimum"),
        ("ridge", "a regressor for a classification"),
        ("three", "three = int; wanted a scikit-learn estimator"),
        ("Ridge", "Ridge = the class Ridge; wanted a scikit-learn estimator"),
        ("shirt", "no 'shirt' in models.py; .* did you mean 'short'"),
    ],
)
def test_an_unusable_model_is_told_in_a_sentence(here: Path, name: str, sentence: str) -> None:
    (here / "models.py").write_text(MODELS)
    told_of = told(run("audit", "table.csv", "--label", "income", "--splits", "0", "--model", f"models.py:{name}"))
    assert re.search(sentence, told_of)
    assert not (here / "audits" / "table" / "issues.csv").exists()
    seen(run("audit", "table.csv", "--label", "income", "--splits", "0"))  # the directory is still free


def test_a_model_that_cannot_take_the_columns_is_told(here: Path) -> None:
    (here / "models.py").write_text(MODELS)
    (here / "broken.py").write_text("import no_such_package\n")
    path = save(here, plain().assign(word=["one", "two"] * 30), "words.csv")
    sentence = told(run("audit", path, "--label", "income", "--model", "models.py:short", "--splits", "0"))
    assert "ValueError (could not convert string to float: 'one')" in sentence and "ColumnTransformer" in sentence
    assert "wanted path.py:name" in told(run("audit", path, "--label", "income", "--model", "models.py"))
    sentence = told(run("audit", path, "--label", "income", "--model", "broken.py:x"))
    assert "No module named 'no_such_package'" in sentence


# What works with a warning


def test_a_model_that_stops_short_is_named(here: Path) -> None:
    (here / "models.py").write_text(MODELS)
    words = seen(run("audit", "table.csv", "--label", "income", "--splits", "1", "--model", "models.py:short"))
    assert words.count("The model stops short of its own objective's optimum") == 1 and "raise max_iter" in words


def test_a_model_that_chooses_its_own_strength_has_no_exact_answers(here: Path) -> None:
    (here / "models.py").write_text(MODELS)
    words = seen(run("audit", "table.csv", "--label", "income", "--splits", "0", "--model", "models.py:chooses"))
    assert "no exact leave-one-out for LogisticRegressionCV from models.py:chooses" in words


def test_columns_that_say_nothing_and_foreign_letters_are_warned_of(here: Path) -> None:
    frame = plain().assign(same="x", nothing=np.nan, name=["José", "Anna", "Zoë"] * 20)
    (here / "latin.csv").write_bytes(frame.to_csv(index=False).encode("latin-1"))
    words = seen(run("audit", "latin.csv", "--label", "income", "--splits", "0"))
    assert "Column with no value, left out: 'nothing'." in words
    assert "Column with the same value in every row, left out: 'same'." in words
    assert "latin.csv is not UTF-8; it was read as Windows-1252" in words
    assert "left out by --splits 0" in words and "Look next: audits/latin/report.html" in words


# The same run again


def test_config_repeats_a_run(here: Path) -> None:
    first = run("audit", "table.csv", "--label", "income", "--splits", "0", "--seed", "3", "--out", "one")
    before = (here / "one" / "values.csv").read_bytes()
    again = run("audit", "--config", "one/config.yaml")
    assert seen(again) == seen(first) and (here / "one" / "values.csv").read_bytes() == before
    settings = yaml.safe_load((here / "one" / "config.yaml").read_text())
    (here / "two.yaml").write_text(yaml.safe_dump({**settings, "out": "two"}))
    assert run("audit", "--config", "two.yaml").exit_code == 0
    assert (here / "two" / "values.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "file: table.csv\nlabel: income\nout: o\nsplitz: 3\n",
            "setting 'splitz' in c.yaml; .* did you mean 'splits'?",
        ),
        ("file: table.csv\n", "no label and no out in c.yaml"),
        ("file: table.csv\nlabel: income\nout: o\nsplits: many\n", "splits = 'many'; wanted a whole number"),
        ("file: table.csv\nlabel: 7\nout: o\n", "label = 7; wanted text"),
        ("a: [\n", "c.yaml .*; wanted a run's config.yaml"),
        ("only words\n", "setting 'only words'"),
    ],
)
def test_a_bad_config_is_told_in_a_sentence(here: Path, text: str, sentence: str) -> None:
    (here / "c.yaml").write_text(text)
    assert re.search(sentence.replace("?", r"\?"), told(run("audit", "--config", "c.yaml")))


def test_a_directory_of_another_audit_is_refused(here: Path) -> None:
    seen(run("audit", "table.csv", "--label", "income", "--splits", "0", "--out", "one"))
    before = (here / "one" / "values.csv").read_bytes()
    save(here, plain(80), "other.csv")
    sentence = told(run("audit", "other.csv", "--label", "income", "--splits", "0", "--out", "one"))
    assert re.search(
        r"another file at .*one.* \('table.csv' there, 'other.csv' now\).* choose another directory", sentence
    )
    assert (here / "one" / "values.csv").read_bytes() == before


def test_stopping_says_that_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proponent.audit.run, "audit", interrupted)
    result = run("audit", "table.csv", "--label", "income")
    assert result.exit_code == 130 and "Traceback" not in result.output
    assert result.stderr.strip() == "Stopped. What is done is kept; the same command goes on from there."


# Text of the data


def test_text_of_the_data_is_shown_as_it_stands(here: Path) -> None:
    frame = make_tables.mixed()
    frame["paid"] = frame["paid"].map({"yes": "[bold]yes[/bold]", "no": "<script>no</script>"})
    frame.loc[:9, "paid"] = np.where(
        frame["paid"][:10] == "[bold]yes[/bold]", "<script>no</script>", "[bold]yes[/bold]"
    )
    save(here, frame, "[red]t.csv")
    words = seen(run("audit", "[red]t.csv", "--label", "paid", "--id", "id", "--splits", "0", "--out", "o"))
    assert "Audit of [red]t.csv" in words and "'[bold]yes[/bold]'" in words and "<script>no</script>" in words
    page = (here / "o" / "report.html").read_text()
    assert "<script>no" not in page and "&lt;script&gt;no" in page
