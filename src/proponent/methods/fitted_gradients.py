"""What a gradient method has fitted: it scores queries, ranks the strongest examples, and values examples by themselves."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from proponent.attribution import Attribution, Values
from proponent.capture.gradients import Capture
from proponent.capture.weights import weights_mark
from proponent.curvature.metric import Metric
from proponent.errors import InputError, ProponentWarning, did_you_mean
from proponent.methods.perturbation import perturbation
from proponent.methods.score import (
    Norms,
    Sizes,
    by_position,
    directions,
    layers_of,
    prepare,
    squared_norms,
    stream,
    stream_forward,
)
from proponent.methods.sinks import PARTIAL, Disk, Memory, Sink, Strongest
from proponent.progress import track
from proponent.rows import Rows
from proponent.store.matrix import MatrixStore, require_memory

Array = np.ndarray[Any, np.dtype[Any]]

ENGINES = ("factors", "jvp")

SUMS = 2**26
"""Scores that are held at once where several models' are added up for the strongest of each query."""


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
        relative: divide by the training example's norm in this metric of each member.
        batch: training examples captured at once.
        engine: "factors", or "jvp": one forward pass over the training examples per query.
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
    relative: Callable[[Metric], Metric] | None = None
    batch: int | None = None
    engine: str = "factors"
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_engine(self.engine)
        if self.engine != "factors" and (self.cosine or self.relative is not None):
            raise InputError(
                f"lengths of gradients with engine={self.engine!r}",
                "engine='factors'",
                "forward mode gives products only",
            )

    def score(self, query: Any, out: str | Path | None = None, by: Literal["layer"] | None = None) -> Attribution:
        """Scores of all training examples for queries.

        Args:
            query: queries, in the same form as the training examples.
            out: a path to stream the scores to, as zarr; a killed run, started again, goes on where it stopped.
            by: "layer" adds the variable `score_by_layer` (layer, query, train), whose sum over layers is `score`. A
                parameter that several layers share, or that no layer explains, goes by its own name.

        Raises:
            InputError: the scores do not fit in memory and `out` is not given; or they are not sums over layers.
        """
        start, queries = time.perf_counter(), Rows.of(query)
        if by is not None:
            return self._score_by_layer(start, queries, out, by)
        if out is not None:
            self._fill(queries, Disk(self._store(queries, out), self._rounds(queries)))
            return Attribution.load(out)
        require_memory(len(queries), len(self.train), 1)
        memory = self._memory(queries)
        self._fill(queries, memory)
        return self._attribution(start, queries, memory.score, _residuals(memory, len(queries)))

    def positions(self, query: Any, train: Any) -> xr.DataArray:
        """How much of one training example's scores each of its positions gives, such as each token.

        score[q, i] = Σ_t position[q, t] + without_position[q],  position[q, t] = −scale · Σ_layers ⟨G_q, P g_t a_tᵀ⟩

        A position's share is what its activations and gradients in each layer add, and these depend on the others too.

        Args:
            query: queries, in the same form as the training examples.
            train: the id of a training example.

        Returns:
            dims (query, position), with the coordinate `without_position` (query): the share of layers with another number
            of positions, of norms and of shared parameters.

        Raises:
            InputError: an unknown id, no layer with positions, or scores that are not sums.
        """
        self._require_sums("positions", "score(query)")
        queries, (at,) = Rows.of(query), self.train.positions([train])
        share, rest = (np.concatenate(parts) for parts in zip(*self._positions(queries, at), strict=True))
        return xr.DataArray(
            share,
            dims=("query", "position"),
            coords={
                "query": queries.ids,
                "position": np.arange(share.shape[1]),
                "without_position": ("query", rest[:, 0]),
            },
            attrs={"method": self.method, "unit": self.unit, "train": train},
        )

    def perturbation(self, query: Any, rows: Sequence[Any], of: str | None = None) -> xr.DataArray:
        """How each query's scores change per unit change of each input number of a training example.

        perturbation[q, i] = ∂score[q, i]/∂x_i = −scale · Σ_members w ∂⟨P ∇m_q, ∇ℓ_i⟩/∂x_i

        Where P is an inverse curvature, this predicts how the query's measurement changes, the model retrained as x_i moves.
        The picture of it over an image is `proponent.report.saliency.beside`.

        >>> import torch, proponent as pp
        >>> task = pp.Task(torch.nn.Linear(3, 2), loss="cross_entropy")
        >>> train = torch.randn(6, 3), torch.randint(2, (6,))
        >>> pp.GradDot().fit(task, train).perturbation(train, rows=[4]).dims
        ('query', 'train', 'feature')

        Args:
            query: queries, in the same form as the training examples.
            rows: ids of the training examples.
            of: x is the output of the module of this name, such as an embedding of tokens; the first input of floating
                point where None.

        Returns:
            dims (query, train, then x's own): feature; channel, height, width; position, channel; or axis_0, ….

        Raises:
            InputError: an unknown id or module, inputs that are whole numbers, or scores that are not sums.
            UnsupportedModel: an operation of the model has no second derivative.

        Source: Koh & Liang, Understanding black-box predictions via influence functions, ICML 2017, equation 5.
        """
        self._require_sums("perturbations", "score(query)")
        return perturbation(self, Rows.of(query), rows, of)

    def top(self, query: Any, k: int = 10) -> pd.DataFrame:
        """The k strongest proponents and opponents of each query, without the matrix of scores.

        Args:
            query: queries, in the same form as the training examples.
            k: of each kind.

        Returns:
            columns query, side, rank, id, score, and label where the training examples have one.
        """
        queries = Rows.of(query)
        strongest = Strongest(len(queries), min(k, len(self.train)))
        if len(self.members) == 1:
            self._fill(queries, strongest)
        else:  # a sum over models is known only when the last one has come
            for chunk in queries.parts(max(1, SUMS // len(self.train))):
                memory = self._memory(queries[chunk])
                self._fill(queries[chunk], memory)
                strongest.add(0, chunk, slice(0, len(self.train)), torch.from_numpy(memory.score))
        return strongest.table(queries, self.train)

    def self_influence(self) -> Values:
        """scale · ⟨φ(i), P φ(i)⟩ of every training example: large for memorised and for odd ones; no matrix of pairs."""
        start = time.perf_counter()
        total = torch.zeros(len(self.train), dtype=torch.float64)
        for member in self.members:
            with member.looked_at():
                norms = self._train_norms(member, member.metric)
                if self.relative is not None:
                    norms = norms / self._train_norms(member, self.relative(member.metric)).sqrt()
                total += member.weight * norms.cpu()
        value = (self.scale * total).numpy()
        return Values.of(
            value,
            train=self.train,
            method=f"{self.method}, self-influence",
            unit=self.unit,
            attributes=self._facts(start) | set_aside(value, None, self.train),
        )

    def _train_norms(self, member: Member, metric: Metric) -> Tensor:
        """(n,) gᵀ P g."""
        return squared_norms(member.capture, metric, self.train, self._batch(), member.capture.task.losses)

    def _score_by_layer(self, start: float, queries: Rows, out: Any, by: str) -> Attribution:
        if by != "layer":
            raise InputError(f"scores by {by!r}", "by='layer'", "leave it out for the sum over layers")
        if out is not None:
            raise InputError("by='layer' with out=…", "scores by layer in memory", "leave out=… out, or by='layer'")
        self._require_sums("scores by layer", "score(query)")
        if self.engine != "factors":
            raise InputError("scores by layer with engine='jvp'", "engine='factors'", "forward mode gives sums only")
        first = self.members[0]
        with first.looked_at():
            layers = layers_of(first.capture, queries)
        require_memory(len(queries), len(self.train), 1 + len(layers))
        memory = self._memory(queries, layers)
        self._fill(queries, memory, layers)
        variables = {"score_by_layer": (("layer", "query", "train"), memory.score), **_residuals(memory, len(queries))}
        made = self._attribution(start, queries, memory.score.sum(0), variables)
        names = np.array([name or type(first.capture.task.net).__name__ for name in layers], dtype=object)
        return Attribution(made.dataset.assign_coords(layer=names))

    def _memory(self, queries: Rows, layers: tuple[str, ...] = ()) -> Memory:
        precision = str(self.members[0].capture.task.precision).removeprefix("torch.")
        shape = (*((len(layers),) if layers else ()), len(queries), len(self.train))
        return Memory(np.empty(shape, precision), self._rounds(queries))

    def _attribution(
        self, start: float, queries: Rows, score: Array, variables: Mapping[str, Any] | None = None
    ) -> Attribution:
        return Attribution.of(
            score,
            query=queries,
            train=self.train,
            method=self.method,
            unit=self.unit,
            variables=variables,
            attributes=self._facts(start) | set_aside(score, queries, self.train),
        )

    def _require_sums(self, what: str, instead: str) -> None:
        if self.cosine or self.relative is not None:
            raise InputError(
                f"{what} of cosines", "a score that is a sum of inner products", f"use GradDot, or {instead}"
            )

    def _positions(self, queries: Rows, at: int) -> Iterator[tuple[Array, Array]]:
        """By chunk of queries: (q, T) and (q, 1), summed over the models."""
        for chunk in self._query_chunks(queries):
            total: list[Array] = []
            for member in self.members:
                with member.looked_at():
                    prepared = prepare(member.capture, member.metric, queries[chunk], self._batch())
                    made = by_position(member.capture, prepared, self.train[at : at + 1], self.scale * member.weight)
                parts = [part.numpy(force=True) for part in made]
                total = [x + y for x, y in zip(total, parts, strict=True)] if total else parts
            yield total[0], total[1]

    def _fill(self, queries: Rows, sink: Sink, layers: tuple[str, ...] = ()) -> None:
        """Hand every block of scores to the sink, one round per model and chunk of queries."""
        turn = 0
        for member in self.members:
            with member.looked_at():
                for chunk in self._query_chunks(queries):
                    self._round(member, queries, chunk, sink, turn, layers)
                    turn += 1

    def _round(
        self, member: Member, queries: Rows, chunk: slice, sink: Sink, turn: int, layers: tuple[str, ...]
    ) -> None:
        missing = sink.missing(turn, self.train.parts(self._batch()))
        if not missing:
            return
        made = self._stream(member, queries[chunk], missing, layers, lambda residual: sink.note(chunk, residual))
        for at, scores in track(made, f"{self.method}: training examples", total=len(missing)):
            sink.add(turn, chunk, at, scores)

    def _stream(
        self,
        member: Member,
        query: Rows,
        parts: list[slice],
        layers: tuple[str, ...],
        note: Callable[[Tensor], None],
    ) -> Iterator[tuple[slice, Tensor]]:
        capture, batch = member.capture, self._batch()
        scale = self.scale * member.weight
        forward = directions(capture, member.metric, query, batch) if self.engine == "jvp" else None
        queries = forward or prepare(capture, member.metric, query, batch, layers)
        if queries.residual is not None:
            note(queries.residual)
        if forward is not None:
            return stream_forward(capture, forward, self.train, parts, scale)
        return stream(capture, queries, self.train, parts, scale, self._norms(member, query, batch))

    def _norms(self, member: Member, queries: Rows, batch: int) -> Norms | None:
        """Where cosines or relative scores are wanted."""
        task = member.capture.task
        if self.relative is not None:
            ones = torch.ones(len(queries), dtype=task.precision, device=task.device)
            return Norms(ones, self.relative(member.metric))
        if not self.cosine:
            return None
        query = squared_norms(member.capture, member.metric, queries, batch, task.measurements).sqrt()
        return Norms(query, member.metric)

    def _rounds(self, queries: Rows) -> int:
        """Of one member: chunks of queries."""
        return len(self._query_chunks(queries))

    def _query_chunks(self, queries: Rows) -> list[slice]:
        """The same for all members, whose scores are added up."""
        least = 0 if self.engine == "factors" else 1
        return queries.parts(min(m.sizes.queries(max(least, m.metric.vectors)) for m in self.members))

    def _batch(self) -> int:
        return self.batch or min(m.sizes.batch() for m in self.members)

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
            block=self._batch(),
            method=self.method,
            settings={**self.settings, "weights": marks},
            rounds=self._rounds(queries) * len(self.members),
            dtype=str(member.capture.task.precision).removeprefix("torch."),
            unit=self.unit,
            facts=self.facts,
        )

    def _facts(self, start: float) -> dict[str, Any]:
        seconds = round(self.seconds + time.perf_counter() - start, 3)
        return {**self.facts, "settings": dict(self.settings), "seconds": seconds}


def require_engine(engine: str) -> None:
    """Refuse an engine that there is not."""
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}", f"one of {', '.join(ENGINES)}", did_you_mean(str(engine), ENGINES))


def _residuals(memory: Memory, count: int) -> dict[str, Any]:
    """The solver's residual of each query, where it told."""
    if not memory.residual:
        return {}
    return {"residual": (("query",), np.array([memory.residual[k] for k in range(count)]))}


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
