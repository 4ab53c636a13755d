"""Where scores go as they are made: a matrix in memory, a matrix on disk, or only the strongest of each query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from proponent.rows import Rows
from proponent.store.matrix import MatrixStore

Array = np.ndarray[Any, np.dtype[Any]]


class Sink(Protocol):
    """Takes blocks of scores. A round is one model and one chunk of queries."""

    def missing(self, turn: int, parts: Sequence[slice]) -> list[slice]:
        """The parts of the training set that this round still needs."""
        ...

    def add(self, turn: int, queries: slice, train: slice, scores: Tensor) -> None: ...

    def note(self, queries: slice, residual: Tensor) -> None:
        """How far a solver stopped from each query's exact solution, relatively."""
        ...


@dataclass(frozen=True)
class Memory:
    """The matrix (q, n), or one for each layer: the first model's rounds write, further models' rounds add.

    Args:
        score: (…, q, n), not initialised: each page of a large matrix is touched once.
        rounds: of the first model.
        residual: of each query, by position, where a solver has told; the largest of several models'.
    """

    score: Array
    rounds: int
    residual: dict[int, float] = field(default_factory=dict)

    def note(self, queries: slice, residual: Tensor) -> None:
        for at, value in zip(range(queries.start, queries.stop), residual.tolist(), strict=True):
            self.residual[at] = max(value, self.residual.get(at, value))

    def missing(self, turn: int, parts: Sequence[slice]) -> list[slice]:
        return list(parts)

    def add(self, turn: int, queries: slice, train: slice, scores: Tensor) -> None:
        here = torch.from_numpy(self.score)[..., queries, train]
        if turn < self.rounds:
            here.copy_(scores)
        else:
            here.add_(scores.to(here))


PARTIAL = "partial"
"""The variable that holds the sum over an odd number of models fewer than all."""


@dataclass(frozen=True)
class Disk:
    """The matrix in a store, where what a killed run has written is not computed again.

    Sums over several models are written to two variables in turn, so that a block that is written once more after a kill
    starts from the sum over the models before, which is still there. The last model's is `score`.

    Args:
        store: the matrix.
        rounds: of one model.
    """

    store: MatrixStore
    rounds: int

    def note(self, queries: slice, residual: Tensor) -> None:
        """Not kept: a run that goes on where a killed one stopped does not solve again."""

    def missing(self, turn: int, parts: Sequence[slice]) -> list[slice]:
        return [parts[b] for b in self.store.missing(turn)]

    def add(self, turn: int, queries: slice, train: slice, scores: Tensor) -> None:
        models, model = self.store.rounds // self.rounds, turn // self.rounds
        names = ("score", PARTIAL)
        name, before = (names[(models - 1 - model + k) % 2] for k in (0, 1))
        made = scores.numpy(force=True)
        if model:
            made = made + self.store.read(before, queries, train)
        self.store.write(train.start // self.store.block, {name: made}, turn, queries)


@dataclass
class Strongest:
    """The k highest and the k lowest scores of each query so far."""

    queries: int
    k: int
    best: list[Tensor] = field(default_factory=list)
    at: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best = [torch.full((self.queries, self.k), -torch.inf) for _ in range(2)]
        self.at = [torch.full((self.queries, self.k), -1) for _ in range(2)]

    def missing(self, turn: int, parts: Sequence[slice]) -> list[slice]:
        return list(parts)

    def add(self, turn: int, queries: slice, train: slice, scores: Tensor) -> None:
        here = torch.arange(train.start, train.stop).expand(len(scores), -1)
        for side, signed in enumerate((scores.cpu(), -scores.cpu())):
            known = torch.cat([self.best[side][queries], torch.nan_to_num(signed, nan=-torch.inf)], 1)
            top = known.topk(self.k, dim=1)
            self.best[side][queries] = top.values
            self.at[side][queries] = torch.cat([self.at[side][queries], here], 1).gather(1, top.indices)

    def note(self, queries: slice, residual: Tensor) -> None:
        """A table of ids has no place for it."""

    def table(self, queries: Rows, train: Rows) -> pd.DataFrame:
        """A row per query, side and rank."""
        parts = []
        for side, sign, name in ((0, 1.0, "proponent"), (1, -1.0, "opponent")):
            score = (sign * self.best[side]).numpy().ravel()
            at = self.at[side].numpy().ravel()
            columns = {
                "query": np.repeat(queries.ids, self.k),
                "side": name,
                "rank": np.tile(np.arange(1, self.k + 1), self.queries),
                "id": train.ids[at],
                "score": score,
            }
            if train.labels is not None:
                columns["label"] = train.labels[at]
            parts.append(pd.DataFrame(columns)[np.isfinite(score) & (sign * score > 0)])
        table = pd.concat(parts, ignore_index=True)
        return table.sort_values("query", kind="stable", ignore_index=True)
