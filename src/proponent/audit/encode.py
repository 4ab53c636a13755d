"""From typed columns to a feature matrix for a linear model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from proponent.audit.read import Table
from proponent.audit.transforms import (
    SignedLog,
    date_names,
    date_parts,
    heavy_tailed,
    is_missing,
    text_count_names,
    text_counts,
    unit_scale,
)
from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

COMPONENTS = 100  # principal components kept of an image
WORDS = r"(?u)\b\w+\b|[£$€!?]"  # single characters and marks of money and excitement say much in short texts


@dataclass(frozen=True)
class Encoded:
    """A feature matrix and how it came about.

    Args:
        matrix: (n, d) float64 without NaN, dense, or CSR where d > 300 and at most 30 % of it is non-zero.
        names: (d,) what each feature is.
        encoder: the fitted ColumnTransformer.
        used_as: column of the table → how it was used, in words.
    """

    matrix: Any
    names: tuple[str, ...]
    encoder: ColumnTransformer
    used_as: dict[str, str]


def encoder(table: Table, *, max_categories: int = 50, max_terms: int = 4000) -> ColumnTransformer:
    """What turns a table's `inputs` into features: an unfitted scikit-learn object without randomness.

    Numbers: median where missing (and an indicator), SignedLog where heavy-tailed, mean 0 and deviation 1.
    Categories: a column per level, rare and unseen levels together, missing as a level of its own.
    Dates: time, year, and month and weekday on circles. Texts: TF-IDF of words and pairs of words, and four counts.
    Images: principal components. Identifiers are not used.

    Args:
        table: what `read_table` gave.
        max_categories: columns per category, the rare levels' column among them.
        max_terms: terms per text column.
    """
    if table.pixels is not None:
        parts = min(COMPONENTS, *table.pixels.shape)
        pixels = make_pipeline(FunctionTransformer(unit_scale), PCA(parts, random_state=0))
        return ColumnTransformer([("pixels", pixels, slice(0, table.pixels.shape[1]))])
    of = {kind: [c for c in table.frame.columns if table.kinds[c] == kind] for kind in ("category", "date", "text")}
    numbers, heavy = _numbers(table)
    gaps = [c for c in (*numbers, *heavy, *of["date"]) if table.frame[c].isna().any()]
    levels = OneHotEncoder(
        min_frequency=max(3, len(table) // 1000),
        max_categories=max_categories,
        handle_unknown="infrequent_if_exist",
        feature_name_combiner=_level,
    )
    parts_of_dates = FunctionTransformer(date_parts, feature_names_out=date_names)
    steps: list[tuple[str, Any, Any]] = [
        ("number", make_pipeline(_median(), StandardScaler()), numbers),
        ("heavy", make_pipeline(_median(), SignedLog(), StandardScaler()), heavy),
        ("date", make_pipeline(parts_of_dates, _median(), StandardScaler()), of["date"]),
        ("missing", FunctionTransformer(is_missing), gaps),
        ("category", levels, of["category"]),
    ]
    for j, column in enumerate(of["text"]):
        terms = TfidfVectorizer(
            token_pattern=WORDS,
            ngram_range=(1, 2),
            sublinear_tf=True,
            min_df=2 if len(table) >= 200 else 1,
            max_features=max_terms,
        )
        counts = make_pipeline(FunctionTransformer(text_counts, feature_names_out=text_count_names), StandardScaler())
        steps += [(f"text {j}", terms, column), (f"counts {j}", counts, [column])]
    return ColumnTransformer([s for s in steps if len(s[2])], sparse_threshold=1.0)


def _median() -> SimpleImputer:
    return SimpleImputer(strategy="median", keep_empty_features=True)


def encode(
    table: Table,
    fitted: ColumnTransformer | None = None,
    *,
    features: Array | None = None,
    max_categories: int = 50,
    max_terms: int = 4000,
) -> Encoded:
    """A table's features, by an encoder fitted on it or on another table.

    >>> from tempfile import TemporaryDirectory
    >>> from proponent.audit.read import read_table
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "people.csv")
    ...     _ = file.write_text("age,job,paid\\n31,cook,yes\\n?,cook,no\\n54,cook,no\\n47,nurse,yes\\n52,nurse,yes\\n")
    ...     encoded = encode(read_table(file, label="paid"))
    >>> encoded.names
    ('age', 'age is missing', 'job = cook', 'job = (rare)')
    >>> encoded.matrix[:, 1:].sum(axis=0).tolist()
    [1.0, 3.0, 2.0]

    Args:
        table: what `read_table` or `read_like` gave.
        fitted: the `encoder` of an earlier result, to encode held-out rows alike; fitted here where None.
        features: (n, d) embeddings from `read_features`, used instead of the table's columns.
        max_categories, max_terms: as for `encoder`.

    Raises:
        InputError: no column is usable.
    """
    inputs = table.inputs if features is None else features
    if fitted is not None:
        matrix = fitted.transform(inputs)
    else:
        fitted = encoder(table, max_categories=max_categories, max_terms=max_terms)
        if features is not None:
            fitted = ColumnTransformer([("features", StandardScaler(), slice(0, features.shape[1]))])
        if not fitted.transformers:
            raise InputError("identifiers only", "at least one number, category, date or text", "add feature columns")
        try:
            matrix = fitted.fit_transform(inputs)
        except ValueError as error:  # texts without any letter or digit
            if "vocabulary" not in str(error) and "terms remain" not in str(error):
                raise
            raise InputError(
                "a text column without words in common", "texts that share words", "drop the column"
            ) from error
    matrix = _compact(matrix)
    names = _feature_names(fitted, matrix.shape[1])
    used = (
        _used_as(table, fitted) if features is None else dict.fromkeys(table.kinds, "not used: replaced by embeddings")
    )
    return Encoded(matrix, names, fitted, used)


def read_features(path: str | os.PathLike[str], table: Table) -> Array:
    """Embeddings of a table's rows from an .npy file.

    Args:
        path: an array (rows of the table's file, d), or (n, d) for the n rows of `table`.
        table: what `read_table` or `read_like` gave.

    Raises:
        InputError: the file is absent or holds anything but finite numbers of that shape.
    """
    name = Path(path).name
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"no file {str(path)!r}", "an .npy file of embeddings", "check the path") from None
    except (ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{name}, which holds no plain array ({error})", "numbers", "write it with numpy.save"
        ) from error
    wanted = f"an array of shape ({table.total}, d), one row per row of {table.name}"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise InputError(f"{name} without numbers", wanted, "write a float array with numpy.save")
    if array.ndim != 2 or array.shape[1] == 0 or array.shape[0] not in (table.total, len(table)):
        raise InputError(f"shape {array.shape} in {name}", wanted, "compute one embedding per row, in the file's order")
    array = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        shown = ", ".join(map(str, bad[:5]))
        raise InputError(
            f"{len(bad)} rows of {name} with NaN or infinity: {shown}", "finite numbers", "compute them again"
        )
    return array[table.rows] if len(array) == table.total else array


def _numbers(table: Table) -> tuple[list[str], list[str]]:
    """Numeric columns with light and with heavy tails."""
    heavy: dict[str, bool] = {}
    for column in (c for c in table.frame.columns if table.kinds[c] == "number"):
        values = table.frame[column].dropna().to_numpy()
        heavy[column] = heavy_tailed(values)
    return [c for c, h in heavy.items() if not h], [c for c, h in heavy.items() if h]


def _level(column: str, level: Any) -> str:
    missing = level is None or (isinstance(level, float) and np.isnan(level))
    shown = "(missing)" if missing else "(rare)" if level == "infrequent_sklearn" else level
    return f"{column} = {shown}"


def _compact(matrix: Any) -> Any:
    """Dense float64 where that is small or well filled, CSR otherwise."""
    if sparse.issparse(matrix):
        n, d = matrix.shape
        if d > 300 and matrix.nnz <= 0.3 * n * d:
            return sparse.csr_matrix(matrix, dtype=np.float64)
        matrix = matrix.toarray()
    return np.ascontiguousarray(matrix, dtype=np.float64)


def _feature_names(fitted: ColumnTransformer, width: int) -> tuple[str, ...]:
    """A readable name for each feature."""
    names: list[str] = []
    for step, transformer, columns in fitted.transformers_:
        if step == "pixels":
            names += [f"component {j + 1}" for j in range(width)]
        elif step == "features":
            names += [f"feature {j}" for j in range(width)]
        elif step == "missing":
            names += [f"{c} is missing" for c in columns]
        elif step.startswith("text"):
            names += [f"{columns}: {term!r}" for term in transformer.get_feature_names_out()]
        elif step != "remainder":
            names += transformer.get_feature_names_out(columns).tolist()
    return tuple(names)


def _used_as(table: Table, fitted: ColumnTransformer) -> dict[str, str]:
    """How each column was used, in words."""
    words = {"number": "number, standardised", "heavy": "number, on a logarithmic scale, standardised"}
    words |= {"date": "time, year, month and weekday", "category": ""}
    used = {c: f"not used: {kind}" for c, kind in table.kinds.items()}
    for step, transformer, columns in fitted.transformers_:
        if step == "pixels":
            used["image"] = f"{transformer[-1].n_components_} principal components of the pixels"
        elif step.startswith("text"):
            used[columns] = f"text: {len(transformer.vocabulary_)} words and pairs of words, and 4 counts"
        elif step == "category":
            grouped = [0 if rare is None else len(rare) for rare in transformer.infrequent_categories_]
            for column, levels, rare in zip(columns, transformer.categories_, grouped, strict=True):
                together = f", {rare} of them rare and taken together" if rare else ""
                used[column] = f"category: {len(levels)} levels{together}"
        elif step == "missing":
            used |= {c: f"{used[c]}, with an indicator where missing" for c in columns}
        elif step in words:
            used |= dict.fromkeys(columns, words[step])
    return used
