"""`proponent evaluate` from the command to its run directory: judged rightly, resumed, escaped, and clear about mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from chromium import dom_of, needs_chromium
from proponent.cli import app
from proponent.errors import InputError
from proponent.experiment import evaluate
from proponent.experiment.evaluation_settings import EvaluationSettings
from proponent.retrain.recipe import SklearnRecipe
from truth import ranks

RECIPE = """
import numpy as np
from sklearn.linear_model import Ridge

def rows(n, seed):
    made = np.random.default_rng(seed)
    X = made.normal(size=(n, 3))
    return X, X @ [1.0, -2.0, 0.5] + made.normal(size=n)

def recipe():
    return Ridge(1.0)

def train():
    X, y = rows(30, 1)
    y[:6] += 8
    return X, y

def query():
    return rows(12, 2)

def bad():
    return np.arange(30) < 6
"""

TASK = """
import numpy as np
import torch
import proponent as pp

def data(n, seed):
    made = np.random.default_rng(seed)
    return made.normal(size=(n, 4)).astype("float32"), made.integers(0, 2, n)

def task():
    torch.manual_seed(0)
    return pp.Task(torch.nn.Linear(4, 2), loss="cross_entropy")

def train():
    return data(24, 1)

def query():
    return data(5, 2)
"""

FUNCTION_RECIPE = """
def recipe():
    from proponent.retrain.recipe import FunctionRecipe

    def fit(examples, seed):
        made = np.random.default_rng(seed)
        return examples.inputs.mean(axis=0) + NOISE * made.normal(size=4)

    return FunctionRecipe(fit, lambda model, query: query.inputs @ model, name="mean NOISE")
"""

OUT = Path("runs/exp-evaluation")
FILES = ["config.yaml", "evaluation.csv", "ledger", "report.html", "run.json", "scores"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with an experiment in it."""
    monkeypatch.chdir(tmp_path)
    write(RECIPE)
    return tmp_path


def write(text: str) -> None:
    Path("exp.py").write_text(text)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def seen(*words: object) -> str:
    """What a finished run printed, its lines joined."""
    result = run("exp.py", "--subsets", "8", *words)
    assert result.exit_code == 0, (result.exception, result.stderr)
    return " ".join(result.stdout.split())


def told(*words: object) -> str:
    """The one sentence of a refused run."""
    result = run(*words)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and re.fullmatch(r"Error: Got .+; wanted .+\. What to do: .+[.?]", lines[0]), lines
    return lines[0]


def table() -> pd.DataFrame:
    return pd.read_csv(OUT / "evaluation.csv").set_index("method")


def facts() -> dict[str, Any]:
    made: dict[str, Any] = json.loads((OUT / "run.json").read_text())
    return made


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models each call trained."""
    counted: list[int] = []
    many, one = SklearnRecipe.fit_many, SklearnRecipe.fit

    def counting_many(recipe: Any, train: Any, included: Any, seeds: Any) -> Any:
        counted.append(len(included))
        return many(recipe, train, included, seeds)

    def counting_one(recipe: Any, examples: Any, seed: Any = None) -> Any:
        counted.append(1)
        return one(recipe, examples, seed)

    monkeypatch.setattr(SklearnRecipe, "fit_many", counting_many)
    monkeypatch.setattr(SklearnRecipe, "fit", counting_one)
    return counted


# What it finds


def test_the_run_directory_is_complete_and_repeats_itself() -> None:
    words = seen("--seed", "3")
    assert sorted(p.name for p in OUT.iterdir()) == FILES
    assert words.endswith("Look next: runs/exp-evaluation/report.html") and "9 trained now" in words
    assert "Training is deterministic" in words and "Ridge(" in words
    assert facts()["command"] == "proponent evaluate exp.py --out runs/exp-evaluation --subsets 8 --seed 3"
    assert facts()["ceiling"] == 1 and facts()["deterministic training"] and facts()["models"] == 8
    settings = yaml.safe_load((OUT / "config.yaml").read_text())
    assert (settings["subsets"], settings["seed"]) == (8, 3)
    assert run("--config", OUT / "config.yaml", "--out", "again").exit_code == 0
    columns = ["method", "lds", "lds_lower", "slope", "auroc", "versus_best"]
    one, two = (pd.read_csv(Path(out) / "evaluation.csv")[columns] for out in (OUT, "again"))
    pd.testing.assert_frame_equal(one, two)


def test_the_score_is_the_rank_correlation_of_sums_with_refits() -> None:
    seen("--methods", "influence,random")
    spec = {"__name__": "exp"}
    exec(RECIPE, spec)
    (X, y), (A, b) = spec["train"](), spec["query"]()  # type: ignore[operator]
    from proponent.methods.influence import Influence

    score = np.asarray(Influence().fit(spec["recipe"](), (X, y)).score((A, b)).dataset["score"])  # type: ignore[operator]
    halves = [np.random.default_rng([0, s]).permutation(30)[:15] for s in range(8)]
    truth = [-((spec["recipe"]().fit(X[at], y[at]).predict(A) - b) ** 2) for at in halves]  # type: ignore[operator]
    sums = [score[:, at].sum(axis=1) for at in halves]
    expected = np.mean([ranks.spearman(np.array(sums)[:, q], np.array(truth)[:, q]) for q in range(12)])
    assert table().loc["influence", "lds"] == pytest.approx(expected, abs=1e-5)
    assert table().index[0] == "influence" and np.isnan(table().loc["influence", "versus_best"])
    assert table().loc["random", "versus_best_upper"] < 0


def test_bad_examples_are_found_and_usual_methods_are_judged() -> None:
    words = seen()
    made = table()
    assert set(made.index) == {
        "leave_one_out", "influence", "knn_shapley", "random", "loss", "embedding_similarity",
    }  # fmt: skip
    assert made.loc["loss", "auroc"] == 1 and 0 < made.loc["random", "auroc"] < 1
    assert made["baseline"].sum() == 3 and (made["seconds"] >= 0).all()
    assert "6 of 30 training examples are known to be bad" in words
    page = (OUT / "report.html").read_text()
    assert "Bad examples" in page and "ceiling 1.00" in page


def test_the_files_own_methods_are_judged_beside_the_others() -> None:
    own = """
