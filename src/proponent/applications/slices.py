"""Domain mismatch: slices of the training rows that mislead the model about the same slice of the held-out rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, t

from proponent.errors import InputError
from proponent.progress import track

Array = np.ndarray[Any, np.dtype[Any]]

OTHER = "(other values)"
MISSING = "(missing)"
MEASURED = ["n_train", "n_heldout", "effect", "effect_lower", "effect_upper", "z", "p"]
COLUMNS = ["column", "value", *MEASURED, "share", "effect_elsewhere", "reason"]


class Effects(Protocol):
    """What training rows do to held-out rows: sums and means over score[q, i], the predicted m(with i) − m(without i)."""

    def on_heldout(self, train_rows: Array) -> Array:
        """Σ_{i∈S} score[q, i] for every held-out row q, (n_heldout,), of the training rows S, a mask (n_train,)."""
        ...

    def of_train(self, heldout_rows: Array) -> Array:
        """mean_{q∈V} score[q, i] for every training row i, (n_train,), over held-out rows V, a mask (n_heldout,)."""
        ...


@dataclass(frozen=True)
class Factors:
    """Effects whose scores are products: score[q, i] = heldout[q] · train[i].

    >>> effects = Factors(train=np.array([[1.0], [2.0]]), heldout=np.array([[3.0], [-1.0]]))
    >>> effects.on_heldout(np.array([True, True])).tolist(), effects.of_train(np.array([True, False])).tolist()
    ([9.0, -3.0], [3.0, 6.0])

    Args:
        train: (n_train, r) array or sparse matrix; for influence functions the training rows' loss gradients, over n.
        heldout: (n_heldout, r); for influence functions H⁻¹ times the gradients of the held-out rows' losses.
    """

    train: Any
    heldout: Any

    def on_heldout(self, train_rows: Array) -> Array:
        """Σ_{i∈S} score[q, i], (n_heldout,)."""
        return np.asarray(self.heldout @ (self.train.T @ train_rows.astype(np.float64)))

    def of_train(self, heldout_rows: Array) -> Array:
        """mean_{q∈V} score[q, i], (n_train,)."""
        return np.asarray(self.train @ (self.heldout.T @ (heldout_rows / heldout_rows.sum())))


@dataclass(frozen=True)
class Slice:
    """The rows of one value, or of one range of values, of a column: masks over training and held-out rows."""

    column: str
    value: str
    train: Array
    heldout: Array


def find_misleading_slices(
    train: pd.DataFrame,
    heldout: pd.DataFrame,
    effects: Effects,
    *,
    labels: tuple[Array, Array] | None = None,
    rows: tuple[int, int] = (10, 10),
    bins: int = 5,
    rate: float = 0.05,
) -> pd.DataFrame:
    """What each slice's training rows do to the same slice of the held-out rows, the most misleading slice first.

    effect = mean_{q∈V} Σ_{i∈S} score[q, i], with S and V the slice's training and held-out rows: the predicted change of
    the mean measurement (minus the loss) on V that having S in the training set makes, and of the mean loss on V that
    removing S makes. Negative: the slice misleads. Its variance, over both drawings of rows, is
    var_q(Σ_i score[q, i]) / |V| + |S| var_i(mean_q score[q, i]); bounds are 95 % t intervals with min(|S|, |V|) − 1
    degrees of freedom. `flagged` holds the false discovery rate at `rate` over all slices (Benjamini and Hochberg, on the
    one-sided p-values of effect < 0).

    To first order in the rows removed: for a slice that is a large part of the training set the sign and the order can be
    trusted, the size is too small.

    >>> frame = pd.DataFrame({"age": ["child"] * 20 + ["adult"] * 20})
    >>> pull = np.where(frame["age"] == "child", -1.0, 1.0) + np.linspace(-0.1, 0.1, 40)
    >>> found = find_misleading_slices(frame, frame, Factors(pull[:, None] / 40, np.ones((40, 1))))
    >>> found[["value", "flagged"]].to_numpy().tolist()
    [['child', True], ['adult', False]]

    Args:
        train, heldout: raw values, with the same columns; numbers are cut at the training rows' quantiles.
        effects: of the training rows on the held-out rows' measurements.
        labels: of training and held-out rows, only to say in the reason how they differ.
        rows: the fewest training and held-out rows of a slice; rarer values are taken together.
        bins: ranges per column of numbers with more distinct values than that.
        rate: of false discoveries.

    Returns:
        A DataFrame: column, value, n_train, n_heldout, effect, effect_lower, effect_upper, z, p, flagged, share (of all
        training rows), effect_elsewhere (on the held-out rows outside the slice, NaN where there are none), reason.

    Raises:
        InputError: the columns differ, or effects have other numbers of rows than the tables.

    Source: Koh and Liang, Understanding Black-box Predictions via Influence Functions, ICML 2017, section 5.2 (domain
    mismatch); group effects to first order: Koh, Ang, Teo and Liang, NeurIPS 2019.
    """
    if list(train.columns) != list(heldout.columns):
        differing = sorted({*map(str, train.columns)} ^ {*map(str, heldout.columns)})
        raise InputError(
            f"columns that differ ({differing})", "the same columns in both tables", "select the same columns"
        )
    found = [_measure(s, effects, labels) for s in track(list(slices(train, heldout, rows=rows, bins=bins)), "slices")]
    table = pd.DataFrame(found, columns=COLUMNS)
    table.insert(9, "flagged", false_discovery_control(table["p"]) <= rate if len(table) else [])
    table["flagged"] = table["flagged"].astype(bool)
    return table.sort_values(["p", "effect"], ignore_index=True, kind="stable")


def slices(
    train: pd.DataFrame, heldout: pd.DataFrame, *, rows: tuple[int, int] = (10, 10), bins: int = 5
) -> Iterator[Slice]:
    """The slices of two tables by the value of one column: enough rows in each, but not all training rows.

    >>> frame = pd.DataFrame({"size": np.arange(40.0), "unit": ["kg"] * 37 + ["lb", "oz", "st"]})
    >>> [s.value for s in slices(frame, frame, rows=(3, 3), bins=2)]
    ['≤ 19.5', '> 19.5', 'kg', '(other values)']

    Args:
        train, heldout: raw values, with the same columns.
        rows: the fewest training and held-out rows of a slice; levels with fewer training rows are taken together.
        bins: ranges per column of numbers with more distinct values than that.
    """
    for column in train.columns:
        mine, theirs, names = _levels(train[column], heldout[column], rows[0], bins)
        for level, name in enumerate(names):
            S, V = mine == level, theirs == level
            if rows[0] <= S.sum() < len(S) and V.sum() >= rows[1]:
                yield Slice(str(column), name, S, V)


def _levels(train: pd.Series[Any], heldout: pd.Series[Any], fewest: int, bins: int) -> tuple[Array, Array, list[str]]:
    """Level numbers of training and held-out rows, and the levels' names in a natural order."""
    if pd.api.types.is_numeric_dtype(train) and train.dtype.kind != "b" and train.nunique() > bins:
        mine, theirs = (c.to_numpy(dtype=np.float64, na_value=np.nan) for c in (train, heldout))
        cuts = np.unique(np.nanquantile(mine, np.linspace(0, 1, bins + 1)[1:-1]))
        shown = [f"{c:.6g}" for c in cuts]
        names = [f"≤ {shown[0]}", *(f"{a} to {b}" for a, b in pairwise(shown)), f"> {shown[-1]}", MISSING]
        levels = [np.where(np.isnan(v), len(cuts) + 1, np.searchsorted(cuts, v)) for v in (mine, theirs)]
        return levels[0], levels[1], names
    mine, theirs = (
        c.astype(object).where(c.notna(), MISSING).map(str).to_numpy(dtype=object) for c in (train, heldout)
    )
    counts = pd.Series(mine).value_counts()
    names = [*sorted(counts.index[counts >= fewest]), OTHER]
    levels = [pd.Index(names[:-1]).get_indexer(pd.Index(v)) for v in (mine, theirs)]
    return *(np.where(level < 0, len(names) - 1, level) for level in levels), names  # type: ignore[return-value]


