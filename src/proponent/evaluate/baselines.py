"""What every method should beat: chance, the model's own loss and confidence, and likeness between examples."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from proponent.attribution import Attribution, Values
from proponent.errors import InputError
from proponent.evaluate.bm25 import scores as bm25_scores
from proponent.examples import Examples
from proponent.retrain.recipe import as_recipe

Array = np.ndarray[Any, np.dtype[Any]]


def random(train: Any, query: Any, *, seed: int = 0) -> Attribution:
    """Scores drawn from a normal distribution.

    >>> random(([[0.0], [1.0]], [0, 1]), ([[0.5]], [1])).shape
    (1, 2)

    Args:
        train, query: anything that `Examples.of` takes.
        seed: of the draws.
    """
    start, train, query = time.perf_counter(), Examples.of(train), Examples.of(query)
    score = np.random.default_rng(seed).normal(size=(len(query), len(train)))
    facts = {"settings": {"seed": seed}, "seconds": time.perf_counter() - start}
    return Attribution.of(score, query=query, train=train, method="random", unit="random number", attributes=facts)


def loss(recipe: Any, train: Any, *, model: Any = None, seed: int = 0) -> Values:
    """What the model measures of the examples that it was trained on: with the default measurement, minus the loss of each.

    >>> from sklearn.linear_model import Ridge
    >>> loss(Ridge(1e-6), ([[0.0], [1.0], [2.0], [3.0]], [0.0, 1.0, 9.0, 3.0])).lowest(1)["id"].tolist()
    [2]

    Args:
        recipe: a recipe, or a scikit-learn estimator.
        train: the training examples, with labels.
        model: fitted by the recipe already; fitted here otherwise.
        seed: of the fit.
    """
    return _measured(as_recipe(recipe), train, model, seed, "training loss", "measurement of the example itself")


def confidence(recipe: Any, train: Any, *, model: Any = None, seed: int = 0) -> Values:
    """How sure the model is of what it predicts for each training example, whatever its label: its measurement "prediction".

    >>> from sklearn.linear_model import LogisticRegression
    >>> data = ([[0.0], [1.0], [2.5], [4.0], [5.0]], [0, 0, 0, 1, 1])
    >>> confidence(LogisticRegression(), data).lowest(1)["id"].tolist()
    [2]

    Args: see `loss`; the recipe is one that can measure "prediction", of a classifier.

    Raises:
        InputError: the recipe cannot measure a prediction.
    """
    recipe = as_recipe(recipe)
    if not hasattr(recipe, "measurement") or callable(recipe.measurement):
        raise InputError(
            f"a {type(recipe).__name__} that cannot measure a prediction",
            'a recipe with measurement="prediction"',
            "use baselines.loss, with a recipe that measures the probability",
        )
    predicting = replace(recipe, measurement="prediction")
    return _measured(predicting, train, model, seed, "confidence", "measurement of the predicted class")


def embedding_similarity(train: Any, query: Any, *, same_label: bool = False) -> Attribution:
    """The cosine between each query's vector and each training example's.

    >>> embedding_similarity(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 0.0]])).dataset.score.values.round(3)
    array([[1.   , 0.707]])

    Args:
        train, query: vectors, or anything that `Examples.of` takes with vectors as inputs: a representation that the model
            makes of the examples, or their features.
        same_label: examples with another label than the query get 0.

    Raises:
        InputError: vectors of different lengths, or labels missing where they are asked for.
    """
    start, train, query = time.perf_counter(), Examples.of(train), Examples.of(query)
    rows, columns = _unit(query.inputs), _unit(train.inputs)
    if rows.shape[1] != columns.shape[1]:
        raise InputError(
            f"query vectors of {rows.shape[1]} numbers", f"{columns.shape[1]}, as in training", "embed both alike"
        )
    product = rows @ columns.T
    score = np.asarray(product.toarray() if sparse.issparse(product) else product, dtype=np.float64)
    if same_label:
        if train.labels is None or query.labels is None:
            raise InputError("examples without labels", "labels of both sides", "pass (vectors, labels)")
        score = np.where(query.labels[:, None] == train.labels[None], score, 0.0)
    facts = {"settings": {"same_label": same_label}, "seconds": time.perf_counter() - start}
    return Attribution.of(
        score, query=query, train=train, method="embedding similarity", unit="cosine similarity", attributes=facts
    )


def bm25(train: Any, query: Any, *, k1: float = 1.2, b: float = 0.75) -> Attribution:
    """How well each training text answers the query's words.

    score[q, i] = Σ_{words t of q} idf_t f_it (k1 + 1) / (f_it + k1 (1 − b + b length_i / mean length)),
    idf_t = log(1 + (n − n_t + ½) / (n_t + ½)), f_it the times that word t is in text i, n_t the texts that have it

    >>> texts = ["a red fox", "the dog sleeps", "a fox and a dog and a fox"]
    >>> bm25(texts, ["fox"]).proponents(0)["id"].tolist()
    [0, 2]

    Args:
        train, query: lists of texts, or anything that `Examples.of` takes with texts as inputs.
        k1: how soon more of the same word stops to count.
        b: how much long texts are marked down, from 0 to 1.

    Source: Robertson & Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009.
    """
    start, train, query = time.perf_counter(), Examples.of(train), Examples.of(query)
    score = bm25_scores(_texts(train), _texts(query), k1, b)
    facts = {"settings": {"k1": k1, "b": b}, "seconds": time.perf_counter() - start}
    return Attribution.of(score, query=query, train=train, method="BM25", unit="BM25 score", attributes=facts)


def _measured(recipe: Any, train: Any, model: Any, seed: int, method: str, unit: str) -> Values:
    start, train = time.perf_counter(), Examples.of(train)
    model = recipe.fit(train, seed) if model is None else model
    measured = np.asarray(recipe.measure(model, train), dtype=np.float64)
    facts = {"settings": {"seed": seed}, "seconds": time.perf_counter() - start}
    return Values.of(measured, train=train, method=method, unit=unit, attributes=facts)


def _unit(vectors: Any) -> Any:
    """Rows of length 1; a row of zeros stays one."""
    matrix: Any = sparse.csr_array(vectors) if sparse.issparse(vectors) else np.asarray(vectors, dtype=np.float64)
    if sparse.issparse(matrix):
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        return sparse.diags_array(1 / np.where(length > 0, length, 1)) @ matrix
    matrix = matrix.reshape(len(matrix), -1)
    length = np.sqrt(np.einsum("ij,ij->i", matrix, matrix))
    return matrix / np.where(length > 0, length, 1)[:, None]


def _texts(examples: Examples) -> list[str]:
    texts = list(examples.inputs)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"inputs such as {texts[0]!r}", "texts", "pass a list of strings")
    return texts
