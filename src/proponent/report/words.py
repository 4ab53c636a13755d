"""The audit in words: what each kind of finding means, numbers as people write them, the verdict in a sentence."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from proponent.audit.result import Audit

Check = Mapping[Any, Any]  # a row of `Audit.checks`
Verdict = Literal["helps", "hurts", "unclear"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: its name, what it means and what to do about it."""

    name: str
    means: str
    do: str


KINDS = {
    "label_error": Kind(
        "likely label errors",
        "Models that never saw these rows disagree with their label, and the disagreement is larger than the model's usual doubt.",
        "Read the row and decide. Correct the label where it is wrong; keep it where the row is merely unusual.",
    ),
    "harmful": Kind(
        "harmful rows",
        "Training with these rows makes the held-out predictions worse. The label may be right and the row still unlike the rest.",
        "Look for a wrong label or a broken column first. Remove a row only if you would not want the model to learn from it.",
    ),
    "conflict": Kind(
        "contradicting rows",
        "Rows with the same inputs carry different labels, so no model can be right about all of them.",
        "Decide which label holds, or accept that the columns do not settle it and keep them all.",
    ),
    "duplicate": Kind(
        "duplicates",
        "These rows repeat another row exactly, inputs and label.",
        "Keep one copy, unless the repetition is real (two people, two purchases). Check that no copy sits in the held-out data.",
    ),
    "near_duplicate": Kind(
        "near duplicates",
        "These rows are almost another row: the same thing entered twice, or a record that was changed slightly.",
        "Compare the two. Merge them if they describe the same thing.",
    ),
    "memorized": Kind(
        "memorized rows",
        "The model gets these rows right only because it was trained on them; without them it would predict otherwise.",
        "Rare but correct rows are worth keeping and worth having more of. If the row is private, the model may reveal it.",
    ),
    "influential": Kind(
        "influential rows",
        "Few rows move the model as much as these, for better or worse.",
        "Make sure that they are right: an error here costs more than an error elsewhere.",
    ),
    "slice": Kind(
        "misleading slices",
        "Rows that share a value of a column mislead the model about held-out rows with the same value.",
        "Ask how these rows were collected. A source, a date or a unit that differs is the usual cause.",
    ),
}
"""Kinds of findings, in the order in which they are told."""

DOING = {"remove": "removing", "relabel": "relabelling"}


def kind(name: str) -> Kind:
    """What is known about a kind of finding, also one not listed.

    >>> kind("label_error").name, kind("odd_unit").name
    ('likely label errors', 'odd unit')
    """
    return KINDS.get(name) or Kind(name.replace("_", " "), "", "")


def ordered(kinds: list[str]) -> list[str]:
    """These kinds, each once, in the order in which they are told."""
    known = list(KINDS)
    return sorted(set(kinds), key=lambda k: (known.index(k) if k in KINDS else len(known), k))


_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def plain(value: object) -> str:
    """Text that is safe to draw: control characters, direction overrides and lone surrogates made visible.

    >>> plain("red\\x1b[31m")
    'red�[31m'
    """
    return _HIDDEN.sub("\ufffd", str(value))


def upfirst(text: str) -> str:
    """The text with its first letter made a capital and nothing else touched."""
    return text[:1].upper() + text[1:]


def number(x: float, digits: int = 3) -> str:
    """A number with this many significant digits, a true minus sign and powers of ten written out.

    >>> number(-0.01234), number(1.2e-06), number(32561), number(float("nan"))
    ('−0.0123', '1.2×10⁻⁶', '32,561', '–')
    """
    if not math.isfinite(x):
        return "–" if math.isnan(x) else ("∞" if x > 0 else "−∞")
    if abs(x) >= 1e3 and abs(x) < 1e9:
        return f"{x:,.0f}".replace("-", "−")
    mantissa, _, power = f"{x:.{digits}g}".partition("e")
    return mantissa.replace("-", "−") + (times(int(power)) if power else "")


def times(exponent: int) -> str:
    """A factor of a power of ten: "×10⁻⁴"."""
    return "×10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def power_of_ten(largest: float) -> int:
    """The exponent that brings numbers up to this size to between 1 and 10, or 0 where they read well as they are.

    >>> power_of_ten(0.00031), power_of_ten(0.31)
    (-4, 0)
    """
    if not (math.isfinite(largest) and largest > 0):
        return 0
    exponent = math.floor(math.log10(largest))
    return exponent if exponent < -2 or exponent > 5 else 0


def signed(x: float, digits: int = 3) -> str:
    """A change: `number` with its sign always written."""
    return ("+" if x > 0 else "") + number(x, digits)


