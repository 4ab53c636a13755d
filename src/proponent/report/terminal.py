"""The audit in a terminal: the verdict, the findings, the self-check and the rows to look at first, in 80 columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from proponent.report import cards, words

if TYPE_CHECKING:
    from proponent.audit.result import Audit

TRUST_STYLE = {"high": "green", "medium": "", "low": "yellow"}
VERDICT_STYLE = {"helps": "green", "hurts": "red", "unclear": ""}
VERDICT_WORD = {"helps": "better than chance", "hurts": "worse than chance", "unclear": "no clear difference"}
ROWS, SLICES, GROUPS, LETTERS = 5, 5, 8, 400


def summarise(audit: Audit, console: Console, report: str | Path | None = None) -> None:
    """Print what an audit found.

    Args:
        audit: the finished audit.
        console: where to print; its width decides where lines break.
        report: the HTML report, named at the end as the place to look next.
    """
    console.print()
    console.print(Text(words.plain(f"Audit of {audit.title}"), style="dim"))
    console.print(Text(words.sentence(audit), style="bold"))
    metrics = ", ".join(f"{words.plain(m)} {words.level(m, v)}" for m, v in audit.metrics.items())
    console.print(
        Text(words.plain(f"{audit.model}; {audit.n_heldout:,} held-out rows: {metrics or 'not measured'}"), style="dim")
    )
    for title, part in (
        ("What was found", _findings(audit)),
        ("Did it help?", _checks(audit)),
        ("Look at these rows first", _rows(audit)),
        ("Slices", _slices(audit)),
        ("Groups", _groups(audit)),
        ("Warnings", _list(list(audit.warnings))),
        ("Not run", _list([f"{check}: {reason}" for check, reason in audit.skipped])),
    ):
        if part is not None:
            console.print()
            console.print(Text(title, style="bold underline"))
            console.print(part)
    if report is not None:
        console.print()
        console.print(Text.assemble(("Look next: ", "bold"), words.plain(report)), soft_wrap=True)


def plain_table(*columns: tuple[str, bool]) -> Table:
    """A table without lines but one under its heads; True marks a column of numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, numeric in columns:
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return table


def cell_text(value: object, style: str = "") -> Text:
    """A cell from the data, cut to a length and never read as markup."""
    shown = " ".join(words.cell(value).split())
    return Text(shown if len(shown) <= LETTERS else shown[: LETTERS - 1] + "…", style=style)


def _findings(audit: Audit) -> Table | None:
    if not len(audit.issues):
        return None
    trust = {t.kind: t for t in audit.trust}
    table = plain_table(("finding", False), ("rows", True), ("worst row", False), ("how far to trust it", False))
    for name in words.ordered(list(audit.issues["kind"])):
        found = audit.issues[audit.issues["kind"] == name]
        known = trust.get(name)
        said = Text("not measured", style="dim")
        if known is not None:
            said = Text.assemble((known.level, TRUST_STYLE[known.level]), ": ", cell_text(known.because))
        table.add_row(
            cell_text(words.kind(name).name), f"{found['row'].nunique():,}", cell_text(str(found["row"].iloc[0])), said
        )
    return table


def _checks(audit: Audit) -> Group | None:
    checks = words.told(audit.checks)
    if not len(checks):
        return None
    table = plain_table(("", False), ("flagged rows", True), ("random rows", True), ("gain", True))
    for check in checks.to_dict("records"):
        metric, verdict = str(check["metric"]), words.verdict(check)
        unit = words.unit(metric).strip()
        what = Text.assemble(
            cell_text(words.doing(check)),
            (f"\n{words.plain(metric)}{', ' + unit if unit else ''}\n", "dim"),
            (VERDICT_WORD[verdict], VERDICT_STYLE[verdict]),
        )
        spans = [_span(check, metric, *names) for names in (("change",), ("random_change", "random"), ("gain",))]
        table.add_row(what, *spans[:2], Text(spans[2], style=VERDICT_STYLE[verdict]))
    note = Text("gain = flagged − random; 95 % intervals; lower is better for losses and errors", style="dim")
    return Group(table, note)


def _span(check: words.Check, metric: str, name: str, stem: str | None = None) -> str:
    """A change with its interval below it."""
    columns = (name, f"{stem or name}_lower", f"{stem or name}_upper")
    size, lower, upper = (words.change(metric, float(check[c])) for c in columns)
    return f"{size}\n{lower} to {upper}"


def _rows(audit: Audit) -> Group | None:
    worst = cards.worst(audit, ROWS, cards.Limits())
    if not worst:
        return None
    parts: list[Text | Padding] = []
    for card in worst:
        label = f"  labelled {card.label}" if card.label else ""
        parts.append(
            Text.assemble(("row ", "dim"), (card.row, "bold"), label, (f"  severity {card.severity:.2f}", "dim"))
        )
        for kind, reason, suggested in card.findings:
            line = Text.assemble(
                (f"{kind}: ", "cyan"), cell_text(reason), (f" → {suggested}" if suggested else "", "green")
            )
            parts.append(Padding(line, (0, 0, 0, 4)))
    return Group(*parts)


def _slices(audit: Audit) -> Group | None:
    if not len(audit.slices):
        return None
    order = audit.slices.sort_values("effect", kind="stable").head(SLICES)
    table = plain_table(("slice", False), ("rows", True), ("loss without it", True), ("95 % interval", True))
    for s in order.to_dict("records"):
        effect, lower, upper = (float(s[c]) for c in ("effect", "effect_lower", "effect_upper"))
        style = VERDICT_STYLE["hurts" if upper < 0 else "helps" if lower > 0 else "unclear"]
        interval = f"{words.signed(lower)} to {words.signed(upper)}"
        name = cell_text(f"{s['column']} = {s['value']}")
        table.add_row(name, words.cell(s["n_train"]), Text(words.signed(effect), style=style), interval)
    return Group(table, Text("below zero: these training rows mislead about held-out rows like them", style="dim"))


def _groups(audit: Audit) -> Group | None:
    if audit.groups is None or not len(audit.groups):
        return None
    order = audit.groups.sort_values("value", kind="stable").head(GROUPS)
    table = plain_table(("group", False), ("rows", True), ("value", True), ("per row", True))
    for g in order.to_dict("records"):
        value = Text(words.signed(float(g["value"])), style="red" if float(g["value"]) < 0 else "")
        table.add_row(cell_text(str(g["group"])), words.cell(g["rows"]), value, words.signed(float(g["value_per_row"])))
    more = len(audit.groups) - len(order)
    note = "positive = helps the held-out predictions" + (f"; {more:,} more groups in groups.csv" if more else "")
    return Group(table, Text(note, style="dim"))


def _list(lines: list[str]) -> Group | None:
    if not lines:
        return None
    grid = Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        grid.add_row("·", cell_text(line))
    return Group(grid)
