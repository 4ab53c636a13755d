"""An experiment file from the command to its run directory: complete, repeatable, escaped, and clear about mistakes."""

from __future__ import annotations

import base64
import inspect
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

import proponent
from proponent.attribution import Attribution
from proponent.cli import app
from proponent.errors import InputError
from proponent.experiment.describe import guessed
from proponent.experiment.inputs import matching
from proponent.experiment.load import load
from proponent.experiment.settings import Settings
from proponent.experiment.survey import largest, survey
from proponent.methods import auto
from proponent.report.png import png
from proponent.report.saliency import beside, colours
from proponent.store.matrix import MatrixStore

TASK = """
import numpy as np
import torch
import proponent as pp

def data(n, seed):
    made = np.random.default_rng(seed)
    return made.normal(size=(n, 16)).astype("float32"), made.integers(0, 3, n)

def task():
    torch.manual_seed(0)
    return pp.Task(torch.nn.Linear(16, 3), loss="cross_entropy")

def train():
    return data(40, 1)

def query():
    return data(4, 2)
"""

RECIPE = """
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

def rows(n, seed):
    made = np.random.default_rng(seed)
    frame = pd.DataFrame({"height": made.normal(size=n), "weight": made.normal(size=n)}, index=[f"r{i}" for i in range(n)])
    return frame, np.where(made.normal(size=n) + frame["height"] > 0, "tall", "short")

def recipe():
    return LogisticRegression(C=1.0)

def train():
    return rows(60, 1)

def query():
    return rows(3, 2)
"""

BROKEN = """
def broken():
    net = torch.nn.Linear(16, 3)
    torch.nn.init.constant_(net.bias, torch.inf)
    return net
"""

FILES = ["attribution.zarr", "config.yaml", "made_from.json", "report.html", "run.json", "top.csv"]


