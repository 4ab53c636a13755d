"""The command `proponent`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from proponent.errors import InputError, ProponentError

app = typer.Typer(
    help="Which training data made this model behave as it does?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Which training data made this model behave as it does?"""


@app.command()
def audit(
    file: Annotated[
        str | None,
        typer.Argument(help="CSV, TSV, Parquet or JSON lines (may be compressed), or a folder of images by class."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The label column.")] = None,
    out: Annotated[str | None, typer.Option(help="The run directory; audits/NAME by default.")] = None,
    test: Annotated[
        str | None, typer.Option(help="Held-out rows in a file of the same columns; otherwise a fifth is held out.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Your own embeddings, an .npy file with one row per row of FILE.")
    ] = None,
    test_features: Annotated[str | None, typer.Option(help="The same for --test.")] = None,
    group: Annotated[
        str | None, typer.Option(help="A column naming each row's source or person: values are added up by it.")
    ] = None,
    id: Annotated[str | None, typer.Option(help="A column naming each row.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Your own scikit-learn estimator as file.py:name. The file is run.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="classification or regression; found by itself.")] = None,
    rows: Annotated[int | None, typer.Option(help="Read only a random subset of this many rows.")] = None,
    queries: Annotated[int, typer.Option(help="Held-out rows that values are measured on.")] = 2000,
    splits: Annotated[int, typer.Option(help="Repetitions of the self-check; 0 leaves it out.")] = 10,
    check_rows: Annotated[int, typer.Option(help="The most rows that a repetition of the self-check works on.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    config: Annotated[str | None, typer.Option(help="Repeat the run of this config.yaml.")] = None,
) -> None:
    """Find what is wrong with a table of training data, and check it by refitting.

    Writes issues.csv, values.csv, attribution.zarr and report.html to the run directory. A killed run, started again
    with the same command, goes on where it stopped.
    """
    from proponent.audit.settings import Settings

    def settings() -> Settings:
        if config is not None:
            return Settings.from_yaml(config)
        if file is None or label is None:
            raise InputError("no table or no label", "both", "proponent audit FILE --label COLUMN")
        where = out or str(Path("audits") / Path(file).name.split(".")[0])
        return Settings(
            file,
            label,
            where,
            test,
            features,
            test_features,
            group,
            id,
            model,
            task,
            rows,
            queries,
            splits,
            check_rows,
            seed,
        )

    _guarded(lambda: run_audit(settings()))


def run_audit(settings: object) -> None:
    """Audit, and print what was found."""
    from proponent.audit.run import audit as run
    from proponent.audit.settings import Settings
    from proponent.progress import say
    from proponent.report.terminal import summarise

    assert isinstance(settings, Settings)
    console = Console()
    say(f"reading {Path(settings.file).name}")
    result = run(settings)
    summarise(result, console, Path(settings.out) / "report.html")


@app.command()
def attribute(
    experiment: Annotated[
        str | None,
        typer.Argument(help="A Python file that defines task() or recipe(), train() and query(). The file is run."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="auto, graddot, gradcos, tracin, ekfac, kfac, ggn, …; `plan` says what each costs.")
    ] = "auto",
    out: Annotated[str | None, typer.Option(help="The run directory; runs/NAME by default.")] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            help="Of one training run: a pattern in quotes, 'ckpt/*.safetensors'. The mean over them is closer to retraining."
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At every checkpoint; otherwise the checkpoints' own metadata.")
    ] = None,
    damping: Annotated[str | None, typer.Option(help="auto, a number, or a multiple of the mean: 0.1*mean.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="That training added to the mean loss.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Training examples at once; found by itself.")] = None,
    top: Annotated[int, typer.Option(help="Proponents and opponents of each query that are listed.")] = 10,
    self_influence: Annotated[
        bool, typer.Option("--self-influence", help="Each training example's influence on itself, too.")
    ] = False,
    saliency: Annotated[
        bool, typer.Option("--saliency", help="How each query's score changes with its strongest proponent's pixels.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Stop at a loss (before scoring) or gradient that is not finite; else it is set aside."
        ),
    ] = False,
    config: Annotated[
        str | None, typer.Option(help="Repeat the run of this config.yaml, elsewhere with --out.")
    ] = None,
) -> None:
    """Find the training examples behind a model's predictions.

    Writes top.csv, attribution.zarr and report.html to the run directory. A killed run, started again with the same
    command, goes on where it stopped.
    """
    from proponent.experiment.settings import Settings

    def settings() -> Settings:
        if config is not None:
            repeated = Settings.from_yaml(config)
            return repeated if out is None else replace(repeated, out=out)
        if experiment is None:
            raise InputError("no experiment file", "one", "proponent attribute experiment.py")
        return Settings(
            experiment,
            out or str(Path("runs") / Path(experiment).stem),
            method.lower(),
            checkpoints,
            learning_rate,
            damping,
            weight_decay,
            batch_size,
            top,
            self_influence,
            saliency,
            strict,
        )

    _guarded(lambda: run_attribution(settings()))


def run_attribution(settings: object) -> None:
    """Attribute, and print what was found."""
    from proponent.experiment.run import run_experiment
    from proponent.experiment.settings import Settings
    from proponent.report.attribution_terminal import summarise

    assert isinstance(settings, Settings)
    summarise(run_experiment(settings), Console(), settings.out)


@app.command()
def evaluate(
    experiment: Annotated[
        str | None,
        typer.Argument(help="A Python file as for `attribute`, with recipe(): how to train again. The file is run."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names with commas, ekfac,graddot; by default what fits, and the baselines.")
    ] = None,
    subsets: Annotated[int, typer.Option(help="Random subsets that are trained on.")] = 50,
    fraction: Annotated[float, typer.Option(help="Of the training examples in a subset.")] = 0.5,
    repeats: Annotated[
        int, typer.Option(help="Models per subset under different seeds; 2 or more give the noise ceiling.")
    ] = 1,
    out: Annotated[str | None, typer.Option(help="The run directory; runs/NAME-evaluation by default.")] = None,
    workers: Annotated[int | None, typer.Option(help="How many train at once.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    config: Annotated[
        str | None, typer.Option(help="Repeat the run of this config.yaml, elsewhere with --out.")
    ] = None,
) -> None:
    """Judge methods by how well they predict what retraining on subsets does.

    Writes evaluation.csv and report.html to the run directory. A killed run, started again with the same command, goes
    on where it stopped; one with more subsets trains only those that are new.
    """
    from proponent.experiment.evaluation_settings import EvaluationSettings

    def settings() -> EvaluationSettings:
        if config is not None:
            repeated = EvaluationSettings.from_yaml(config)
            return repeated if out is None else replace(repeated, out=out)
        if experiment is None:
            raise InputError("no experiment file", "one", "proponent evaluate experiment.py")
        where = out or str(Path("runs") / f"{Path(experiment).stem}-evaluation")
        return EvaluationSettings(experiment, where, methods, subsets, fraction, repeats, workers, seed)

    _guarded(lambda: run_evaluation(settings()))


def run_evaluation(settings: object) -> None:
    """Evaluate, and print what was found."""
    from proponent.experiment.evaluate import run_evaluation as run
    from proponent.experiment.evaluation_settings import EvaluationSettings
    from proponent.report.evaluation_terminal import summarise

    assert isinstance(settings, EvaluationSettings)
    summarise(run(settings), Console(), settings.out)


@app.command()
def plan(
    experiment: Annotated[str, typer.Argument(help="A Python file as for `attribute`. The file is run.")],
) -> None:
    """What every method would cost on an experiment: seconds, memory, disk, or why it can't."""
    from proponent.experiment.run import plan as run
    from proponent.report.attribution_terminal import show_plan

    _guarded(lambda: show_plan(run(experiment), Console(), Path(experiment).name))


@app.command()
def demo(out: Annotated[str, typer.Option(help="Where the two audits go.")] = "demo") -> None:
    """Audit digits with 5 % of labels flipped, and breast cancer as it is; both come with scikit-learn."""
    from proponent.audit.demo import run_demo

    _guarded(lambda: run_demo(Path(out), Console()))


def _guarded(work: object) -> None:
    """Run; tell errors in words, without a traceback, and exit with 1."""
    assert callable(work)
    try:
        work()
    except ProponentError as e:
        Console(stderr=True).print(Text.assemble(("Error: ", "bold red"), str(e)), soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. What is done is kept; the same command goes on from there.")
        sys.exit(130)
