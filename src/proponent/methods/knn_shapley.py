"""KNN-Shapley: exact Shapley values of training examples for a nearest-neighbour model, in O(n log n) a query."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from proponent.attribution import Attribution, Values
from proponent.errors import InputError, ProponentWarning
from proponent.examples import Examples
from proponent.methods.knn_games import Utility, shapley_by_distance
from proponent.retrain.maps import tmap

Array = np.ndarray[Any, np.dtype[Any]]
Metric = Literal["euclidean", "cosine"]

UNIT = "Shapley value of the KNN utility"
BLOCK_BYTES = 2**19  # a block of distances that stays in a core's cache through sorting and summing


@dataclass(frozen=True)
class KNNShapley:
    """What each training example is worth to a K-nearest-neighbour model of the query, as exact Shapley values.

    score[q, i] = Σ_{S ∌ i} |S|!(n−1−|S|)!/n! · (U_q(S ∪ i) − U_q(S)), where U_q(S) looks at the min(K, |S|) examples
    of S nearest to q, so that Σ_i score[q, i] = U_q(all) − U_q(∅). With m_j = 1 where the j-th nearest has the query's
    label, or y_j its number and t the query's:

        "soft"           U(S) = Σ_{j≤min(K,|S|)} m_j / min(K,|S|),  U(∅) = 1/classes
        "fixed"          U(S) = Σ_{j≤min(K,|S|)} m_j / K,           U(∅) = 0
        "squared_error"  U(S) = −(Σ_{j≤min(K,|S|)} y_j / K − t)²,   U(∅) = −t²

    >>> train = ([[0.0], [1.0], [10.0]], ["cat", "dog", "dog"])
    >>> scores = KNNShapley(k=1, utility="fixed").fit(train).score(([[0.2]], ["dog"]))
    >>> scores.dataset.score.values.round(3).tolist()
    [[-0.667, 0.333, 0.333]]

    Equal distances stand in training order; those of double precision that differ by
    less than about n/2⁵² of themselves count as equal.
    Distances are taken between features as they are: scale them, or pass embeddings.

    Args:
        k: neighbours K ≥ 1; may exceed the number of training examples.
        utility: "auto" takes "soft", or "squared_error" where the training labels are floating-point numbers.
        metric: "euclidean" or "cosine" (a zero row has cosine 0 with every other).
        precision: of the distances. "auto" takes float32 for features of float32, float16, bool or at most 16-bit
            integers, float64 otherwise. The sums are float64 always.
        memory: bytes for the distances of one chunk of queries; at least one block of queries is held.
        workers: threads; None takes the CPUs that this process may use. The result does not depend on it.

    Raises:
        InputError: labels are missing, features are not finite numbers, or queries have other features.

    Source: Jia et al., Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms, VLDB 2019; Wang & Jia, A
    Note on "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms", 2023 ("soft").
    """

    k: int = 5
    utility: Utility | Literal["auto"] = "auto"
    metric: Metric = "euclidean"
    precision: Literal["auto", "float32", "float64"] = "auto"
    memory: int = 2**28
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k={self.k}", "at least one neighbour", "pass k ≥ 1")
        choices = {
            "utility": ("auto", "soft", "fixed", "squared_error"),
            "metric": ("euclidean", "cosine"),
            "precision": ("auto", "float32", "float64"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r}", f"one of {known}", f"choose a known {name}")

    def fit(self, train: Any) -> FittedKNNShapley:
        """Hold the training examples ready for queries.

        Args:
            train: anything that `Examples.of` takes, with labels; inputs are numbers, dense or sparse.
        """
        train = Examples.of(train)
        if train.weights is not None:
            warnings.warn(
                "KNN-Shapley takes no sample weights; all examples count alike", ProponentWarning, stacklevel=2
            )
        labels = _labels(train, "training examples")
        utility = self.utility
        if utility == "auto":
            utility = "squared_error" if labels.dtype.kind == "f" else "soft"
        inputs = _matrix(train, "training examples", keep_sparse=True)
        small = np.result_type(inputs.dtype, np.float32) == np.float32
        dtype = np.dtype(("float32" if small else "float64") if self.precision == "auto" else self.precision)
        origin = _origin(inputs, self.metric, dtype)
        rows = _Rows.of(inputs, origin, self.metric, dtype, train)
        classes = None if utility == "squared_error" else pd.Index(labels).unique()
        return FittedKNNShapley(self, train, utility, rows, origin, classes, _targets(labels, classes))


@dataclass(frozen=True, eq=False)
class FittedKNNShapley:
    """KNN-Shapley, ready for queries; made by `KNNShapley.fit`."""

    spec: KNNShapley
    train: Examples
    utility: Utility
    rows: _Rows
    origin: Array | None
    classes: pd.Index[Any] | None
    targets: Array

    def score(self, query: Any) -> Attribution:
        """The Shapley value of every training example in every query's game, (query, train).

        Args:
            query: anything that `Examples.of` takes, with labels; a label that training lacks matches no example.
        """
        start, query = time.perf_counter(), Examples.of(query)
        score = np.empty((len(query), len(self.train)))
        for at, order, shapley in self._blocks(query):
            np.put_along_axis(score[at], order, shapley, axis=1)
        facts = {"settings": self._settings(), "seconds": time.perf_counter() - start}
        return Attribution.of(score, query=query, train=self.train, method="KNNShapley", unit=UNIT, attributes=facts)

    def values(self, query: Any) -> Values:
        """The mean over the queries of each training example's Shapley value; the (query, train) matrix is never held.

        `stderr` is the standard error of that mean, the queries taken as independent draws; NaN for one query.

        Args:
            query: anything that `Examples.of` takes, with labels.
        """
        start, query, n = time.perf_counter(), Examples.of(query), len(self.train)
        total, squares = np.zeros(n), np.zeros(n)
        for _, order, shapley in self._blocks(query):
            total += np.bincount(order.ravel(), shapley.ravel(), n)
            squares += np.bincount(order.ravel(), np.square(shapley, out=shapley).ravel(), n)
        q = len(query)
        variance = np.maximum(squares - total**2 / q, 0) / max(q - 1, 1)
        stderr = np.sqrt(variance / q) if q > 1 else np.full(n, np.nan)
        facts = {"settings": self._settings(), "queries": q, "seconds": time.perf_counter() - start}
        return Values.of(
            total / q,
            train=self.train,
            method="KNNShapley, mean over queries",
            unit=UNIT,
            variables={"stderr": stderr},
            attributes=facts,
        )

    def _settings(self) -> dict[str, Any]:
        return asdict(self.spec) | {"utility": self.utility, "precision": str(self.rows.half_norms.dtype)}

    def _blocks(self, query: Examples) -> Iterator[tuple[slice, Array, Array]]:
        """Blocks of queries in order: where they stand, training rows from near to far, their Shapley values."""
        if len(query) == 0:
            raise InputError("no queries", "at least one", "pass the held-out examples to value for")
        targets = _targets(_labels(query, "queries"), self.classes)
        dtype = self.rows.half_norms.dtype
        inputs = _matrix(query, "queries", keep_sparse=sparse.issparse(self.rows.matrix))
        if inputs.shape[1] != self.rows.matrix.shape[1]:
            there = self.rows.matrix.shape[1]
            raise InputError(f"{inputs.shape[1]} features", f"{there}, as in training", "pass the same features")
        rows = _Rows.of(inputs, self.origin, self.spec.metric, dtype, query)
        block = max(1, BLOCK_BYTES // (8 * len(self.train)))
        chunk = block * max(1, self.spec.memory // (block * len(self.train) * dtype.itemsize))
        for start in range(0, len(query), chunk):
            distance = self.rows.products(rows, slice(start, start + chunk))

            def solve(low: int, distance: Array = distance, start: int = start) -> tuple[slice, Array, Array]:
                at = slice(start + low, min(start + low + block, len(query)))
                part = distance[low : low + block]
                order = self.rows.order(part, rows.half_norms[at])
                return at, order, self._solve(order, targets[at])

            yield from tmap(solve, range(0, len(distance), block), self.spec.workers)

    def _solve(self, order: Array, target: Array) -> Array:
        near_to_far = self.targets.take(order)
        if self.classes is None:
            return shapley_by_distance(near_to_far, self.spec.k, self.utility, target=target)
        matches = near_to_far == target[:, None]
        return shapley_by_distance(matches, self.spec.k, self.utility, classes=len(self.classes))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows whose products give distances: d(q, x) = h_q + h_x − q·x, half the squared distance or 1 − cosine."""

    matrix: Any
    half_norms: Array

    @classmethod
    def of(cls, inputs: Any, origin: Array | None, metric: Metric, dtype: np.dtype[Any], named: Examples) -> _Rows:
        matrix = inputs.astype(dtype)
        if origin is not None:
            matrix -= origin
        squares = _squared_norms(matrix)
        if not np.isfinite(squares).all():
            bad = named.ids[~np.isfinite(squares)][:5].tolist()
            raise InputError(
                f"missing or infinite features in {bad}", "finite numbers", "fill them in, or drop the rows"
            )
        if metric == "euclidean":
            return cls(matrix, squares / 2)
        scale = 1 / np.sqrt(np.where(squares > 0, squares, 1))
        unit = sparse.diags_array(scale) @ matrix if sparse.issparse(matrix) else matrix * scale[:, None]
        return cls(unit, np.full(len(squares), 0.5, dtype))

    def products(self, query: _Rows, at: slice) -> Array:
        """q·x for a chunk of queries, (chunk, n)."""
        products = query.matrix[at] @ self.matrix.T
        return np.asarray(products.toarray() if sparse.issparse(products) else products)

    def order(self, products: Array, half_norms: Array) -> Array:
        """Training rows from near to far, (queries, n); overwrites the products.

        Bits of non-negative numbers sort as integers. Single precision: a radix sort by the lower and then the upper 16
        bits, which numpy does in linear time. Double precision: the row number replaces the last log₂ n bits of its
        distance, so that one plain sort, several times faster than an argsort, gives a stable order.
        """
        distance = np.subtract(self.half_norms, products, out=products)
        distance += half_norms[:, None]
        np.maximum(distance, 0, out=distance)
        if distance.dtype == np.float32:
            return _radix_order(np.abs(distance, out=distance))  # abs: a negative zero has its highest bit set
        n = distance.shape[1]
        keys = distance.astype(np.float64).view(np.int64)
        low = np.int64((1 << (n - 1).bit_length()) - 1)
        keys &= ~low
        keys |= np.arange(n)
        keys.sort(axis=1)
        keys &= low
        return keys


