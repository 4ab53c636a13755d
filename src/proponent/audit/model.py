"""The model that an audit looks at: the user's own, or a regularised linear one whose answers are exact."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import clone, is_classifier
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline

from proponent.audit.prepare import Data
from proponent.convex.sklearn_models import OBJECTIVES
from proponent.errors import InputError, ProponentError, did_you_mean

Array = np.ndarray[Any, np.dtype[Any]]

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
WEAKER = 0.1  # the penalty beside the chosen one that refits of the self-check may take
CHOOSE_ROWS = 5_000
MOST_PARAMETERS = 4_500


@dataclass(frozen=True)
class Chosen:
    """The model under audit, over matrices or over the table's own columns.

    Args:
        estimator: unfitted; takes `train` inputs.
        train, heldout: what it is fitted on and measured on.
        exact: whether it ends in a linear model with exact leave-one-out.
        words: what it is, in words.
        quick: the same model, its optimiser stopped where accuracies no longer change; for many refits.
        weaker: the same with a tenth of the penalty, which cleaner labels may want; None for the user's own model.
    """

    estimator: Any
    train: Any
    heldout: Any
    exact: bool
    words: str
    quick: Any
    weaker: Any = None


def choose_model(path: str | None, data: Data, strength: float | None) -> Chosen:
    """The user's model from "file.py:name", or the default at a given regularisation strength."""
    if path is not None:
        model = load_model(path)
        final = model[-1] if isinstance(model, Pipeline) else model
        exact = type(final) in OBJECTIVES
        if (data.task == "classification") != is_classifier(model):
            kind = "classifier" if is_classifier(model) else "regressor"
            raise InputError(
                f"a {kind} for a {data.task}", f"a model for {data.task}", "pass another --model, or set --task"
            )
        return Chosen(
            model,
            data.train.table.inputs,
            data.heldout.table.inputs,
            exact,
            f"{type(final).__name__} from {Path(path).name}",
            model,
        )
    assert strength is not None
    estimator, words = default_model(data, strength)
    quick, _ = default_model(data, strength, tolerance=1e-4)
    weaker, _ = default_model(data, strength / WEAKER, tolerance=1e-4)
    return Chosen(estimator, data.train.matrix, data.heldout.matrix, True, words, quick, weaker)


def default_model(data: Data, strength: float, tolerance: float = 1e-6) -> tuple[Any, str]:
    """Logistic regression or ridge on the encoded features, these reduced where classes × features are too many."""
    features = data.train.matrix.shape[1]
    if data.task == "regression":
        return Ridge(alpha=1.0 / strength), f"ridge regression (alpha = {1.0 / strength:g}) on {features:,} features"
    classes = len(data.train.table.classes)
    outputs = 1 if classes == 2 else classes
    small = outputs == 1 and features <= min(1000, len(data.train)) and not sparse.issparse(data.train.matrix)
    solver = "newton-cholesky" if small else "lbfgs"  # the former reaches the optimum itself, in a few steps
    linear = LogisticRegression(C=strength, max_iter=2000, tol=tolerance, solver=solver)
    words = f"logistic regression (C = {strength:g}) on {features:,} features"
    if outputs * features <= MOST_PARAMETERS:
        return linear, words
    kept = max(20, MOST_PARAMETERS // outputs)
    return make_pipeline(TruncatedSVD(kept, random_state=0), linear), f"{words}, reduced to {kept} by a truncated SVD"


def choose_strength(data: Data, seed: int) -> float:
    """The regularisation with the best 3-fold score, on at most 5,000 rows."""
    rng = np.random.default_rng([seed, 2])
    rows = np.sort(rng.permutation(len(data.train))[:CHOOSE_ROWS])
    X, y = data.train.matrix[rows], data.train.labels[rows]
    scoring = "neg_log_loss" if data.task == "classification" else "neg_mean_squared_error"
    if data.task == "classification":
        counts = dict(zip(*np.unique(y, return_counts=True), strict=True))
        common = np.array([counts[label] >= 3 for label in y])
        X, y = X[common], y[common]
    scores = []
    for strength in STRENGTHS:
        estimator, _ = default_model(data, strength, tolerance=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            scores.append(cross_val_score(estimator, X, y, cv=3, scoring=scoring).mean())
    return STRENGTHS[int(np.argmax(scores))]


def load_model(path: str) -> Any:
    """The estimator `name` in the Python file `path.py`, given as "path.py:name".

    This runs the file: pass only a file that you would run yourself.

    Raises:
        InputError: no such file or name, or not a scikit-learn estimator.
    """
    file, _, name = path.partition(":")
    if not name:
        raise InputError(
            f"--model {path!r}", "path.py:name", "name the estimator inside the file, e.g. model.py:pipeline"
        )
    if not Path(file).is_file():
        raise InputError(f"no file {file!r}", "a Python file that defines an estimator", "check the path")
    spec = importlib.util.spec_from_file_location("proponent_user_model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        got = f"{type(error).__name__} ({error}) when {file} is run"
        raise InputError(got, "a Python file that runs", f"make `python {file}` run") from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(f"no {name!r} in {file}", "the name of an estimator", did_you_mean(name, public))
    model = getattr(module, name)
    if isinstance(model, type) or not hasattr(model, "fit") or not hasattr(model, "get_params"):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise InputError(f"{name} = {kind}", "a scikit-learn estimator", "define an unfitted estimator or pipeline")
    return clone(model)


@contextmanager
def told_in_words(estimator: Any) -> Iterator[None]:
    """What a model cannot be fitted to, told without a traceback."""
    try:
        yield
    except ProponentError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{type(error).__name__} ({str(error).splitlines()[0]}) when the {type(estimator).__name__} is fitted",
            "a model that takes the table's columns, texts and missing values among them",
            "put what encodes them (a ColumnTransformer) before it in a Pipeline",
        ) from error


def fit_quietly(estimator: Any, X: Any, y: Array) -> Any:
    """A fitted clone; that an optimiser stops short of its tolerance does not matter to accuracies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with told_in_words(estimator):
            return clone(estimator).fit(X, y)


def measure(model: Any, X: Any, y: Array, task: str) -> dict[str, float]:
    """Accuracy and log loss, or R² and mean absolute error, on held-out rows."""
    if task == "regression":
        predicted = np.asarray(model.predict(X), dtype=np.float64)
        rest = float(((y - predicted) ** 2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-300))
        return {"R²": 1.0 - rest, "mean absolute error": float(np.abs(y - predicted).mean())}
    found = {"accuracy": float(np.mean(model.predict(X) == y))}
    if hasattr(model, "predict_proba"):
        p = np.clip(model.predict_proba(X)[np.arange(len(y)), np.searchsorted(model.classes_, y)], 1e-15, 1.0)
        found["log loss"] = float(-np.log(p).mean())
    return found
