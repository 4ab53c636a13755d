"""BM25 on sparse counts: one product of (queries, words) with (texts, words)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

Array = np.ndarray[Any, np.dtype[Any]]

WORD = r"(?u)\b\w+\b"  # words of one letter too


def scores(train: Sequence[str], query: Sequence[str], k1: float, b: float) -> Array:
    """(q, n); a word that a query has twice counts twice, one that no training text has counts nothing."""
    words = CountVectorizer(token_pattern=WORD)
    if not any(map(words.build_analyzer(), train)):
        return np.zeros((len(query), len(train)))
    count = sparse.csr_array(words.fit_transform(train), dtype=np.float64)
    length = np.asarray(count.sum(axis=1)).ravel()
    penalty = k1 * (1 - b + b * length / length.mean())
    having = np.bincount(count.indices, minlength=count.shape[1])
    rarity = np.log1p((len(train) - having + 0.5) / (having + 0.5))
    own = np.repeat(penalty, np.diff(count.indptr))
    weight = sparse.csr_array(
        (rarity[count.indices] * count.data * (k1 + 1) / (count.data + own), count.indices, count.indptr), count.shape
    )
    asked = sparse.csr_array(words.transform(query), dtype=np.float64)
    return np.asarray((asked @ weight.T).toarray())