def _radix_order(distance: Array) -> Array:
    """A stable argsort of each row of non-negative float32 numbers."""
    q, n = distance.shape
    halves = np.ascontiguousarray(distance, dtype="<f4").view("<u2").reshape(q, n, 2)
    first_in_row = (np.arange(q) * n)[:, None]
    by_low = np.argsort(halves[:, :, 0], axis=1, kind="stable") + first_in_row
    high = np.ascontiguousarray(halves[:, :, 1]).ravel().take(by_low)
    by_high = np.argsort(high, axis=1, kind="stable") + first_in_row
    return np.asarray(by_low.ravel().take(by_high) - first_in_row)


def _squared_norms(matrix: Any) -> Array:
    if sparse.issparse(matrix):
        return np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel()
    return np.asarray(np.einsum("ij,ij->i", matrix, matrix))


def _origin(inputs: Any, metric: Metric, dtype: np.dtype[Any]) -> Array | None:
    """A training row near the mean: taking it off spares distances the rounding of a large common offset.

    A row, not the mean itself, keeps integers integers, and their distances exact.
    """
    if metric == "cosine" or sparse.issparse(inputs):
        return None
    with np.errstate(invalid="ignore", over="ignore"):  # infinite features are reported later, by id
        from_mean = inputs[:1000] - inputs[:1000].mean(axis=0, dtype=np.float64)
        row = np.asarray(inputs[int(np.argmin(_squared_norms(from_mean)))], dtype)
    return np.nan_to_num(row, nan=0, posinf=0, neginf=0)


