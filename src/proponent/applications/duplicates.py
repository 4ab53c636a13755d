"""Training rows that occur twice: exactly, nearly, with another label, or among the held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from proponent.applications.near_duplicates import Pairs, near_duplicates, row_keys
from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

COMMON = 0.05  # above this share of rows with a twin, a twin says little
SHOWN = 5  # partners listed per row
TEXT = "\0text"  # the column's name where rows are texts


@dataclass(frozen=True)
class Rows:
    """Rows to look for duplicates in.

    Args:
        content: what a person would compare: DataFrame, list of n texts, array (n, …) or sparse matrix (n, d).
        labels: (n,) or None.
        features: the same rows encoded for the model, array or sparse (n, d); None: no search for near duplicates.
        name: position → how to call that row in a sentence.
    """

    content: Any
    labels: Array | None = None
    features: Any = None
    name: Callable[[int], str] = str

    def __post_init__(self) -> None:
        n = _table(self.content).shape[0]
        for what, column in (("labels", self.labels), ("features", self.features)):
            if column is not None and (m := column.shape[0] if hasattr(column, "shape") else len(column)) != n:
                raise InputError(f"{m} {what} for {n} rows", f"{n} {what}", f"pass one of {what} per row")


@dataclass(frozen=True)
class _Found:
    """A training row and the rows like it, counted through training and on through held-out rows, nearest first."""

    row: int
    cluster: int
    near: bool
    distance: float
    like: Array


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Args:
        table: row (position), kind ("conflict", "duplicate", "near_duplicate"), cluster, distance (0: equal content),
            partners and heldout_partners (positions, at most 5 each), severity (0–1) and reason; worst first.
        twin_rate: share of training rows with an exact twin in training.
        near_rate: share of training rows with a near duplicate, and no exact twin, in training.
        chance_rate: the twin rate to expect if columns were independent (0 for texts); dependence only raises it.
        threshold: distance up to which rows are near duplicates; NaN where none were looked for.
    """

    table: pd.DataFrame
    twin_rate: float
    near_rate: float
    chance_rate: float
    threshold: float


def find_duplicates(
    train: Rows,
    heldout: Rows | None = None,
    *,
    metric: Literal["auto", "euclidean", "cosine"] = "auto",
    label_tolerance: float = 0.0,
    seed: int = 0,
) -> Duplicates:
    """Training rows that repeat another training row, contradict one, or occur among the held-out rows.

    Where more than 5 % of a table's rows have a twin, as with few categories, twins are the norm: the severity is low and
    the reason says so. (Long texts and images do not repeat by chance, so there it stays.)

    >>> train = Rows(["free pills", "hello you", "Free  pills"], np.array(["spam", "ham", "ham"]))
    >>> find_duplicates(train).table[["row", "kind"]].to_numpy().tolist()
    [[0, 'conflict'], [2, 'conflict']]

    Args:
        train: the training rows.
        heldout: the rows that the model is measured on, with the same columns; a training row among them is a leak.
        metric: of the features, see `near_duplicates`.
        label_tolerance: labels differ if they are further apart than this; for numbers only.
        seed: of the search for near duplicates.
    """
    parts = [train] if heldout is None else [train, heldout]
    n = _table(train.content).shape[0]
    exact = exact_duplicates(content_keys(_stacked([_table(p.content) for p in parts])))
    near = Pairs(np.empty(0, dtype=int), np.empty(0, dtype=int), np.empty(0), float("nan"))
    if all(p.features is not None for p in parts):
        near = near_duplicates(_stacked([p.features for p in parts]), metric=metric, seed=seed)
    found = _found(exact, near, n)
    labels = None if any(p.labels is None for p in parts) else np.concatenate([np.asarray(p.labels) for p in parts])
    chance = chance_of_twin(train.content)
    rates = {
        kind: sum(f.near == kind and bool((f.like < n).any()) for f in found) / max(n, 1) for kind in (False, True)
    }
    expected = float(chance.mean()) if n else 0.0
    judged = [_judge(f, n, labels, label_tolerance, float(chance[f.row])) for f in found]
    reasons = [_reason(f, n, labels, label_tolerance, [p.name for p in parts]) for f in found]
    for f, row, reason in zip(found, judged, reasons, strict=True):
        common = rates[f.near] > COMMON and expected > 0
        row["severity"] = round(row["severity"] * (0.2 if common else 1.0), 4)
        row["reason"] = reason + (_common(f.near, rates[f.near], expected) if common else "")
    columns = ["row", "kind", "cluster", "distance", "partners", "heldout_partners", "severity", "reason"]
    table = pd.DataFrame(judged, columns=columns).sort_values(
        ["severity", "row"], ascending=[False, True], ignore_index=True
    )
    return Duplicates(table, rates[False], rates[True], expected, near.threshold)


