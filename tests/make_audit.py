"""Made-up audits that look like real ones, for testing what is drawn from an audit. Same seed, same audit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from proponent.audit.result import Audit, Explained, Neighbour, Trust
from proponent.examples import Description

Array = np.ndarray[Any, np.dtype[Any]]
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>[bold red]x[/bold red]{{ 7*7 }}\x1b[31m\u202eabc"

REASONS = {
    "label_error": "five models that never saw this row give {other} a probability of {p:.2f}; its label {label} gets {q:.2f}",
    "harmful": "refitting without this row lowers the held-out loss by {p:.4f}",
    "conflict": "the same inputs carry another label in row {twin}",
    "duplicate": "repeats row {twin} exactly",
    "near_duplicate": "differs from row {twin} in one column only",
    "memorized": "predicted right only when trained on: probability of its label falls from {p:.2f} to {q:.2f} without it",
    "influential": "among the 0.1 % of rows that move the model most",
}
SUGGESTED = {
    "label_error": "{other}",
    "harmful": "check, then remove",
    "conflict": "decide which label holds",
    "duplicate": "keep one copy",
    "near_duplicate": "compare with the other row",
    "memorized": "keep if right",
    "influential": "check first",
}
COUNTS = {
    "label_error": 312,
    "harmful": 41,
    "conflict": 18,
    "duplicate": 24,
    "near_duplicate": 9,
    "memorized": 37,
    "influential": 33,
}
TWIN = {"duplicate": 1, "near_duplicate": 2, "conflict": 3}  # row i has its twin in row i + 400 × this


def people(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Rows that look like a census."""
    married = ["Married-civ-spouse", "Never-married", "Divorced", "Widowed"]
    jobs = [
        "Exec-managerial",
        "Craft-repair",
        "Adm-clerical",
        "Machine-op-inspct",
        "Prof-specialty",
        "Handlers-cleaners",
    ]
    return pd.DataFrame(
        {
            "age": rng.integers(17, 90, n),
            "workclass": rng.choice(["Private", "Self-emp-not-inc", "State-gov", "Federal-gov"], n),
            "education": rng.choice(["Bachelors", "HS-grad", "11th", "Masters", "Some-college"], n),
            "education-num": rng.integers(1, 17, n),
            "marital-status": rng.choice(married, n),
            "occupation": rng.choice(jobs, n),
            "relationship": rng.choice(["Husband", "Not-in-family", "Own-child", "Wife"], n),
            "race": rng.choice(["White", "Black", "Asian-Pac-Islander"], n),
            "sex": rng.choice(["Male", "Female"], n),
            "capital-gain": rng.choice([0, 0, 0, 0, 2174, 14084, 99999], n),
            "capital-loss": rng.choice([0, 0, 0, 1902], n),
            "hours-per-week": rng.integers(1, 99, n),
            "native-country": rng.choice(["United-States", "Mexico", "Philippines", "Trinadad&Tobago"], n),
            "income": rng.choice(["<=50K", ">50K"], n, p=[0.76, 0.24]),
        }
    )


def tabular(seed: int = 0) -> Audit:
    """A census of 32,561 rows with two classes, every section filled."""
    rng = np.random.default_rng(seed)
    table = people(400, rng)

    def describe(at: int) -> Description:
        fields = {c: str(v) for c, v in table.iloc[at % 400].items()}
        if at // 400 == TWIN["near_duplicate"]:
            fields["hours-per-week"] += "0"
        if at // 400 == TWIN["conflict"]:
            fields["income"] = "<=50K" if fields["income"] == ">50K" else ">50K"
        return Description("row", fields)

    return _audit(rng, describe, table["income"].to_numpy(), ("<=50K", ">50K"), "adult.csv", "income", 32_561)


def texts(seed: int = 0) -> Audit:
    """Reviews, three classes, a few of them very long."""
    rng = np.random.default_rng(seed)
    start = ["The film", "My new kettle", "This phone", "The second season", "Their support line"]
    middle = [
        "takes its time and rewards patience",
        "broke after four days",
        "is fine, nothing more",
        "made me laugh twice",
    ]
    end = ["I would buy it again.", "Avoid.", "The box said otherwise!", "Not for children.", "Five stars from me 🎉"]
    labels = rng.choice(["positive", "negative", "mixed"], 400)

    def describe(at: int) -> Description:
        own = np.random.default_rng(at % 400)
        one = " ".join(
            f"{own.choice(start)} {own.choice(middle)}. {own.choice(end)}" for _ in range(int(own.integers(1, 9)))
        )
        text = one if at % 400 % 17 else one + " " + "wort" * 90 + "\n\n" + one * 30
        return Description("text", {"source": f"shop-{at % 400 % 7}", "label": str(labels[at % 400])}, text=text)

    return _audit(rng, describe, labels, ("mixed", "negative", "positive"), "reviews.parquet", "sentiment", 48_000)


