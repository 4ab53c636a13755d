"""An evaluation in a terminal: which method predicts retraining best, a row per method, and what to make of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proponent.report import evaluation_words as told
from proponent.report import words
from proponent.report.evaluation_page import cost
from proponent.report.terminal import cell_text, plain_table

if TYPE_CHECKING:
    from proponent.experiment.evaluation import Evaluation


def summarise(evaluation: Evaluation, console: Console, run: str | Path) -> None:
    """Print what an evaluation found.

    Args:
        evaluation: the finished evaluation.
        console: where to print; its width decides where lines break.
        run: the run directory, whose report is named at the end.
    """
    e = evaluation
    console.print()
    console.print(Text(words.plain(f"Evaluation of {e.title}: {e.subject}"), style="dim"))
    console.print(Text(told.headline(e), style="bold"))
    console.print(Text(_counts(e), style="dim"))
    console.print()
    console.print(_table(e))
    console.print()
    for sentence in (told.rivals(e), told.against_baselines(e), told.ceiling(e), told.trust(e), told.detection(e)):
        if sentence:
            console.print(Text(sentence))
    for row in e.table.to_dict("records"):
        if row["note"]:
            console.print(Text(words.plain(f"{row['method']}: {row['note']}"), style="dim"))
    for warning in e.warnings:
        console.print(Text(words.plain(f"Warning: {warning}"), style="yellow"))
    console.print(Text.assemble(("Look next: ", "bold"), words.plain(Path(run) / "report.html")), soft_wrap=True)


def _counts(e: Evaluation) -> str:
    """What was trained, and how much of it was there already."""
    models = f"{e.models + e.failed:,} models of {e.subsets:,} subsets of {e.n_train:,} training examples"
    there = "trained now" if e.trained else "nothing trained now: all were in the ledger"
    return f"{models}, {e.n_query:,} queries; {f'{e.trained:,} ' if e.trained else ''}{there}"


def _table(e: Evaluation) -> Table:
    numbers = [("LDS", "lds"), ("slope", "slope"), ("AUROC", "auroc")]
    shown = [(head, name) for head, name in numbers if name in e.table and e.table[name].notna().any()]
    table = plain_table(("method", False), *((head, True) for head, _ in shown), ("time", True))
    table.columns[0].no_wrap, table.columns[0].overflow = True, "ellipsis"
    for row in e.table.to_dict("records"):
        cells = [row["method"], *(_number(row, name) for _, name in shown), cost(row["seconds"])]
        style = "bold" if row["method"] == e.best else "dim" if row["baseline"] else None
        table.add_row(*map(cell_text, cells), style=style)
    return table


def _number(row: dict[Any, Any], name: str) -> str:
    """A number of the table; of slopes without the interval, so that 80 columns hold a row."""
    return told.span(float(row[name]), math.nan, math.nan) if name == "slope" else told.of(row, name)
