"""Columns of numbers, dates, texts and pixels on scales that suit a linear model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin

Array = np.ndarray[Any, np.dtype[Any]]

DATE_PARTS = ("time", "year", "month sin", "month cos", "weekday sin", "weekday cos")
TEXT_COUNTS = ("characters", "words", "digits", "capitals")


class SignedLog(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Heavy-tailed numbers on a logarithmic scale, through 0 and with their sign.

    x → sign(x) log(1 + |x| / s),  s = median of |x| over x ≠ 0, so that the result does not depend on the unit of x.

    >>> SignedLog().fit_transform(np.array([[0.0], [-10.0], [10.0], [1e6]])).round(2).ravel().tolist()
    [0.0, -0.69, 0.69, 11.51]
    """

    def fit(self, X: Any, y: Any = None) -> SignedLog:
        """The typical size of each column."""
        size = np.abs(np.asarray(X, dtype=np.float64))
        typical = [np.median(c[c > 0]) if (c > 0).any() else 1.0 for c in size.T]
        self.scale_ = np.maximum(typical, np.finfo(np.float64).tiny)
        self.n_features_in_ = size.shape[1]
        return self

    def transform(self, X: Any) -> Array:
        """The columns on that scale."""
        values = np.asarray(X, dtype=np.float64)
        with np.errstate(over="ignore"):
            ratio = np.minimum(np.abs(values) / self.scale_, np.finfo(np.float64).max)
        return np.sign(values) * np.log1p(ratio)

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """The columns' own names."""
        return np.asarray(input_features, dtype=object)


def heavy_tailed(values: Array) -> bool:
    """Skewness beyond 2 in a column of more than two values whose largest is far above the typical one."""
    size = np.abs(values)
    size = size / max(size.max(initial=0.0), np.finfo(np.float64).tiny)
    present = size[size > 0]
    if len(present) < 5 or len(np.unique(present[:1000])) < 3:
        return False
    centred = np.sign(values) * size
    centred = centred - centred.mean()
    skewness = abs((centred**3).mean()) / max((centred**2).mean() ** 1.5, np.finfo(np.float64).tiny)
    return bool(skewness > 2 or np.median(present) < 0.001)


def is_missing(frame: pd.DataFrame) -> Array:
    """1 where missing, else 0."""
    return frame.isna().to_numpy(dtype=np.float64)


def unit_scale(pixels: Any) -> Array:
    """Bytes as fractions of 255."""
    return np.asarray(pixels, dtype=np.float64) / 255


def date_parts(frame: pd.DataFrame) -> Array:
    """Six features per date column: time and year, month and weekday on circles."""
    parts = []
    for column in frame.columns:
        date = frame[column].dt
        months, days = 2 * np.pi * (date.month - 1) / 12, 2 * np.pi * date.day_of_week / 7
        years = (frame[column] - pd.Timestamp(2000, 1, 1)) / pd.Timedelta(days=365.2425)
        parts += [years, date.year, np.sin(months), np.cos(months), np.sin(days), np.cos(days)]
    return np.column_stack([np.asarray(p, dtype=np.float64) for p in parts])


def date_names(_: Any, columns: Any) -> list[str]:
    """Their names."""
    return [f"{column}: {part}" for column in columns for part in DATE_PARTS]


def text_counts(frame: pd.DataFrame) -> Array:
    """log(1 + count) of characters, words, digits and capitals."""
    text = frame.iloc[:, 0].astype(object).str
    counts = (text.len(), text.count(r"\S+"), text.count(r"\d"), text.count(r"[A-Z]"))
    return np.log1p(np.column_stack([np.asarray(c, dtype=np.float64) for c in counts]))


def text_count_names(_: Any, columns: Any) -> list[str]:
    """Their names."""
    return [f"{columns[0]}: {count}" for count in TEXT_COUNTS]