def images(seed: int = 0) -> Audit:
    """Handwritten digits, ten classes."""
    rng = np.random.default_rng(seed)
    digits = load_digits()

    def describe(at: int) -> Description:
        pixels = np.clip(255 - digits.images[at % 400] * 15.9, 0, 255).astype(np.uint8)
        return Description("image", {"label": str(digits.target[at % 400])}, image=pixels)

    classes = tuple(str(c) for c in range(10))
    return _audit(rng, describe, digits.target[:400].astype(str), classes, "digits/", "digit", 1_257)


def photographs(seed: int = 0) -> Audit:
    """Large colour pictures full of noise: the worst case for the size of the page."""
    rng = np.random.default_rng(seed)

    def describe(at: int) -> Description:
        pixels = np.random.default_rng(at).integers(0, 256, (160, 224, 3)).astype(np.uint8)
        return Description("image", {"label": "cat", "file": f"photos/{at:05d}.jpg"}, image=pixels)

    labels = rng.choice(["cat", "dog"], 400)
    return _audit(rng, describe, labels, ("cat", "dog"), "photos/", "animal", 9_000)


def wide(seed: int = 0) -> Audit:
    """A table of 300 columns with long names and unbroken words."""
    audit = tabular(seed)
    more = {f"sensor_{j:03d}_reading_averaged_over_the_whole_of_last_week": f"{j / 7:.6g}" for j in range(300)}
    shown = {row: Description("row", dict(d.fields) | {"note": "x" * 300} | more) for row, d in audit.shown.items()}
    return replace(audit, shown=shown, title="a" * 120 + ".csv")


def regression(seed: int = 0) -> Audit:
    """House prices, measured by squared error; nothing certified helps, no groups."""
    rng = np.random.default_rng(seed)
    table = people(400, rng).drop(columns="income")
    price = rng.normal(200_000, 40_000, 400).round(-2)

    def describe(at: int) -> Description:
        return Description(
            "row", {c: str(v) for c, v in table.iloc[at % 400].items()} | {"price": f"{price[at % 400]:.6g}"}
        )

    audit = _audit(rng, describe, price.astype(str), (), "houses.csv", "price", 20_640, task="regression")
    checks = _checks("root mean squared error", 51_234.0, 210.0, -853.0)
    return replace(audit, checks=checks, metrics={"root mean squared error": 51_234.0, "R²": 0.71}, groups=None)


def empty(task: Literal["classification", "regression"] = "classification") -> Audit:
    """An audit that found nothing, measured nothing and was given no groups."""
    audit = tabular()
    none = {
        name: getattr(audit, name).iloc[:0] for name in ("issues", "slices", "checks", "curve", "values", "columns")
    }
    return replace(
        audit, task=task, classes=("a", "b") if task == "classification" else (), groups=None, explained=(), shown={},
        trust=(), skipped=(), warnings=(), seconds={}, metrics={}, versions={}, **none,
    )  # fmt: skip


def bare() -> Audit:
    """An audit whose empty tables have not even columns."""
    return replace(
        empty(), **{name: pd.DataFrame() for name in ("issues", "slices", "checks", "curve", "values", "columns")}
    )


def hostile() -> Audit:
    """Every text that comes from the data tries to break out of its place."""
    audit = tabular()
    bad = Description("row", {HOSTILE: HOSTILE, "income": HOSTILE})
    text = Description("text", {"label": HOSTILE}, text=HOSTILE * 20)
    picture = Description("image", {"label": HOSTILE}, image=np.zeros((4, 4), np.uint8))
    kinds = [bad, text, picture]
    issues = audit.issues.assign(reason=HOSTILE, suggested=HOSTILE).rename(columns={"probability": HOSTILE})
    issues.loc[issues.index[:3], "row"] = HOSTILE
    neighbours = tuple(Neighbour(HOSTILE, HOSTILE, 0.1, 0.05, 0.2, kinds[i % 3]) for i in range(3))
    explained = tuple(Explained(HOSTILE, HOSTILE, HOSTILE, 0.5, kinds[i % 3], neighbours, neighbours) for i in range(3))
    columns = audit.columns.assign(column=HOSTILE).rename(columns={"used_as": HOSTILE})
    return replace(
        audit, title=HOSTILE, command=HOSTILE, label=HOSTILE, model=HOSTILE, heldout=HOSTILE, columns=columns,
        issues=issues, slices=audit.slices.assign(column=HOSTILE, value=HOSTILE, reason=HOSTILE),
        checks=audit.checks.assign(what=HOSTILE, action=HOSTILE), metrics={HOSTILE: 0.5},
        groups=None if audit.groups is None else audit.groups.assign(group=HOSTILE), explained=explained,
        shown={row: kinds[i % 3] for i, row in enumerate([*audit.shown, HOSTILE])},
        trust=tuple(Trust(t.kind, t.level, HOSTILE) for t in audit.trust), warnings=(HOSTILE,),
        skipped=((HOSTILE, HOSTILE),), seconds={HOSTILE: 1.0}, versions={HOSTILE: HOSTILE},
    )  # fmt: skip


