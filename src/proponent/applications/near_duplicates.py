"""Pairs of rows whose features are nearly the same, without ever holding an n × n matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.stats import chi2

from proponent.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
Candidates = Iterator[tuple[Array, Array]]

COSINE = 0.9  # rows at least this similar are near duplicates where the cosine is the measure
CHANCE = 1e-4  # share of rows that chance alone may put below the threshold
MAX_RATIO = 0.25  # the threshold is at most this share of the median nearest-neighbour distance
TREE_COLUMNS = 12  # up to here a k-d tree is fast and exact
DIRECTIONS, RECALL = 32, 0.995  # of the random screening, for a pair at the threshold
BLOCK = 1024  # rows per side of a screened block
REFERENCE = 1024  # rows whose nearest neighbours are measured
MANY = 300_000_000  # candidate pairs from shared rare entries above which screening is cheaper


@dataclass(frozen=True)
class Pairs:
    """Pairs of positions, first < second, at a distance of at most `threshold`, in order."""

    first: Array
    second: Array
    distance: Array
    threshold: float


def near_duplicates(
    features: Any,
    *,
    metric: Literal["auto", "euclidean", "cosine"] = "auto",
    threshold: float | None = None,
    seed: int = 0,
) -> Pairs:
    """Pairs of rows whose features are nearly the same: far closer to each other than nearest neighbours are.

    With median q₂ and upper quartile q₃ of the nearest-neighbour distances, which near duplicates hardly move, and a
    Weibull law of shape k = ln 2 / ln(q₃/q₂), chance puts a share ε = 1e-4 of the rows below q₂ (ε / ln 2)^(1/k). The
    threshold is that, and at most q₂/4. For the cosine it is √(2 − 2·0.9) between rows of length 1 where they are
    sparse, and at most that where they are dense.

    Recall: all pairs for sparse cosine (found through shared rare entries) and up to 12 dense columns (k-d tree, at
    most 7 partners per row). Otherwise pairs are screened in 32 random directions, which keeps a pair at the threshold
    with probability 0.995 and a closer one with more. Of rows with equal features only the first is compared with the
    others. Time grows as n² at worst, memory as n.

    >>> X = np.random.default_rng(0).normal(size=(200, 20))
    >>> X[7] = X[3] + 1e-3
    >>> pairs = near_duplicates(X)
    >>> pairs.first.tolist(), pairs.second.tolist()
    ([3], [7])

    Args:
        features: array or sparse matrix (n, d), scaled so that distances mean something.
        metric: "auto" takes the cosine for sparse features, the euclidean distance for dense ones.
        threshold: distance (of rows of length 1 for the cosine) up to which rows are near duplicates; None: as above.
        seed: of the screening directions and of the 1024 rows whose nearest neighbours are measured.

    Raises:
        InputError: a feature is not finite.
    """
    X = (
        features.tocsr()
        if sparse.issparse(features)
        else np.asarray(features, dtype=np.float64).reshape(len(features), -1)
    )
    if not np.isfinite(X.data if sparse.issparse(X) else X).all():
        raise InputError("features that are not finite", "numbers", "encode or impute missing values first")
    cosine = metric == "cosine" or (metric == "auto" and sparse.issparse(X))
    at = np.arange(X.shape[0])
    if cosine:
        length = np.sqrt(_squares(X))
        at = np.flatnonzero(length > 0)
        X = sparse.diags_array(1 / length[at]).tocsr() @ X[at] if sparse.issparse(X) else X[at] / length[at, None]
    _, chosen, inverse = np.unique(row_keys(X), return_index=True, return_inverse=True)
    original = chosen[inverse]  # the first row with the same features
    distinct = X[chosen]
    if threshold is None:
        alike = float(np.sqrt(2 - 2 * COSINE))
        threshold = alike if cosine and sparse.issparse(X) else _typical(distinct, np.random.default_rng(seed))
        threshold = min(threshold, alike) if cosine else threshold
    i, j, d = _close(distinct, threshold, cosine, seed)
    again = np.flatnonzero(original != np.arange(len(at)))
    ends = np.sort(at[np.stack([np.r_[chosen[i], original[again]], np.r_[chosen[j], again]])], axis=0)
    distance = np.r_[d, np.zeros(len(again))]
    order = np.lexsort(ends[::-1])
    return Pairs(ends[0, order], ends[1, order], distance[order], threshold)


def row_keys(rows: Any) -> Array:
    """A 64-bit key per row of an array (n, …) or sparse matrix (n, d), equal for equal rows.

    >>> keys = row_keys(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]]))
    >>> bool(keys[0] == keys[1]), bool(keys[0] == keys[2])
    (True, False)
    """
    if sparse.issparse(rows):
        m = rows.tocsr().copy()
        m.sum_duplicates()
        m.eliminate_zeros()
        spans = zip(m.indptr[:-1], m.indptr[1:], strict=True)
        encoded = (m.indices[a:b].tobytes() + m.data[a:b].tobytes() for a, b in spans)
    else:
        encoded = ((row + 0).tobytes() for row in np.asarray(rows))  # adding 0 makes −0 the same as 0
    return np.array(
        [int.from_bytes(hashlib.blake2b(e, digest_size=8).digest(), "big") for e in encoded], dtype=np.uint64
    )


def _squares(X: Any) -> Array:
    return np.asarray(X.multiply(X).sum(axis=1)).ravel() if sparse.issparse(X) else np.einsum("ij,ij->i", X, X)


def _typical(X: Any, rng: np.random.Generator) -> float:
    """The distance below which chance puts a share CHANCE of the rows, from some rows' nearest neighbours."""
    n = X.shape[0]
    if n < 20:
        return 0.0
    some = rng.choice(n, min(REFERENCE, n), replace=False)
    squares, nearest = _squares(X), np.full(len(some), np.inf)
    for lo in range(0, n, 8192):
        product = X[lo : lo + 8192] @ X[some].T
        d2 = (
            squares[lo : lo + 8192, None]
            + squares[some]
            - 2 * (product.toarray() if sparse.issparse(product) else product)
        )
        itself = np.flatnonzero((some >= lo) & (some < lo + len(d2)))
        d2[some[itself] - lo, itself] = np.inf
        nearest = np.minimum(nearest, d2.min(axis=0))
    q2, q3 = np.sqrt(np.maximum(np.quantile(nearest, [0.5, 0.75]), 0))
    if q2 <= 0:
        return 0.0
    shape = np.log(2) / max(np.log(q3 / q2), 1e-9)
    return float(q2 * min(MAX_RATIO, (CHANCE / np.log(2)) ** (1 / shape)))