def cell(value: object) -> str:
    """A table's cell as text; what is missing is a dash."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}".replace("-", "−")
    if isinstance(value, numbers.Real):
        return number(float(value))
    return plain(value)


def is_fraction(metric: str) -> bool:
    """Whether people read this metric in percent."""
    return "accuracy" in metric.lower() or metric.lower() in {"error rate", "error_rate"}


def lower_is_better(metric: str) -> bool:
    """Whether a fall of this metric is good news."""
    words = ("loss", "error", "rmse", "mse", "mae", "brier", "deviance")
    return any(w in metric.lower() for w in words)


def level(metric: str, x: float) -> str:
    """The value of a metric.

    >>> level("accuracy", 0.8523), level("log loss", 0.32)
    ('85.2 %', '0.32')
    """
    return f"{100 * x:.1f} %".replace("-", "−") if is_fraction(metric) and math.isfinite(x) else number(x)


def change(metric: str, x: float, *, sign: bool = True) -> str:
    """A change of a metric, without its unit.

    >>> change("accuracy", 0.0081), change("log loss", -0.0123), change("accuracy", -0.0001)
    ('+0.8', '−0.0123', '0.0')
    """
    if not is_fraction(metric) or not math.isfinite(x):
        return signed(x) if sign else number(x)
    rounded = round(100 * x, 1) + 0.0  # adding 0.0 turns −0.0 into 0.0
    return (f"{rounded:+.1f}" if sign and rounded else f"{rounded:.1f}").replace("-", "−")


def unit(metric: str) -> str:
    """The unit of a change of this metric, with the space before it."""
    return " points" if is_fraction(metric) else ""


def verdict(check: Check) -> Verdict:
    """Whether doing something about the flagged rows beats doing the same to random rows, beyond the interval."""
    lower, upper = float(check["gain_lower"]), float(check["gain_upper"])
    if lower_is_better(str(check["metric"])):
        lower, upper = -upper, -lower
    return "helps" if lower > 0 else "hurts" if upper < 0 else "unclear"


def told(checks: pd.DataFrame) -> pd.DataFrame:
    """The self-checks that had rows to act on; `rows` may be a mean over splits."""
    return checks[checks["rows"].round() >= 1] if len(checks) else checks


VERDICTS: dict[Verdict, str] = {
    "helps": "Better than chance: the interval of the difference lies on the good side of zero.",
    "hurts": "Worse than chance: the same done to random rows harms less. Do not do this.",
    "unclear": "Cannot be told apart from chance: the interval of the difference contains zero.",
}


def doing(check: Check) -> str:
    """What a check did: "relabelling 312 likely label errors"."""
    action, what = str(check["action"]), str(check["what"])
    what = kind(what).name if what in KINDS else what
    count = round(float(check["rows"]))
    return plain(f"{DOING.get(action, action)} {count:,} {what.removesuffix('s') if count == 1 else what}")


def outcome(check: Check) -> str:
    """What came of a check, in one sentence with its intervals."""
    metric = str(check["metric"])
    lower, upper, by = float(check["change_lower"]), float(check["change_upper"]), float(check["change"])
    verb = "raises" if lower > 0 else "lowers" if upper < 0 else "leaves"
    interval = f"(95 % CI {change(metric, lower, sign=False)} to {change(metric, upper, sign=False)})"
    if verb == "lowers":
        interval = f"(95 % CI {change(metric, -upper, sign=False)} to {change(metric, -lower, sign=False)})"
    size = f"by {change(metric, abs(by), sign=False)}{unit(metric)} {interval}"
    if verb == "leaves":
        size = f"about where it was: {change(metric, by)}{unit(metric)} {interval}"
    random = f"the same done to random rows: {change(metric, float(check['random_change']))}"
    text = f"{doing(check)} {verb} held-out {plain(metric)} {size}; {random}."
    return upfirst(text)


def headline(audit: Audit) -> str:
    """What the audit found, in one sentence.

    The rows that look mislabelled come first; without any, what stands out for another reason.
    """
    wrong = _count(audit, {"label_error"})
    if wrong:
        return f"{wrong:,} of {audit.n_train:,} rows look{'s' if wrong == 1 else ''} mislabelled."
    others, slices = _count(audit, set(audit.issues.get("kind", ())) - {"slice"}), _count(audit, {"slice"})
    found = []
    if others:
        found.append(f"{others:,} {'stands' if others == 1 else 'stand'} out for other reasons")
    if slices:
        found.append(f"{slices:,} slice{' misleads' if slices == 1 else 's mislead'}")
    start = f"None of {audit.n_train:,} rows looks mislabelled"
    if any(check == "label_error" for check, _ in audit.skipped):
        start = "Label errors were not looked for"
    return f"{start}; {', '.join(found) or 'nothing else stands out'}."


def _count(audit: Audit, kinds: set[str]) -> int:
    """How many rows, or slices, were found to be of one of these kinds."""
    issues = audit.issues
    return int(issues.loc[issues["kind"].isin(kinds), "row"].nunique()) if len(issues) else 0


def sentence(audit: Audit) -> str:
    """The headline with the outcome of the first self-check, or with why there is none."""
    return f"{headline(audit)} {confirmed(audit)}"


def confirmed(audit: Audit) -> str:
    """The outcome of the first self-check, or why there is none."""
    checks = told(audit.checks)
    if len(checks):
        return outcome(checks.iloc[0].to_dict())
    if len(audit.checks):
        return "The self-check had no rows to act on."
    return "No self-check was run, so nothing here is confirmed by refitting."
