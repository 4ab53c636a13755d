"""What an attribution found: the one value that the terminal summary, the tables and the page are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from proponent.examples import Description

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Neighbour:
    """A training example behind a query: a proponent (score > 0) or an opponent (score < 0)."""

    id: str
    label: str
    score: float
    shown: Description


@dataclass(frozen=True)
class Explained:
    """One query with the training examples for and against it, strongest first.

    Args:
        predicted: the model's class, or nothing where it has none.
        measured: the measurement in words, such as "loss 1.93", or nothing.
        slopes: of the score over the pixels of the strongest proponent; None where they were not asked for.
    """

    query: str
    label: str
    predicted: str
    measured: str
    shown: Description
    proponents: tuple[Neighbour, ...]
    opponents: tuple[Neighbour, ...]
    slopes: Array | None = None


@dataclass(frozen=True)
class Cost:
    """What the scores took, beside what was predicted, where that is known.

    Args:
        resumed: part of the scores lay there already, so that the two cannot be compared.
    """

    seconds: float
    memory_mb: float | None = None
    predicted_seconds: float | None = None
    predicted_memory_mb: float | None = None
    resumed: bool = False


@dataclass(frozen=True)
class Answer:
    """A finished attribution.

    Args:
        title: the experiment file's name.
        command: the exact shell command that repeats it.
        subject: the model and its loss, in words.
        method, reason: the method that was used, and why.
        unit, sign: what a score is.
        n_train, n_query: how many.
        choices: the settings of the method, as it records them.
        cost: what the scores took.
        seconds: by stage of the whole run.
        top: query, side, rank, id, score, label: the strongest of each query.
        sample: scores drawn at random, for the histogram.
        explained: the first queries with their proponents and opponents.
        frequent: the training examples behind most queries: id, label, proponent, opponent, queries.
        self_influence: per training example: id, value, label; None where it was not asked for.
        self_shown: the examples with the largest self-influence.
        set_aside: axis → ids whose loss or gradient is not finite.
        damping: the damping that was chosen, with its reason and, where retrained models chose it, what was tried.
        warnings: what should be known, in words.
        versions, fingerprints: of what made it.
    """

    title: str
    command: str
    subject: str
    method: str
    reason: str
    unit: str
    sign: str
    n_train: int
    n_query: int
    choices: Mapping[str, Any]
    cost: Cost
    seconds: Mapping[str, float]
    top: pd.DataFrame
    sample: Array
    explained: tuple[Explained, ...]
    frequent: pd.DataFrame
    self_influence: pd.DataFrame | None = None
    self_shown: tuple[Neighbour, ...] = ()
    set_aside: Mapping[str, list[Any]] = field(default_factory=dict)
    damping: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