def content_keys(content: Any) -> Array:
    """A 64-bit key per row, equal for equal rows; case and white space of texts do not count.

    >>> keys = content_keys(["A  cat", "a cat", "a dog"])
    >>> bool(keys[0] == keys[1]), bool(keys[0] == keys[2])
    (True, False)

    Args:
        content: DataFrame, list of texts, array (n, …) or sparse matrix (n, d).
    """
    rows = _table(content)
    if not isinstance(rows, pd.DataFrame):
        return row_keys(rows)
    plain = {f"{at}": _normalised(rows.iloc[:, at]) for at in range(rows.shape[1])}
    return np.asarray(pd.util.hash_pandas_object(pd.DataFrame(plain), index=False))


def exact_duplicates(keys: Array) -> Array:
    """The cluster of every row: rows with equal keys share a number, a row alone has −1.

    >>> exact_duplicates(np.array([7, 5, 7, 9, 5])).tolist()
    [1, 0, 1, -1, 0]
    """
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray(np.where(counts > 1, np.cumsum(counts > 1) - 1, -1)[inverse])


def chance_of_twin(content: Any) -> Array:
    """How likely each row is to have a twin by chance, were the columns independent.

    P(twin of i) = 1 − (1 − Π_c share of i's value in column c)^(n−1); zero for texts, images and sparse rows.

    >>> coins = pd.DataFrame({"a": [0, 1] * 50, "b": [0, 0, 1, 1] * 25})
    >>> bool(chance_of_twin(coins).min() > 0.99)
    True
    """
    rows = _table(content)
    n = rows.shape[0]
    if sparse.issparse(rows) or len(rows.shape) != 2 or (isinstance(rows, pd.DataFrame) and rows.columns[0] == TEXT):
        return np.zeros(n)
    log_share = np.zeros(n)
    for _, column in pd.DataFrame(rows).items():
        codes = pd.factorize(column, use_na_sentinel=False)[0]
        log_share += np.log(np.bincount(codes)[codes] / n)
    return np.asarray(-np.expm1((n - 1) * np.log1p(-np.minimum(np.exp(log_share), 1 - 1e-12))))


def _table(content: Any) -> Any:
    """A DataFrame for texts and mixed values, else the array or sparse matrix itself."""
    if isinstance(content, pd.DataFrame) or sparse.issparse(content):
        return content
    array = np.asarray(content)
    if array.dtype.kind not in "OUT":
        return array
    return pd.DataFrame({TEXT: array} if array.ndim == 1 else array)


def _normalised(column: pd.Series[Any]) -> pd.Series[Any]:
    if column.dtype.kind in "biufcmM":
        return column
    return column.astype(object).map(lambda v: " ".join(v.casefold().split()) if isinstance(v, str) else v)


def _stacked(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], pd.DataFrame):
        return pd.concat(parts, ignore_index=True)
    return sparse.vstack(parts, format="csr") if sparse.issparse(parts[0]) else np.concatenate(parts)