def _labels(examples: Examples, what: str) -> Array:
    if examples.labels is None:
        raise InputError(f"{what} without labels", "a label for each", "pass (inputs, labels)")
    missing = pd.isna(examples.labels)
    if missing.any():
        raise InputError(
            f"missing labels in {examples.ids[missing][:5].tolist()}", "a label for each", "drop those rows"
        )
    return examples.labels


def _targets(labels: Array, classes: pd.Index[Any] | None) -> Array:
    """Labels as class positions, −1 where training has no such class; as numbers for regression."""
    if classes is None:
        if labels.dtype.kind not in "biuf":
            raise InputError(
                f"labels such as {labels[0]!r}", "numbers, for squared_error", "pass numbers, or utility='soft'"
            )
        return labels.astype(np.float64)
    at = np.asarray(classes.get_indexer(pd.Index(labels)), dtype=np.int32)
    if (at < 0).all():
        raise InputError(
            f"query labels such as {labels[0]!r}", f"labels of training, such as {classes[0]!r}", "use the same labels"
        )
    return at


def _matrix(examples: Examples, what: str, keep_sparse: bool) -> Any:
    """Numbers, one row per example; sparse where both sides can be."""
    inputs = examples.inputs
    matrix: Any = inputs if sparse.issparse(inputs) else np.asarray(inputs)
    if matrix.dtype.kind not in "biuf":
        raise InputError(f"{what} of dtype {matrix.dtype}", "numbers", "encode the columns, or pass embeddings")
    if sparse.issparse(matrix):
        return sparse.csr_array(matrix) if keep_sparse else matrix.toarray()
    return matrix.reshape(len(matrix), -1)