def _audit(
    rng: np.random.Generator,
    describe: Any,
    labels: Array,
    classes: tuple[str, ...],
    title: str,
    label: str,
    n: int,
    task: Literal["classification", "regression"] = "classification",
) -> Audit:
    issues = _issues(rng, labels, classes, n)
    named = pd.concat([issues.loc[issues["kind"] != "slice", "row"], issues["other"].dropna()]).unique()
    return Audit(
        title=title,
        command=f"proponent audit {title} --label {label} --group source --heldout 0.2 --seed 0 --out audits/{title.split('.')[0]}",
        task=task,
        label=label,
        classes=classes,
        model="logistic regression on one-hot columns, l2 = 0.01, fitted to a gradient norm of 1×10⁻⁹",
        n_train=n,
        n_heldout=n // 5,
        heldout="a fifth of the rows, drawn at random with seed 0 and never trained on",
        metrics={"accuracy": 0.8523, "log loss": 0.3204},
        columns=_columns(label),
        issues=issues,
        values=_values(rng, labels, n),
        groups=_groups(rng),
        slices=_slices(rng),
        checks=_checks("accuracy", 0.8442, 0.002, 0.0081),
        curve=_curve(),
        explained=tuple(_explained(rng, describe, labels, q) for q in range(4)),
        shown={row: describe(int(row)) for row in named},
        trust=_trust(),
        skipped=(("leakage between train and held-out", "no --test file was given, so both come from one file"),),
        warnings=(
            "The column fnlwgt has a distinct value in most rows and was left out as an identifier.",
            "583 rows have no native-country; the missing value was kept as a category of its own.",
        ),
        seconds={
            "read": 0.4,
            "fit": 1.8,
            "leave one out": 3.1,
            "out of sample": 9.6,
            "slices": 2.2,
            "self-check": 24.7,
        },
        versions={"proponent": "0.1.0", "numpy": "2.1.3", "scikit-learn": "1.6.1"},
    )


def _issues(rng: np.random.Generator, labels: Array, classes: tuple[str, ...], n: int) -> pd.DataFrame:
    rows = []
    for kind, count in COUNTS.items():
        for i, at in enumerate(rng.choice(400, min(count, 390), replace=False)):
            label = str(labels[at])
            other = str(rng.choice([c for c in classes if c != label])) if classes else f"{rng.normal(2e5, 4e4):.0f}"
            p, q, twin = rng.uniform(0.6, 1), rng.uniform(0, 0.3), int(at) + 400 * TWIN.get(kind, 0)
            said = {"p": p, "q": q, "twin": twin, "label": label, "other": other}
            rows.append(
                {
                    "row": str(at),
                    "kind": kind,
                    "severity": float(np.clip(0.99 - 0.6 * i / count - rng.uniform(0, 0.05), 0, 1)),
                    "reason": REASONS[kind].format(**said),
                    "suggested": SUGGESTED[kind].format(**said),
                    "probability": q if kind == "label_error" else np.nan,
                    "value": -p / 1e4 if kind in {"harmful", "label_error"} else np.nan,
                    "value_lower": -p / 1e4 - 1e-6 if kind in {"harmful", "label_error"} else np.nan,
                    "value_upper": -p / 1e4 + 1e-6 if kind in {"harmful", "label_error"} else np.nan,
                    "neighbours_with_label": "1 of 10" if kind == "label_error" else None,
                    "other": str(twin) if kind in TWIN else None,
                }
            )
    for name, severity in (("native-country = Philippines", 0.8), ("workclass = Self-emp-not-inc", 0.4)):
        said = "its labels disagree with its neighbours' twice as often"
        rows.append(
            {"row": name, "kind": "slice", "severity": severity, "reason": said, "suggested": "ask for the source"}
        )
    return pd.DataFrame(rows).sort_values("severity", ascending=False, kind="stable", ignore_index=True)


def _values(rng: np.random.Generator, labels: Array, n: int) -> pd.DataFrame:
    value = rng.standard_t(3, n) * 2e-6 + 1.2e-6
    return pd.DataFrame(
        {
            "row": np.arange(n).astype(str),
            "label": np.resize(labels, n),
            "value": value,
            "value_lower": value - 2e-7,
            "value_upper": value + 2e-7,
            "knn_shapley": value * 0.7,
            "self_influence": np.abs(value),
            "label_probability": rng.uniform(0, 1, n),
        }
    )