def methods():
    import proponent as pp
    score = pp.Influence().fit(recipe(), train()).score(query())
    return {"Turned": lambda: pp.Values.of(-score.dataset["score"].values.mean(axis=0), train=range(30), method="t"),
            "kept": score, "breaks": lambda: 1 / 0}
"""
    write(RECIPE + own)
    seen("--methods", "turned,kept,influence,breaks,confidence")
    made = table()
    assert made.loc["kept", "lds"] == pytest.approx(made.loc["influence", "lds"])
    assert made.loc["Turned", "lds"] < 0
    assert re.search(
        r"ZeroDivisionError \(division by zero\) from 'breaks' of methods\(\) at exp.py", made.loc["breaks", "note"]
    )
    assert "division by zero" in unescape((OUT / "report.html").read_text())


def test_a_task_is_judged_by_its_recipe_and_noise_by_its_seeds() -> None:
    write(TASK + FUNCTION_RECIPE.replace("NOISE", "0.2"))
    words = seen("--methods", "graddot,random")
    assert "Run it again with --repeats 2" in words and facts()["ceiling"] is None
    assert "averaged over 3 seeds a subset" in seen("--methods", "graddot,random", "--repeats", "3")
    assert 0 < facts()["ceiling"] < 1 and facts()["models"] == 24
    write(TASK + FUNCTION_RECIPE.replace("NOISE", "0.0"))
    assert "Training is deterministic" in seen("--methods", "graddot", "--out", "other")


# Going on


def test_a_rerun_trains_nothing_and_more_subsets_only_the_new(fits: list[int]) -> None:
    seen()
    assert sum(fits) >= 9
    before, page = table(), (OUT / "report.html").read_text()
    fits.clear()
    assert "nothing trained now" in seen()
    assert fits == [] and facts()["trained"] == 0
    pd.testing.assert_frame_equal(table(), before)
    assert "<title>Evaluation of exp.py" in page
    result = run("exp.py", "--subsets", "11")
    assert result.exit_code == 0 and sum(fits) == 3 and facts()["trained"] == 3


def test_a_killed_run_goes_on(monkeypatch: pytest.MonkeyPatch, fits: list[int]) -> None:
    monkeypatch.setattr("proponent.retrain.newton.batch_size", lambda estimator, train: 3)
    judge = evaluate.compare
    monkeypatch.setattr(evaluate, "compare", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    stopped = run("exp.py", "--subsets", "8")
    assert stopped.exit_code == 130 and "the same command goes on from there" in stopped.stderr
    assert not (OUT / "evaluation.csv").exists()
    monkeypatch.setattr(evaluate, "compare", judge)
    fits.clear()
    seen()
    assert fits == []


@pytest.mark.parametrize("change", [("Ridge(1.0)", "Ridge(2.0)"), ("y[:6] += 8", "y[:6] += 7")])
def test_a_directory_of_another_recipe_or_other_data_is_refused(change: tuple[str, str]) -> None:
    seen()
    write(RECIPE.replace(*change))
    assert re.search(r"another (recipe|training examples)", told("exp.py", "--subsets", "8"))


def test_other_queries_are_scored_and_measured_anew() -> None:
    seen("--methods", "influence")
    before = table().loc["influence", "lds"]
    write(RECIPE.replace("rows(12, 2)", "rows(12, 5)"))
    seen("--methods", "influence")
    assert table().loc["influence", "lds"] != before and facts()["trained"] == 9


# Mistakes, told before the long loop


@pytest.mark.parametrize(
    ("old", "new", "words", "sentence"),
    [
        ("", "", ["--methods", "influense"], "method 'influense'; wanted some of leave_one_out"),
        ("", "", ["--subsets", "2"], "subsets = 2; wanted a whole number of at least 3"),
        ("", "", ["--fraction", "1.0"], "fraction = 1.0; wanted a number between 0 and 1"),
        ("", "", ["--out", "exp.py/x"], "wanted a writable directory"),
        ("np.arange(30) < 6", "np.arange(30)", [], "int64 of shape (30,) from bad() in exp.py; wanted 30 booleans"),
        ("np.arange(30) < 6", "None", [], "None from bad() in exp.py"),
        ("def bad", "def methods", [], "ndarray from methods() in exp.py; wanted a dict"),
        ("return rows(12, 2)", "return {'x': rows(12, 2)}", [], "a dict of 1 from query() in exp.py"),
        ("Ridge(1.0)", "3", [], "a int as a recipe"),
    ],
)
def test_mistakes_are_told_before_the_long_loop(
    old: str, new: str, words: list[str], sentence: str, fits: list[int]
) -> None:
    write(RECIPE.replace(old, new) if old else RECIPE)
    assert sentence in told("exp.py", *words)
    assert fits == []


def test_a_task_without_a_recipe_is_told_what_to_add() -> None:
    write(TASK)
    assert "no recipe() in exp.py; wanted recipe(), which says how to train" in told("exp.py")
    assert "def recipe(): return pp.TorchRecipe(make_model" in told("exp.py")
    write(TASK + FUNCTION_RECIPE.replace("NOISE", "0.0").replace("def recipe", "def recipes"))
    assert "rename recipes() to recipe()" in told("exp.py")


def test_trainings_that_all_fail_are_told() -> None:
    write(TASK + FUNCTION_RECIPE.replace("NOISE", "0.0").replace("made = np.random", "made = no.random"))
    assert "9 trainings that all failed, the first because of" in told(
        "exp.py", "--subsets", "8", "--methods", "graddot"
    )


def test_another_measurement_and_a_misspelt_function_are_warned_of() -> None:
    recipe = 'def recipe():\n    return pp.SklearnRecipe(LogisticRegression(), measurement="margin")\n'
    write(TASK + "from sklearn.linear_model import LogisticRegression\n" + recipe + "def method():\n    return {}\n")
    words = seen("--methods", "graddot")
    assert "the task measures 'loss' and the recipe 'margin'" in words
    assert "method() in exp.py is not used; did you mean methods()?" in words


def test_a_bad_config_is_told() -> None:
    Path("c.yaml").write_text("experiment: exp.py\nout: o\nmetods: ekfac\n")
    assert "did you mean 'methods'?" in told("--config", "c.yaml")
    assert "no experiment file" in told()
    with pytest.raises(InputError, match=r"repeats = 0; wanted a whole number of at least 1"):
        EvaluationSettings("exp.py", "o", repeats=0)


# The page


def test_text_from_the_file_shows_as_it_stands() -> None:
    score = "pp.Influence().fit(recipe(), train()).score(query())"
    own = f"\ndef methods():\n    import proponent as pp\n    return {{'<script>alert(1)</script>': {score}}}\n"
    write(RECIPE + own)
    seen()
    page = (OUT / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "http://" not in page and "https://" not in page


MEASURE = """<script>addEventListener("load", () => {
  const wide = document.documentElement.clientWidth, over = [];
  const scrolls = (e) => { for (; e; e = e.parentElement) if (/auto|scroll/.test(getComputedStyle(e).overflowX)) return true; };
  for (const e of document.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > wide + 0.5 || box.left < -0.5) && !e.closest(".jump") && !scrolls(e.parentElement))
      over.push(e.tagName + " " + Math.round(box.right));
  }
  parent.postMessage(JSON.stringify({ inner: innerWidth, over: over.slice(0, 9) }), "*");
});</script></body>"""


@needs_chromium
def test_nothing_overflows_at_1400_and_at_420_pixels(tmp_path: Path) -> None:
    seen()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (OUT / "report.html").read_text("utf-8"))
    Path("page.html").write_text(text.replace("</body>", MEASURE), "utf-8")
    frames = "".join(
        f'<iframe src="page.html" width="{w}" height="900" style="border:0"></iframe>' for w in (1400, 420)
    )
    listen = 'addEventListener("message", (e) => { document.getElementById("said").textContent += e.data + "\\n"; });'
    Path("frames.html").write_text(
        f'<!doctype html><body><pre id="said"></pre><script>{listen}</script>{frames}</body>'
    )
    dom = dom_of(tmp_path / "frames.html", tmp_path)
    found = re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    said = [json.loads(line) for line in unescape(found[1]).splitlines()]
    assert sorted(s["inner"] for s in said) == [420, 1400] and [s for s in said if s["over"]] == []


def test_the_command_loads_no_torch() -> None:
    code = "import sys, proponent.cli, proponent.experiment.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
