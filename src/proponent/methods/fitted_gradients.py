"""What a gradient method has fitted: it scores queries, ranks the strongest examples, and values examples by themselves."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from proponent.attribution import Attribution, Values
from proponent.capture.gradients import Capture
from proponent.capture.weights import weights_mark
from proponent.curvature.metric import Metric
from proponent.errors import InputError, ProponentWarning
from proponent.methods.score import Norms, Sizes, parts_of, prepare, squared_norms, stream
from proponent.methods.sinks import PARTIAL, Disk, Memory, Sink, Strongest
from proponent.progress import track
from proponent.rows import Rows
from proponent.store.matrix import MatrixStore, require_memory

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Member:
    """One model of several whose scores are added up.

    Args:
        capture: how its gradients are taken.
        metric: what stands between two gradients.
        sizes: what one example takes.
        weight: of its scores in the sum.
        loaded: puts its weights into the model while it is looked at.
    """

    capture: Capture
    metric: Metric
    sizes: Sizes
    weight: float = 1.0
    loaded: Callable[[], AbstractContextManager[Any]] = nullcontext

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Its weights in place, the model as it is asked questions."""
        with self.loaded(), self.capture.task.watching():
            yield


@dataclass(frozen=True)
class FittedGradients:
    """score[q, i] = scale · Σ_members w ⟨ψ(q), P φ(i)⟩ for any queries.

    Args:
        method: its name.
        settings: what it was made with, kept with every result.
        unit: what a score is.
        train: the training examples.
        members: models whose scores are added up.
        scale: in front of the sum: 1/n where a score predicts a change of the measurement.
        cosine: divide by the two gradients' norms.
        batch: training examples captured at once.
        seconds: that the fit took.
        facts: kept with every result, such as the error of the curvature.
    """

    method: str
    settings: Mapping[str, Any]
    unit: str
    train: Rows
    members: Sequence[Member]
    scale: float = 1.0
    cosine: bool = False
    batch: int | None = None
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def score(self, query: Any, out: str | Path | None = None) -> Attribution:
        """Scores of all training examples for queries.

        Args:
            query: queries, in the same form as the training examples.
            out: a path to stream the scores to, as zarr; a killed run, started again, goes on where it stopped.

        Raises:
            InputError: the scores do not fit in memory and `out` is not given.
        """
        start, queries = time.perf_counter(), Rows.of(query)
        if out is not None:
            self._fill(queries, Disk(self._store(queries, out), self._rounds(queries)))
            return Attribution.load(out)
        require_memory(len(queries), len(self.train), 1)
        precision = str(self.members[0].capture.task.precision).removeprefix("torch.")
        memory = Memory(np.empty((len(queries), len(self.train)), precision), self._rounds(queries))
        self._fill(queries, memory)
        return Attribution.of(
            memory.score,
            query=queries,
            train=self.train,
            method=self.method,
            unit=self.unit,
            attributes=self._facts(start) | set_aside(memory.score, queries, self.train),
        )

    def top(self, query: Any, k: int = 10) -> pd.DataFrame:
        """The k strongest proponents and opponents of each query, without the matrix of scores.

        Args:
            query: queries, in the same form as the training examples.
            k: of each kind.

        Returns:
            columns query, side, rank, id, score, and label where the training examples have one.
        """
        queries = Rows.of(query)
        if len(self.members) > 1:
            raise InputError(f"{len(self.members)} checkpoints", "one model", "use score(query, out=…).proponents(…)")
        strongest = Strongest(len(queries), min(k, len(self.train)))
        self._fill(queries, strongest)
        return strongest.table(queries, self.train)

    def self_influence(self) -> Values:
        """scale · ⟨φ(i), P φ(i)⟩ of every training example: large for memorised and for odd ones; no matrix of pairs."""
        start = time.perf_counter()
        total = torch.zeros(len(self.train), dtype=torch.float64)
        for member in self.members:
            with member.looked_at():
                batch = self._batch(member)
                norms = squared_norms(member.capture, member.metric, self.train, batch, member.capture.task.losses)
                total += member.weight * norms.cpu()
        value = (self.scale * total).numpy()
        return Values.of(
            value,
            train=self.train,
            method=f"{self.method}, self-influence",
            unit=self.unit,
            attributes=self._facts(start) | set_aside(value, None, self.train),
        )

    def _fill(self, queries: Rows, sink: Sink) -> None:
        """Hand every block of scores to the sink, one round per model and chunk of queries."""
        turn = 0
        for member in self.members:
            with member.looked_at():
                for chunk in self._query_chunks(member, queries):
                    self._round(member, queries, chunk, sink, turn)
                    turn += 1

    def _round(self, member: Member, queries: Rows, chunk: slice, sink: Sink, turn: int) -> None:
        capture, metric, batch = member.capture, member.metric, self._batch(member)
        missing = sink.missing(turn, parts_of(self.train, batch))
        if not missing:
            return
        prepared = prepare(capture, metric, queries[chunk], batch)
        norms = self._norms(member, queries[chunk], batch)
        scale = 1.0 if self.cosine else self.scale * member.weight
        made = stream(capture, prepared, self.train, missing, scale, norms)
        for at, scores in track(made, f"{self.method}: training examples", total=len(missing)):
            sink.add(turn, chunk, at, scores)

    def _norms(self, member: Member, queries: Rows, batch: int) -> Norms | None:
        """Where cosines are wanted."""
        if not self.cosine:
            return None
        task = member.capture.task
        query = squared_norms(member.capture, member.metric, queries, batch, task.measurements).sqrt()
        return Norms(query, member.metric)

    def _rounds(self, queries: Rows) -> int:
        """Of one member: chunks of queries."""
        return len(self._query_chunks(self.members[0], queries))

    def _query_chunks(self, member: Member, queries: Rows) -> list[slice]:
        return parts_of(queries, member.sizes.queries(member.metric.keeps_factors))

    def _batch(self, member: Member) -> int:
        return self.batch or member.sizes.batch()

    def _store(self, queries: Rows, out: str | Path) -> MatrixStore:
        member = self.members[0]
        marks = []
        for each in self.members:
            with each.looked_at():
                marks.append(weights_mark(each.capture.task))
        return MatrixStore.open(
            out,
            queries,
            self.train,
            variables=("score",) if len(self.members) == 1 else ("score", PARTIAL),
            block=self._batch(member),
            method=self.method,
            settings={**self.settings, "weights": marks},
            rounds=self._rounds(queries) * len(self.members),
            dtype=str(member.capture.task.precision).removeprefix("torch."),
            unit=self.unit,
        )

    def _facts(self, start: float) -> dict[str, Any]:
        seconds = round(self.seconds + time.perf_counter() - start, 3)
        return {**self.facts, "settings": dict(self.settings), "seconds": seconds}


def set_aside(score: Array, queries: Rows | None, train: Rows) -> dict[str, Any]:
    """Names the examples whose loss or gradient is not finite; their scores are NaN, the others' are unharmed.

    Args:
        score: (q, n), or (n,) with queries None.
    """
    if np.isfinite(float(torch.from_numpy(score).sum())):
        return {}
    bad = np.isnan(np.atleast_2d(score))
    columns = bad.all(axis=0)
    rows = bad.any(axis=1) if columns.all() else bad[:, ~columns].any(axis=1)
    found = {"set_aside_train": train.ids[columns & ~(rows.all() and queries is not None)].tolist()}
    if queries is not None:
        found["set_aside_query"] = queries.ids[rows].tolist()
    for axis, ids in found.items():
        if ids:
            warnings.warn(
                f"{len(ids)} examples with a loss or gradient that is not finite are set aside ({axis}): {ids[:10]}",
                ProponentWarning,
                stacklevel=3,
            )
    return {k: v for k, v in found.items() if v}