def _columns(label: str) -> pd.DataFrame:
    kinds = ["number", "category", "category", "number", "category", "identifier", "label"]
    return pd.DataFrame(
        {
            "column": ["age", "workclass", "education", "hours-per-week", "native-country", "fnlwgt", label],
            "kind": kinds,
            "distinct": [73, 9, 16, 94, 42, 21_648, 2],
            "missing": [0.0, 0.056, 0.0, 0.0, 0.018, 0.0, 0.0],
            "used_as": ["scaled", "one-hot", "one-hot", "scaled", "one-hot", "not used", "label"],
        }
    )


def _groups(rng: np.random.Generator) -> pd.DataFrame:
    names = ["survey-2019", "survey-2021", "import from the old system", "mturk-batch-7", "partner A"]
    value = np.array([0.041, 0.013, 0.002, -0.0017, -0.006])
    rows = np.array([14_000, 9_500, 4_100, 3_300, 1_661])
    return pd.DataFrame({"group": names, "rows": rows, "value": value, "value_per_row": value / rows})


def _slices(rng: np.random.Generator) -> pd.DataFrame:
    effect = np.array([-0.0213, -0.0088, -0.0021, 0.0009, 0.0145, 0.0333])
    half = np.array([0.009, 0.004, 0.006, 0.0031, 0.007, 0.012])
    return pd.DataFrame(
        {
            "column": ["native-country", "workclass", "age", "education", "occupation", "marital-status"],
            "value": [
                "Philippines",
                "Self-emp-not-inc",
                "under 25",
                "Masters",
                "Exec-managerial",
                "Married-civ-spouse",
            ],
            "n_train": [160, 2_033, 5_100, 1_380, 3_252, 11_970],
            "n_heldout": [38, 508, 1_270, 343, 814, 3_006],
            "effect": effect,
            "effect_lower": effect - half,
            "effect_upper": effect + half,
            "reason": ["its labels disagree with its neighbours' twice as often"] * 2
            + ["no clear effect"] * 2
            + ["needed"] * 2,
        }
    )


def _checks(metric: str, before: float, noise: float, change: float) -> pd.DataFrame:
    """Relabelling that works and removal that cannot be told from chance."""
    rows = []
    for action, size, random in (("relabel", change, -0.1 * change), ("remove", 0.3 * change, 0.25 * change)):
        numbers = {"change": size, "random_change": random, "gain": size - random}
        row = {
            "action": action,
            "what": "label_error",
            "rows": 312,
            "metric": metric,
            "before": before,
            "after": before + size,
        }
        for name, value in numbers.items():
            stem = "random" if name == "random_change" else name
            row |= {name: value, f"{stem}_lower": value - 1.5 * noise, f"{stem}_upper": value + 1.5 * noise}
        rows.append(row | {"splits": 10})
    return pd.DataFrame(rows)


def _curve() -> pd.DataFrame:
    fraction = np.linspace(0, 0.3, 13)
    flagged = 0.8442 + 0.14 * fraction - 0.55 * fraction**2
    random = 0.8442 - 0.03 * fraction
    return pd.DataFrame(
        {
            "fraction": fraction,
            "flagged": flagged,
            "flagged_lower": flagged - 0.002 - 0.01 * fraction,
            "flagged_upper": flagged + 0.002 + 0.01 * fraction,
            "random": random,
            "random_lower": random - 0.002 - 0.015 * fraction,
            "random_upper": random + 0.002 + 0.015 * fraction,
        }
    )


def _explained(rng: np.random.Generator, describe: Any, labels: Array, query: int) -> Explained:
    def side(sign: float) -> tuple[Neighbour, ...]:
        scores = np.sort(rng.exponential(2e-4, 5))[::-1] * sign
        at = rng.choice(400, 5, replace=False)
        return tuple(
            Neighbour(str(i), str(labels[i]), float(s), float(s - 2e-5), float(s + 2e-5), describe(int(i)))
            for i, s in zip(at, scores, strict=True)
        )

    probability = float(rng.uniform(0.5, 1))
    predicted = str(labels[query + 1])
    return Explained(
        f"held-{query}", str(labels[query]), predicted, probability, describe(query + 500), side(1.0), side(-1.0)
    )


def _trust() -> tuple[Trust, ...]:
    planted = "of 651 labels flipped on purpose, 71 % were among the flagged; a wrong flag costs a look"
    exact = "inputs and labels are equal, value by value"
    return (
        Trust("label_error", "medium", planted),
        Trust(
            "harmful",
            "medium",
            "values agree with refitting (rank correlation 0.97 on 200 rows); what harms here may help elsewhere",
        ),
        Trust("conflict", "high", exact),
        Trust("duplicate", "high", exact),
        Trust("near_duplicate", "medium", "distance below the 0.1 % quantile of distances between neighbours"),
        Trust("memorized", "low", "one model family only, and no retrained pairs to compare with"),
    )
