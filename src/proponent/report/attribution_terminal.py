"""An attribution in a terminal: method and reason, the strongest examples of the first queries, cost, where to look next."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from proponent.examples import Description
from proponent.report import words
from proponent.report.attribution_page import duration, size
from proponent.report.terminal import cell_text, plain_table

if TYPE_CHECKING:
    from proponent.experiment.answer import Answer, Cost, Explained, Neighbour

QUERIES, ROWS, LETTERS = 3, 5, 58

HEADS = {"seconds": "time", "memory_mb": "memory", "disk_mb": "disk"}


def summarise(answer: Answer, console: Console, run: str | Path) -> None:
    """Print what an attribution found.

    Args:
        answer: the finished attribution.
        console: where to print; its width decides where lines break.
        run: the run directory, whose report is named at the end.
    """
    console.print()
    console.print(Text(words.plain(f"Attribution of {answer.title}: {answer.subject}"), style="dim"))
    console.print(Text.assemble((words.plain(answer.method), "bold"), _because(answer.reason)))
    counts = f"{answer.n_train:,} training examples, {_count(answer.n_query)}; {_took(answer.cost)}"
    console.print(Text(counts, style="dim"))
    for explained in answer.explained[:QUERIES]:
        console.print()
        console.print(_query(explained))
    console.print()
    console.print(Text(f"score = {answer.unit}", style="dim"))
    for axis, ids in answer.set_aside.items():
        many = "training examples" if axis == "train" else "queries"
        shown = ", ".join(map(str, ids[:10])) + (", …" if len(ids) > 10 else "")
        console.print(Text(words.plain(f"Set aside, not finite: {len(ids):,} {many} ({shown})"), style="yellow"))
    for warning in answer.warnings:
        console.print(Text(words.plain(f"Warning: {warning}"), style="yellow"))
    console.print(Text.assemble(("Look next: ", "bold"), words.plain(Path(run) / "report.html")), soft_wrap=True)


def _because(reason: str) -> str:
    return f": {words.plain(reason)}" if reason else ""


def _count(queries: int) -> str:
    return "1 query" if queries == 1 else f"{queries:,} queries"


def _took(cost: Cost) -> str:
    """The time, beside the prediction; the peak."""
    told = f"scored in {duration(cost.seconds)}"
    if cost.resumed:
        told += " (went on from what lay there)"
    elif cost.predicted_seconds is not None:
        told += f" ({duration(cost.predicted_seconds)} predicted)"
    return told + (f", peak memory {size(cost.memory_mb)}" if cost.memory_mb is not None else "")


def _query(e: Explained) -> Group:
    """A query's head, and its two sides in one table."""
    told = [f"labelled {e.label}"] if e.label else []
    told += [f"predicted {e.predicted}"] if e.predicted else []
    told += [e.measured] if e.measured else []
    head = Text.assemble(("query ", "dim"), (words.plain(e.query), "bold"), "  ", words.plain(", ".join(told)))
    if e.predicted and e.label and e.predicted != e.label:
        head.append("  wrong", style="red")
    excerpt = "" if e.shown.kind == "image" else _excerpt(e.shown, 76)
    largest = max((abs(n.score) for n in e.proponents + e.opponents), default=1.0)
    power = words.power_of_ten(largest)
    texts = any(n.shown.kind == "text" for n in e.proponents + e.opponents)
    table = (_stacked if texts else _side_by_side)(e, power)
    return Group(head, *([cell_text(excerpt, "dim")] if excerpt else []), table)


def _side_by_side(e: Explained, power: int) -> Table:
    """Ids and labels are short: both sides in one row."""
    score = _score_head(power)
    table = plain_table(("proponents", False), (score, True), ("opponents", False), (score, True))
    for pair in zip_longest(e.proponents[:ROWS], e.opponents[:ROWS]):
        table.add_row(*(cell for n in pair for cell in _cells(n, power)))
    return table


def _stacked(e: Explained, power: int) -> Table:
    """Texts want the width: opponents below proponents."""
    table = plain_table((_score_head(power), True), ("id", True), ("training example", False))
    for n in (*e.proponents[:ROWS], *e.opponents[:ROWS]):
        name, score = _cells(n, power)
        table.add_row(score, name, Text(_excerpt(n.shown, LETTERS), style="dim"))
    return table


def _score_head(power: int) -> str:
    return f"score{' ' + words.times(power) if power else ''}"


def _cells(n: Neighbour | None, power: int) -> tuple[Text, Text]:
    """Which example, and its score."""
    if n is None:
        return Text(""), Text("")
    name = Text(words.plain("  ".join([n.id] + ([f"labelled {n.label}"] if n.label else []))))
    return name, Text(words.signed(n.score / 10.0**power), style="green" if n.score > 0 else "red")


def _excerpt(shown: Description, letters: int) -> str:
    """The start of what an example shows, on one line."""
    columns = ", ".join(f"{k} {v}" for k, v in shown.fields.items() if k != "label")
    text = columns if shown.text is None else shown.text
    line = " ".join(words.plain(text).split())
    return line if len(line) <= letters else line[: letters - 1] + "…"


def show_plan(plan: Any, console: Console, title: str) -> None:
    """Print what every method would cost, and the choice.

    Args:
        plan: `.table` (method, seconds, memory_mb, disk_mb, note), `.choice`, `.reason`.
        console: where to print.
        title: the experiment file's name.
    """
    console.print()
    console.print(Text(words.plain(f"What each method would cost on {title}"), style="dim"))
    console.print(_plan_table(plan.table, str(plan.choice)))
    console.print()
    console.print(Text.assemble("auto would take ", (words.plain(plan.choice), "bold"), _because(str(plan.reason))))


def _plan_table(frame: pd.DataFrame, choice: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for column in frame.columns:
        numeric = column in HEADS
        table.add_column(
            HEADS.get(column, str(column).replace("_", " ")),
            justify="right" if numeric else "left",
            no_wrap=numeric or column == "method",
            overflow="fold",
        )
    for row in frame.to_dict("records"):
        chosen = str(row.get("method")) == choice
        table.add_row(*(cell_text(_amount(str(k), v)) for k, v in row.items()), style="bold" if chosen else None)
    return table


def _amount(column: str, value: Any) -> str:
    """A cell of the plan: seconds and megabytes as people say them, a dash where a method can't."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if column == "seconds":
        return duration(float(value))
    return size(float(value)) if column in HEADS else words.cell(value)