def _measure(s: Slice, effects: Effects, labels: tuple[Array, Array] | None) -> dict[str, Any]:
    n, m = int(s.train.sum()), int(s.heldout.sum())
    on_heldout = effects.on_heldout(s.train)
    if on_heldout.shape != s.heldout.shape:
        raise InputError(
            f"effects on {on_heldout.shape[0]} held-out rows for a table of {len(s.heldout)}",
            "one effect per held-out row",
            "pass the tables that the effects were computed from",
        )
    each, of_train = on_heldout[s.heldout], effects.of_train(s.heldout)[s.train]
    effect = float(each.mean())
    error = float(np.sqrt(each.var(ddof=1) / m + n * of_train.var(ddof=1)))
    z = effect / error if error > 0 else float(np.copysign(np.inf, effect)) if effect else 0.0
    freedom = min(n, m) - 1
    margin = float(t.ppf(0.975, freedom)) * error
    elsewhere = on_heldout[~s.heldout]
    return {
        "column": s.column,
        "value": s.value,
        "n_train": n,
        "n_heldout": m,
        "effect": effect,
        "effect_lower": effect - margin,
        "effect_upper": effect + margin,
        "z": z,
        "p": float(t.cdf(z, freedom)),
        "share": n / len(s.train),
        "effect_elsewhere": float(elsewhere.mean()) if len(elsewhere) else float("nan"),
        "reason": _reason(s, effect, margin) + ("" if labels is None else _balance(s, *labels)),
    }


def _reason(s: Slice, effect: float, margin: float) -> str:
    what = "raise" if effect < 0 else "lower"
    size, low, high = abs(effect), abs(effect) - margin, abs(effect) + margin
    return (
        f"The {s.train.sum()} training rows with {s.column} {_relation(s.value)} ({s.train.mean():.1%} of training) {what} "
        f"the mean loss on the {s.heldout.sum()} such held-out rows by {size:.3g} ({low:.3g} to {high:.3g})."
    )


def _relation(value: str) -> str:
    return value if value[:1] in "≤>(" else f"= {value}"


def _balance(s: Slice, train: Array, heldout: Array) -> str:
    """How the labels of the slice differ between training and held-out rows."""
    mine, theirs = np.asarray(train)[s.train], np.asarray(heldout)[s.heldout]
    if mine.dtype.kind == "f":
        return f" Their mean label is {mine.mean():.4g}, that of the held-out rows {theirs.mean():.4g}."
    classes = np.unique(np.concatenate([mine, theirs]))
    shares = np.array([[(mine == c).mean(), (theirs == c).mean()] for c in classes])
    widest = int(np.argmax(np.abs(shares[:, 0] - shares[:, 1])))
    a, b = shares[widest]
    return f" {a:.0%} of them are labelled {classes[widest]}, of the held-out rows {b:.0%}."