def _close(X: Any, t: float, cosine: bool, seed: int) -> tuple[Array, Array, Array]:
    """Pairs i, j of distinct rows at distance ≤ t, and the distances."""
    found: list[tuple[Array, Array, Array]] = [(np.empty(0, dtype=int), np.empty(0, dtype=int), np.empty(0))]
    if t > 0 and X.shape[0] > 1:
        for i, j in _candidates(X, t, cosine, seed):
            d = _distances(X, i, j)
            near = d <= t
            found.append((i[near], j[near], d[near]))
    i, j, d = (np.concatenate(parts) for parts in zip(*found, strict=True))
    _, once = np.unique(i * X.shape[0] + j, return_index=True)
    return i[once], j[once], d[once]


def _candidates(X: Any, t: float, cosine: bool, seed: int) -> Candidates:
    if sparse.issparse(X) and cosine:
        prefix = _prefix(X, 1 - t * t / 2)
        pairs_per_row = prefix @ np.bincount(prefix.indices, minlength=X.shape[1]).astype(float)
        if pairs_per_row.sum() <= MANY:
            return _sharing(prefix, pairs_per_row)
    if not sparse.issparse(X) and X.shape[1] <= TREE_COLUMNS:
        return _neighbours(X, t)
    return _screened(X, t, seed)


def _distances(X: Any, i: Array, j: Array) -> Array:
    d = np.empty(len(i))
    for lo in range(0, len(i), 8192):
        part = slice(lo, lo + 8192)
        d[part] = np.sqrt(_squares(X[i[part]] - X[j[part]]))
    return d


