"""The page of an evaluation: one file that opens offline; which method predicts retraining, how sure that is, what it costs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from proponent.report import evaluation_plots as drawn
from proponent.report import evaluation_words as told
from proponent.report import plots, words
from proponent.report.attribution_page import duration
from proponent.report.html import fill

if TYPE_CHECKING:
    from proponent.experiment.evaluation import Evaluation


def write_page(evaluation: Evaluation, path: str | Path) -> None:
    """Write the page of an evaluation.

    Args:
        evaluation: the finished evaluation.
        path: where to write; the folder must exist.
    """
    Path(path).write_text(render(evaluation), encoding="utf-8", newline="\n")


def render(e: Evaluation) -> str:
    """The page as text."""
    rows = e.table.to_dict("records")
    view = {
        "e": e,
        "headline": told.headline(e),
        "lead": [s for s in (told.rivals(e), told.against_baselines(e)) if s],
        "means": told.MEANS,
        "ceiling": told.ceiling(e),
        "trust": told.trust(e),
        "slope": told.slope(e),
        "detection": told.detection(e),
        "numbers": _numbers(e),
        "scores": _scores(e),
        "cloud": _cloud(e),
        "rows": [_row(row) for row in rows],
        "found": _found(e),
        "base_rate": f"{(e.bad or 0) / e.n_train:.2f}",
        "columns": {name: name in e.table and e.table[name].notna().any() for name in ("lds_of_ceiling", "slope")},
        "notes": [(words.plain(r["method"]), words.plain(r["note"])) for r in rows if r["note"]],
        "seconds": [(words.upfirst(stage), f"{v:,.1f}") for stage, v in e.seconds.items()],
        "total": f"{sum(e.seconds.values()):,.1f}",
    }
    return fill("evaluation.html", view, ("report.css", "evaluation.css"))


def _numbers(e: Evaluation) -> list[tuple[str, str]]:
    seeds = "" if e.repeats == 1 else f" × {e.repeats} seeds"
    known = [
        ("training examples", f"{e.n_train:,}"),
        ("query" if e.n_query == 1 else "queries", f"{e.n_query:,}"),
        (f"subsets of {100 * e.fraction:.0f} %{seeds}", f"{e.subsets:,}"),
        ("noise ceiling", "–" if not math.isfinite(e.ceiling) else f"{e.ceiling:.2f}"),
    ]
    return known if e.bad is None else [*known, ("known to be bad", f"{e.bad:,}")]


def _scores(e: Evaluation) -> Markup:
    """The figure of scores and costs; nothing where no method was judged."""
    rows = [_drawn(row) for row in told.ranked(e).to_dict("records")]
    label = "LDS with 95 % interval"
    return Markup(plots.responsive(lambda width: drawn.scores(rows, e.ceiling, width, label)) if rows else "")


def _drawn(row: dict[Any, Any]) -> drawn.Row:
    return drawn.Row(
        name=words.plain(row["method"]),
        value=float(row["lds"]),
        lower=float(row["lds_lower"]),
        upper=float(row["lds_upper"]),
        seconds=float(row["seconds"]),
        shown=f"LDS {told.of(row, 'lds')}, {cost(row['seconds'])}",
        tone="random" if row["baseline"] else "plain",
    )


def _cloud(e: Evaluation) -> Markup:
    if not len(e.cloud):
        return Markup("")
    x, y = e.cloud["predicted"].to_numpy(), e.cloud["actual"].to_numpy()
    label = f"predicted by {words.plain(e.best)}"
    return Markup(plots.responsive(lambda width: drawn.cloud(x, y, width, label, "actual, by retraining")))


def _row(row: dict[Any, Any]) -> dict[str, Any]:
    """A method's row of the table as text."""
    share = float(row.get("lds_of_ceiling", math.nan))
    return {
        "method": words.plain(row["method"]),
        "baseline": "baseline" if row["baseline"] else "",
        "lds": _cell(row, "lds"),
        "share": f"{100 * share:.0f} %".replace("-", "−") if math.isfinite(share) else "–",
        "slope": _cell(row, "slope"),
        "versus": _cell(row, "versus_best"),
        "seconds": cost(row["seconds"]),
    }


def _cell(row: dict[Any, Any], name: str) -> tuple[str, str]:
    """A number, and its interval, which stands below it."""
    value, _, interval = told.of(row, name).partition(" ")
    return value, interval


def _found(e: Evaluation) -> list[dict[str, Any]]:
    """The rows of the table of bad examples, best first."""
    if "auroc" not in e.table:
        return []
    rows = e.table.dropna(subset=["auroc"]).sort_values("auroc", ascending=False, kind="stable")
    return [
        {
            "method": words.plain(row["method"]),
            "baseline": "baseline" if row["baseline"] else "",
            "auroc": _cell(row, "auroc"),
            "auprc": _cell(row, "auprc"),
            "precision": f"{100 * float(row['precision_at_k']):.0f} %",
        }
        for row in rows.to_dict("records")
    ]


def cost(seconds: Any) -> str:
    """A time, or a dash where it is not known.

    >>> cost(0.0023), cost(2.0), cost(math.nan)
    ('2.3 ms', '2.0 s', '–')
    """
    taken = float(seconds)
    if not math.isfinite(taken):
        return "–"
    return f"{1000 * taken:.2g} ms" if taken < 0.0995 else duration(taken)
