"""Rank statistics by counting: slow, plain, and the truth that fast ones are held to."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def mean_ranks(numbers: Any) -> list[float]:
    """1 for the smallest; ties share the mean of their ranks."""
    return [sum(b < a for b in numbers) + (sum(b == a for b in numbers) + 1) / 2 for a in numbers]


def pearson(x: Any, y: Any) -> float:
    n, mx, my = len(x), sum(x) / len(x), sum(y) / len(y)
    xy = sum((x[i] - mx) * (y[i] - my) for i in range(n))
    return float(xy / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)))


def spearman(x: Any, y: Any) -> float:
    return pearson(mean_ranks(x), mean_ranks(y))


def lds(score: Array, included: Array, measured: Array) -> list[float]:
    """Per query; models of one subset are averaged, NaN rows left out."""
    by_subset: dict[tuple[int, ...], list[Array]] = {}
    for row, values in zip(included, measured, strict=True):
        if not np.isnan(values).any():
            by_subset.setdefault(tuple(map(int, row)), []).append(values)
    result = []
    for q in range(len(score)):
        predicted = [sum(c * s for c, s in zip(row, score[q], strict=True)) for row in by_subset]
        truth = [sum(v[q] for v in values) / len(values) for values in by_subset.values()]
        result.append(spearman(predicted, truth))
    return result


def auroc(suspicion: Any, bad: Any) -> float:
    """The share of pairs of a bad and a good row in which the bad one is the more suspicious; ties half."""
    pairs = [
        (a, b)
        for a, one in zip(suspicion, bad, strict=True)
        if one
        for b, two in zip(suspicion, bad, strict=True)
        if not two
    ]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def average_precision(suspicion: Any, bad: Any) -> float:
    """Over thresholds, largest first: the precision where recall grows, times by how much."""
    total, before = 0.0, 0
    for threshold in sorted(set(suspicion), reverse=True):
        chosen = [one for value, one in zip(suspicion, bad, strict=True) if value >= threshold]
        found = sum(chosen)
        total += (found - before) * found / len(chosen)
        before = found
    return total / sum(bad)


def bm25(texts: list[list[str]], query: list[str], k1: float, b: float) -> list[float]:
    """The score of each text, by the formula, word by word."""
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        counts, score = Counter(text), 0.0
        for word in query:
            having = sum(word in other for other in texts)
            if having:
                rarity = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
                score += rarity * counts[word] * (k1 + 1) / (counts[word] + k1 * (1 - b + b * len(text) / mean))
        scores.append(score)
    return scores