def _neighbours(X: Array, t: float) -> Candidates:
    """Each row's nearest rows within t, by a k-d tree."""
    tree, n = cKDTree(X), len(X)
    for lo in range(0, n, 8192):
        _, near = tree.query(X[lo : lo + 8192], k=np.arange(1, min(8, n) + 1), distance_upper_bound=t * (1 + 1e-9))
        i = np.repeat(np.arange(lo, lo + len(near)), near.shape[1])
        j = near.ravel()
        found = (j < n) & (j != i)
        yield np.minimum(i, j)[found], np.maximum(i, j)[found]


def _prefix(X: Any, cosine: float) -> Any:
    """Each row's rarest entries, as ones: two unit rows with x·y ≥ cosine share at least one of them.

    Order entries from rare to frequent, and let w be the rarest that x and y share. Then x·y ≤ ‖x from w on‖ ‖y from w
    on‖, so both norms are at least the cosine: entries beyond the point where the rest is shorter need no look.
    """
    rarity = np.empty(X.shape[1], dtype=int)
    rarity[np.argsort(np.bincount(X.indices, minlength=X.shape[1]), kind="stable")] = np.arange(X.shape[1])
    row = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    order = np.lexsort((rarity[X.indices], row))
    mass = np.cumsum(X.data[order] ** 2)
    before_row = np.r_[0.0, mass][X.indptr[:-1]]
    rest = 1 - (mass - X.data[order] ** 2 - before_row[row])
    kept = rest >= cosine**2 - 1e-9
    ones = np.ones(int(kept.sum()))
    return sparse.csr_array((ones, (row[kept], X.indices[order][kept])), shape=X.shape)


def _sharing(prefix: Any, pairs_per_row: Array) -> Candidates:
    """Pairs of rows that share an entry, in blocks of about 4 million candidates."""
    block = (np.cumsum(pairs_per_row) // 4_000_000).astype(int)
    starts = np.r_[np.flatnonzero(np.diff(block, prepend=-1)), prefix.shape[0]]
    for lo, hi in pairwise(starts.tolist()):
        shared = (prefix[lo:hi] @ prefix[lo:].T).tocoo()
        i, j = shared.coords[0] + lo, shared.coords[1] + lo
        yield i[i < j], j[i < j]


def _screened(X: Any, t: float, seed: int) -> Candidates:
    """Pairs that are close in random directions, block by block along the widest one of them.

    A projected distance is d √(χ²_m / m) in distribution, whatever the rows: radius t √(χ²_m quantile / m) loses few.
    [z, −‖z‖²/2, 1] · [z', 1, −‖z'‖²/2] = −‖z − z'‖²/2 makes one product of blocks the whole comparison.
    """
    rng = np.random.default_rng(seed)
    Z = np.asarray(X @ (rng.standard_normal((X.shape[1], DIRECTIONS)) / np.sqrt(DIRECTIONS)))
    Z -= Z.mean(axis=0)
    along = Z @ np.linalg.eigh(Z.T @ Z)[1][:, -1]
    order = np.argsort(along, kind="stable")
    Z, along, n = Z[order], along[order], len(order)
    radius = t * np.sqrt(chi2.ppf(RECALL, DIRECTIONS) / DIRECTIONS)
    half, one = -_squares(Z)[:, None] / 2, np.ones((n, 1))
    left, right = np.hstack([Z, half, one]).astype(np.float32), np.hstack([Z, one, half]).astype(np.float32)
    limit = np.float32(-(radius**2) / 2 + 2e-6 * half.min())  # half.min() < 0: room for rounding in float32
    for lo in range(0, n, BLOCK):
        hi = min(lo + BLOCK, n)
        end = int(np.searchsorted(along, along[hi - 1] + radius, side="right"))
        for start in range(lo, end, 4 * BLOCK):
            at = np.flatnonzero((left[lo:hi] @ right[start : min(start + 4 * BLOCK, end)].T > limit).ravel())
            if len(at):
                i, j = np.divmod(at, min(start + 4 * BLOCK, end) - start)
                i, j = i + lo, j + start
                yield order[i[i < j]], order[j[i < j]]