def stand_in(
    subject: Any, train: Any, query: Any, method: str = "auto", out: Any = None, **options: Any
) -> Attribution:
    """What `attribute` does for the methods that these tests name."""
    if not hasattr(subject, "watching"):
        made = proponent.LeaveOneOut().fit(subject, train).score(query, out=out)
    else:
        named = {"auto": proponent.GradDot, "graddot": proponent.GradDot, "tracin": proponent.TracIn}
        spec = named[method](**options) if method in named else proponent.Influence(curvature=method, **options)
        streams = method != "tracin"  # the scores of several checkpoints are summed in memory
        made = spec.fit(subject, train).score(query, out=out if streams else None)
    told = {"reason": "Chosen by the tests.", "predicted_seconds": 2.0, "predicted_memory_mb": 300.0}
    return replace(made, dataset=made.dataset.assign_attrs(told))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with an experiment in it."""
    monkeypatch.chdir(tmp_path)
    if "out" not in inspect.signature(auto.attribute).parameters:
        monkeypatch.setattr(auto, "attribute", stand_in)
    (tmp_path / "exp.py").write_text(TASK)
    return tmp_path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def seen(result: Result) -> str:
    """What a finished run printed, its lines joined."""
    assert result.exit_code == 0, (result.exception, result.stderr)
    return " ".join(result.stdout.split())


def told(result: Result) -> str:
    """The one sentence of a refused run."""
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and re.fullmatch(r"Error: Got .+; wanted .+\. What to do: .+[.?]", lines[0]), lines
    return lines[0]


def write(text: str, name: str = "exp.py") -> None:
    Path(name).write_text(text)


# The run directory


def test_the_run_directory_is_complete() -> None:
    words = seen(run("attribute", "exp.py", "--method", "graddot", "--top", "3"))
    assert sorted(p.name for p in Path("runs/exp").iterdir()) == FILES
    assert "Attribution of exp.py" in words and "GradDot" in words and "40 training examples, 4 queries" in words
    assert words.count("query ") == 3 and words.endswith("Look next: runs/exp/report.html")
    facts = json.loads(Path("runs/exp/run.json").read_text())
    assert facts["command"] == "proponent attribute exp.py --out runs/exp --method graddot --top 3"
    assert facts["fingerprints"].keys() == {"training examples", "queries", "weights"}
    assert facts["versions"].keys() >= {"torch", "numpy", "python"} and facts["cost"]["seconds"] > 0
    assert yaml.safe_load(Path("runs/exp/config.yaml").read_text())["top"] == 3


def test_the_table_holds_the_strongest_scores() -> None:
    seen(run("attribute", "exp.py", "--method", "graddot", "--top", "3"))
    top, scores = pd.read_csv("runs/exp/top.csv"), Attribution.load("runs/exp/attribution.zarr")
    assert list(top.columns) == ["query", "side", "rank", "id", "score", "label"]
    for query in range(4):
        for side, rows in (("proponent", scores.proponents(query, 3)), ("opponent", scores.opponents(query, 3))):
            part = top[(top["query"] == query) & (top["side"] == side)]
            assert part["id"].tolist() == rows["id"].tolist() and part["rank"].tolist() == [1, 2, 3]
            assert part["label"].tolist() == rows["label"].tolist()
            np.testing.assert_allclose(part["score"], rows["score"], rtol=1e-5)


def test_config_repeats_the_run_to_the_byte() -> None:
    seen(run("attribute", "exp.py", "--method", "ekfac", "--damping", "0.2*mean", "--out", "one", "--self-influence"))
    seen(run("attribute", "--config", "one/config.yaml", "--out", "two"))
    for name in ("top.csv", "self_influence.csv"):
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes()
    assert yaml.safe_load(Path("two/config.yaml").read_text())["damping"] == "0.2*mean"
    seen(run("attribute", "--config", "one/config.yaml"))


def test_a_killed_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("attribute", "exp.py", "--method", "graddot", "--batch-size", "4")
    seen(run(*command, "--out", "whole"))
    write_block, written = MatrixStore.write, []

    def dying(store: MatrixStore, index: int, *args: Any) -> None:
        if "killed" in store.path.parts:  # not in a rehearsal
            if len(written) == 3:
                raise RuntimeError("the power is gone")
            written.append(index)
        write_block(store, index, *args)

    def counted(store: MatrixStore, index: int, *args: Any) -> None:
        again.extend([index] * ("killed" in store.path.parts))
        write_block(store, index, *args)

    monkeypatch.setattr(MatrixStore, "write", dying)
    assert isinstance(run(*command, "--out", "killed").exception, RuntimeError)
    assert not Path("killed/top.csv").exists()
    again: list[int] = []
    monkeypatch.setattr(MatrixStore, "write", counted)
    assert "went on from what lay there" in seen(run(*command, "--out", "killed"))
    assert written == [0, 1, 2] and again == list(range(3, 10))
    assert Path("killed/top.csv").read_bytes() == Path("whole/top.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "words", "differs"),
    [
        (("data(40, 1)", "data(40, 7)"), (), "another training examples"),
        (("manual_seed(0)", "manual_seed(1)"), (), "another weights"),
        (("", ""), ("--method", "ekfac"), r"another method at runs/exp \('graddot' there, 'ekfac' now\)"),
    ],
)
def test_a_directory_of_something_else_is_refused(
    change: tuple[str, str], words: tuple[str, ...], differs: str
) -> None:
    seen(run("attribute", "exp.py", "--method", "graddot"))
    before = Path("runs/exp/top.csv").read_bytes()
    write(TASK.replace(*change) if change[0] else TASK)
    assert re.search(differs, told(run("attribute", "exp.py", *(words or ("--method", "graddot")))))
    assert Path("runs/exp/top.csv").read_bytes() == before


def test_what_decides_no_score_may_change() -> None:
    seen(run("attribute", "exp.py", "--method", "graddot", "--top", "2"))
    seen(run("attribute", "exp.py", "--method", "graddot", "--top", "5"))
    assert pd.read_csv("runs/exp/top.csv")["rank"].max() == 5


def test_a_recipe_needs_no_task() -> None:
    write(RECIPE)
    words = seen(run("attribute", "exp.py"))
    assert "LeaveOneOut" in words and "LogisticRegression(" in words and "labelled " in words
    page = Path("runs/exp/report.html").read_text()
    assert "height" in page and pd.read_csv("runs/exp/top.csv")["id"].str.startswith("r").all()


def test_checkpoints_come_from_a_pattern_or_from_the_file() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = load("exp.py").subject.net
    for step in (2, 10):
        safetensors.save_file(model.state_dict(), f"step-{step}.safetensors", {"learning_rate": "0.1"})
    assert matching("step-*.safetensors") == ["step-2.safetensors", "step-10.safetensors"]
    seen(run("attribute", "exp.py", "--method", "tracin", "--checkpoints", "step-*.safetensors", "--out", "a"))
    write(TASK + "\ndef checkpoints():\n    return ['step-2.safetensors', 'step-10.safetensors']\n")
    seen(run("attribute", "exp.py", "--method", "tracin", "--learning-rate", "0.2", "--out", "b"))
    a, b = (Attribution.load(f"{name}/attribution.zarr").dataset["score"].to_numpy() for name in "ab")
    np.testing.assert_allclose(2 * a, b, rtol=1e-5)
    safetensors.save_file({k: 2 * v for k, v in model.state_dict().items()}, "step-10.safetensors")
    again = told(run("attribute", "exp.py", "--method", "tracin", "--learning-rate", "0.2", "--out", "b"))
    assert "another checkpoint step-10.safetensors at b" in again


# The page


def test_text_of_a_description_shows_as_it_stands() -> None:
    write(TASK + "\ndef describe(split, id):\n    return f'<script>alert({id})</script> [bold]{split}[/bold]'\n")
    words = seen(run("attribute", "exp.py", "--method", "graddot"))
    page = Path("runs/exp/report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(0)&lt;/script&gt; [bold]query[/bold]" in page
    assert "<script>alert(0)</script> [bold]query[/bold]" in words


def test_pictures_stand_inside_the_page() -> None:
    write(TASK + "\ndef image_shape():\n    return 4, 4\n")
    seen(run("attribute", "exp.py", "--method", "graddot"))
    page = Path("runs/exp/report.html").read_text()
    assert page.count("data:image/png;base64,") > 20 and 'alt="query 0, 4 by 4 pixels' in page
    assert "http://" not in page and "https://" not in page


def test_what_is_not_finite_is_set_aside_and_named() -> None:
    write(TASK.replace("return data(40, 1)", "x, y = data(40, 1)\n    x[7] = np.inf\n    return x, y"))
    assert "Set aside, not finite: 1 training examples (7)" in seen(run("attribute", "exp.py", "--method", "graddot"))
    assert "<b>1 training example</b>" in Path("runs/exp/report.html").read_text()
    assert 7 not in pd.read_csv("runs/exp/top.csv")["id"].tolist()


def test_strict_refuses_a_loss_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = TASK.replace("return data(40, 1)", "x, y = data(40, 1)\n    x[7] = np.inf\n    return x, y")
    write(broken.replace("return data(4, 2)", "x, y = data(4, 2)\n    x[2] = np.nan\n    return x, y"))
    monkeypatch.setattr("proponent.experiment.run._scores", None)
    sentence = told(run("attribute", "exp.py", "--method", "graddot", "--strict"))
    assert "1 training examples (7) and 1 queries (2) with a loss or measurement that is not finite" in sentence
    assert not Path("runs/exp/attribution.zarr").exists()


def test_strict_looks_at_the_checkpoints_that_are_scored_and_at_no_other_weights() -> None:
    torch = pytest.importorskip("torch")
    state = load("exp.py").subject.net.state_dict()
    torch.save(state, "good.pt")
    torch.save({k: v * torch.nan for k, v in state.items()}, "bad.pt")
    write(TASK.replace("return pp.Task(torch.nn.Linear(16, 3)", "return pp.Task(broken()") + BROKEN)
    words = ("attribute", "exp.py", "--method", "tracin", "--learning-rate", "0.1", "--strict")
    seen(run(*words, "--checkpoints", "good.pt", "--out", "a"))
    assert "40 training examples (0, 1, 2" in told(run(*words, "--checkpoints", "*.pt", "--out", "b"))


def test_strict_keeps_the_scores_where_only_a_gradient_is_not_finite() -> None:
    write(
        TASK.replace("return data(40, 1)", "x, y = data(40, 1)\n    x[7] = 0\n    return x, y").replace(
            'torch.nn.Linear(16, 3), loss="cross_entropy"',
            "torch.nn.Linear(16, 3, bias=False), loss=lambda model, b: model(b[0]).abs().sqrt().sum(1)",
        )
    )
    sentence = told(run("attribute", "exp.py", "--method", "graddot", "--strict"))
    assert "1 training examples (7) with a loss or gradient that is not finite" in sentence
    kept = {p: p.stat().st_mtime_ns for p in Path("runs/exp/attribution.zarr/score").rglob("*")}
    assert "Set aside, not finite: 1 training examples (7)" in seen(run("attribute", "exp.py", "--method", "graddot"))
    assert kept and kept == {p: p.stat().st_mtime_ns for p in kept}


def test_the_largest_self_influence_comes_first() -> None:
    seen(run("attribute", "exp.py", "--method", "graddot", "--self-influence"))
    table = pd.read_csv("runs/exp/self_influence.csv")
    assert len(table) == 40 and table["value"].is_monotonic_decreasing and (table["value"] >= 0).all()
    assert "Self-influence" in Path("runs/exp/report.html").read_text()


def test_the_strongest_proponent_is_shown_pixel_by_pixel(tmp_path: Path) -> None:
    write(TASK + "\ndef image_shape():\n    return 4, 4\n")
    seen(run("attribute", "exp.py", "--method", "graddot", "--saliency"))
    page = Path("runs/exp/report.html").read_text()
    first = pd.read_csv("runs/exp/top.csv").query("query == 2 and side == 'proponent'")["id"].iloc[0]
    assert page.count('<figure class="saliency">') == 4
    assert f"slopes of the score over the pixels of training example {first}" in page
    experiment = load("exp.py")
    slopes = proponent.GradDot().fit(experiment.subject, experiment.train).perturbation(experiment.query, [first])
    drawn = colours(slopes.values[2, 0].reshape(4, 4))
    assert base64.b64encode(png(drawn)).decode() in page
    write(TASK)
    assert "define image_shape()" in told(run("attribute", "exp.py", "--method", "graddot", "--saliency", "--out", "b"))
    write(RECIPE)
    assert "leave out --saliency" in told(run("attribute", "exp.py", "--saliency", "--out", "c"))


def test_colours_are_centred_at_zero_and_channels_add_up() -> None:
    slopes = np.array([[0.0, 1.0], [-2.0, 0.5]])
    made = colours(slopes).astype(int)
    assert made[0, 0].tolist() == [255] * 3 and made[1, 0].tolist() == [179, 67, 27]
    assert made[0, 1].tolist() == [143, 188, 182]  # half the largest: half way from white to green
    three = np.stack([slopes, 2 * slopes, -slopes])
    np.testing.assert_array_equal(colours(three), colours(np.moveaxis(three, 0, 2)))
    np.testing.assert_array_equal(colours(three), made)
    both = beside(np.full((2, 2), 7, np.uint8), slopes)
    assert (both[:, :2] == 7).all() and (both[:, 3:] == made).all()
    with pytest.raises(InputError, match="for an image of"):
        beside(np.zeros((3, 2), np.uint8), slopes)
    with pytest.raises(InputError, match="not finite"):
        colours(np.array([[np.nan]]))
    assert not colours(np.zeros((2, 2))).min() < 255


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (np.zeros((1, 8, 9)), (8, 9)),
        (np.zeros((3, 8, 9)), (8, 9, 3)),
        (np.zeros((8, 9, 3), np.uint8), (8, 9, 3)),
        (np.zeros((8, 9)), (8, 9)),
    ],
)
def test_arrays_that_are_pictures(value: np.ndarray, shape: tuple[int, ...]) -> None:
    shown = guessed(value, {"label": "cat"})
    assert shown.kind == "image" and shown.image.shape == shape and shown.image.dtype == np.uint8


def test_arrays_that_are_no_pictures() -> None:
    assert guessed(np.zeros((2, 8, 9)), {}).fields["shape"] == "2 × 8 × 9"
    assert guessed(np.linspace(0, 1, 300), {}).fields["max"] == "1"
    assert guessed("a text", {}).text == "a text"
    assert guessed(np.array([[0.0, 1.0], [2.0, 3.0]]).repeat(4, 0).repeat(4, 1), {}).image.max() == 255


# The plan


def test_the_plan_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"method": ["ekfac", "exact"], "seconds": [0.5, 7200.0], "memory_mb": [12.0, np.nan], "note": ["", "[x]"]}
    made = SimpleNamespace(table=pd.DataFrame(columns), choice="ekfac", reason="It fits.")
    monkeypatch.setattr(proponent, "plan", lambda task, train, query, out: made, raising=False)
    words = seen(run("plan", "exp.py"))
    assert "0.50 s" in words and "2 h 0 min" in words and "12 MB" in words and "[x]" in words
    assert words.endswith("auto would take ekfac: It fits.")


# Mistakes


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("def train", "def trian", r"no train\(\) in exp.py; .* rename trian\(\) to train\(\)"),
        ("def task", "def model", r"no task\(\) in exp.py; .* add: def task\(\): return pp.Task"),
        ("def query():\n    return data(4, 2)", "", r"no query\(\) in exp.py"),
        ("return data(4, 2)", "data(4, 2)", r"None from query\(\) in exp.py; .* add a return"),
        ("return data(40, 1)", "return data(forty, 1)", r"NameError \(name 'forty' .*train\(\) at exp.py, line 15"),
        ("def train():", "def train(n):", r"train\(\) in exp.py that cannot be called with 0 arguments"),
        ("def train():", "def train(:", r"SyntaxError .* running it at exp.py, line 14"),
        ("import torch\n", "import no_such\n", r"ModuleNotFoundError \(No module named 'no_such'\) .* exp.py, line 3"),
        (
            "torch.nn.Linear(16, 3)",
            "torch.nn.Linear(9, 3)",
            r"RuntimeError .* from the model on the first of train\(\)",
        ),
        (
            'pp.Task(torch.nn.Linear(16, 3), loss="cross_entropy")',
            "3",
            r"int from task\(\) in exp.py; wanted a pp.Task",
        ),
        ("cross_entropy", "cross_entropi", r"did you mean 'cross_entropy'"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(old: str, new: str, sentence: str) -> None:
    assert old in TASK
    write(TASK.replace(old, new))
    assert re.search(sentence, told(run("attribute", "exp.py", "--method", "graddot")))
    assert not Path("runs/exp/top.csv").exists()


def test_an_error_in_the_model_names_its_line() -> None:
    model = "class Net(torch.nn.Linear):\n    def forward(self, x):\n        return 1 / 0\n"
    write(TASK.replace("def task", model + "\ndef task").replace("torch.nn.Linear(16, 3)", "Net(16, 3)"))
    sentence = told(run("attribute", "exp.py", "--method", "graddot"))
    assert "ZeroDivisionError (division by zero) from the model at exp.py, line 12" in sentence


def test_an_error_in_describe_names_its_line() -> None:
    write(TASK + "\ndef describe(split, id):\n    return [][id]\n")
    assert "IndexError" in told(run("attribute", "exp.py", "--method", "graddot"))
    write(TASK + "\ndef describe(split, id):\n    return object()\n")
    assert "object from describe(); wanted a text, a picture" in told(run("attribute", "exp.py", "--method", "graddot"))


def test_a_misspelt_optional_function_is_warned_of() -> None:
    write(TASK + "\ndef descibe(split, id):\n    return ''\n")
    assert "descibe() in exp.py is not used; did you mean describe()?" in seen(
        run("attribute", "exp.py", "--method", "graddot")
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no experiment file; wanted one"),
        (["epx.py"], "no file 'epx.py'; wanted an experiment file. What to do: did you mean 'exp.py'?"),
        (["exp.txt"], "wanted a Python file that defines"),
        (["exp.py", "--damping", "lots"], "damping = 'lots'; wanted 'auto', a number"),
        (["exp.py", "--top", "0"], "top = 0; wanted a number above 0"),
        (["exp.py", "--weight-decay", "-1"], "weight_decay = -1.0; wanted a number of at least 0"),
        (["exp.py", "--checkpoints", "no/*.pt"], "no file that matches 'no/*.pt'"),
        (["exp.py", "--method", "tracin"], "no checkpoints for tracin"),
        (["exp.py", "--learning-rate", "0.1"], "a learning rate without checkpoints"),
        (["exp.py", "--out", "exp.py/x"], "wanted a writable directory"),
        (["--config", "no.yaml"], "wanted a run's config.yaml"),
    ],
)
def test_a_mistake_in_the_command_is_told(words: list[str], sentence: str) -> None:
    assert sentence in told(run("attribute", *words))


def test_a_bad_config_is_told() -> None:
    write("experiment: exp.py\nout: o\nmetod: ekfac\n", "c.yaml")
    assert "did you mean 'method'?" in told(run("attribute", "--config", "c.yaml"))
    write("method: ekfac\n", "c.yaml")
    assert "no experiment and no out in c.yaml" in told(run("attribute", "--config", "c.yaml"))
    with pytest.raises(InputError, match=r"batch_size = 2\.5; wanted a whole number"):
        Settings("exp.py", "o", batch_size=2.5)  # type: ignore[arg-type]


# The pass over the scores


def test_the_largest_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    for k in (1, 3, 50, 80):
        values = rng.integers(0, 9, 50).astype(float)
        values[rng.integers(0, 50, 5)] = np.nan
        known = np.flatnonzero(~np.isnan(values))
        expected = known[np.argsort(-values[known], kind="stable")[:k]]
        assert largest(values, k).tolist() == expected.tolist()


def test_a_pass_in_parts_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    score = np.random.default_rng(0).normal(size=(5, 30))
    score[:, 4] = score[2] = np.nan
    scores = Attribution.of(score, query=range(5), train=range(30), method="example")
    whole = survey(scores, 3)
    monkeypatch.setattr("proponent.experiment.survey.MEMORY", 8 * 30 * 2)
    parts = survey(scores, 3)
    pd.testing.assert_frame_equal(whole.top, parts.top)
    assert whole.set_aside == parts.set_aside == {"train": [4], "query": [2]}


def test_the_command_loads_no_torch() -> None:
    code = "import sys, proponent.cli, proponent.experiment.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