def _found(exact: Array, near: Pairs, n: int) -> list[_Found]:
    """Training rows (the first n) that have a twin or, failing that, a near duplicate anywhere."""
    apart = (exact[near.first] < 0) | (exact[near.first] != exact[near.second])
    i, j, d = near.first[apart], near.second[apart], near.distance[apart]
    i, j, d = np.r_[i, j], np.r_[j, i], np.r_[d, d]
    order = np.lexsort((d, i))
    i, j, d = i[order], j[order], d[order]
    members = np.flatnonzero(exact >= 0)
    members = members[np.argsort(exact[members], kind="stable")]
    bounds = np.r_[0, np.cumsum(np.bincount(exact[members]))].astype(int)
    heads = members[bounds[:-1]][exact[members]] if len(members) else members
    edges = sparse.coo_array(
        (np.ones(len(i) + len(members)), (np.r_[i, heads], np.r_[j, members])), shape=(len(exact),) * 2
    )
    cluster = connected_components(edges, directed=False)[1]
    found = []
    for row in np.union1d(i[i < n], members[members < n]).tolist():
        if exact[row] >= 0:
            like = members[bounds[exact[row]] : bounds[exact[row] + 1]]
            found.append(_Found(row, int(cluster[row]), False, 0.0, like[like != row]))
        else:
            span = slice(*np.searchsorted(i, [row, row + 1]))
            found.append(_Found(row, int(cluster[row]), True, float(d[span][0]), j[span]))
    return found


def _others(found: _Found, labels: Array | None, tolerance: float) -> Array:
    """Which of the rows like it have another label."""
    if labels is None:
        return np.zeros(len(found.like), dtype=bool)
    own, theirs = labels[found.row], labels[found.like]
    return np.asarray(np.abs(theirs - own) > tolerance if tolerance else theirs != own)


def _judge(found: _Found, n: int, labels: Array | None, tolerance: float, chance: float) -> dict[str, Any]:
    """A contradiction weighs by the share of other labels, a leak twice as much as a repeat, chance twins little."""
    others = int(_others(found, labels, tolerance).sum())
    leak = bool((found.like >= n).any())
    severity = (0.3 if found.near else 0.4) * (1 + leak)
    if others:
        severity = max(severity if leak else 0.0, (others + 1) / (len(found.like) + 2) * (0.8 if found.near else 1.0))
    kind = "conflict" if others else "near_duplicate" if found.near else "duplicate"
    return {
        "row": found.row,
        "kind": kind,
        "cluster": found.cluster,
        "distance": found.distance,
        "partners": tuple(found.like[found.like < n][:SHOWN].tolist()),
        "heldout_partners": tuple((found.like[found.like >= n] - n)[:SHOWN].tolist()),
        "severity": severity * (1.0 if found.near else 1 - chance),
    }


def _reason(
    found: _Found, n: int, labels: Array | None, tolerance: float, names: Sequence[Callable[[int], str]]
) -> str:
    train, heldout = found.like[found.like < n], found.like[found.like >= n] - n
    groups = (("training row", train, names[0]), ("held-out row", heldout, names[-1]))
    who = [f"{what} {_listed(rows, name)}" for what, rows, name in groups if len(rows)]
    text = f"{'Nearly the' if found.near else 'The'} same content as {' and '.join(who)}"
    others = _others(found, labels, tolerance)
    if labels is not None and others.any():
        theirs = ", ".join(sorted({str(v) for v in labels[found.like[others]]})[:3])
        text += f", with another label: {labels[found.row]} here, {theirs} there ({others.sum()} of {len(others)})"
    elif labels is not None:
        text += ", with the same label"
    if len(heldout):
        text += "; what is measured on the held-out rows is flattered by rows that were trained on"
    return text + "."


def _listed(rows: Array, name: Callable[[int], str]) -> str:
    return name(int(rows[0])) + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")


def _common(near: bool, rate: float, expected: float) -> str:
    what = "a near duplicate" if near else "an exact twin"
    chance = "" if near or expected < 0.005 else f"; {expected:.0%} would have one by chance alone"
    return f" Such repeats are common in this data ({rate:.0%} of rows have {what}{chance}), so this one says little."
