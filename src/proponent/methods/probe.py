"""The gradient methods' real work, rehearsed on the first examples: what grows with the training set is scaled up.

    seconds = rehearsal of fit and scores · checkpoints / those rehearsed + checkpoints · (curvature + examples beyond these)

The curvature is fitted apart, and the rehearsal is given it, so that no matrix is decomposed twice.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from proponent.capture.gradients import Capture
from proponent.curvature.damping import of_layers
from proponent.curvature.fisher import InverseFisher
from proponent.curvature.kinds import KINDS, covariances, decomposed, eigenvalues, enough
from proponent.curvature.metric import Identity, Metric
from proponent.methods.auto import gradient_method
from proponent.methods.influence_gradients import single_positions
from proponent.methods.plan import influence_of, timed
from proponent.methods.score import Sizes, prepare, squared_norms, stream
from proponent.rows import Rows
from proponent.store.matrix import MatrixStore
from proponent.task import Task

BATCHES = 2
"""That are timed, after one that warms up."""

MEMBERS = 3
"""Checkpoints at most that a rehearsal goes through."""

TOUCHED = 2**25
"""Bytes of fresh memory that are written to, to see how long that takes."""

QUERIES = 512
"""At most, that are prepared; more take as much longer."""


@dataclass(frozen=True)
class Cost:
    """Seconds: once, and for every training example."""

    fixed: float = 0.0
    each: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.fixed + other.fixed, self.each + other.each)


@dataclass(frozen=True)
class Probe:
    """A captured model with its data.

    Args:
        task, train, query: as for `attribute`.
        capture, sizes: of the task.
        batch: examples captured at once.
        on_disk: whether the scores are streamed to disk.
    """

    task: Task
    train: Rows
    query: Rows
    capture: Capture
    sizes: Sizes
    batch: int
    on_disk: bool

    @classmethod
    def of(cls, task: Task, train: Any, query: Any, batch_size: int | None = None, on_disk: bool = False) -> Probe:
        rows = Rows.of(train)
        with task.watching():
            capture = Capture.of(task, rows)
            sizes = Sizes.of(capture, rows)
        return cls(task, rows, Rows.of(query), capture, sizes, batch_size or sizes.batch(), on_disk)

    @property
    def result_bytes(self) -> int:
        """Of the matrix of scores."""
        return len(self.query) * len(self.train) * self.task.precision.itemsize

    def seconds(self, name: str, options: Mapping[str, Any]) -> float:
        """Predicted for fit and scores of all training examples."""
        cost, given = Cost(), dict(options)
        with self.task.watching():
            metric: Metric = Identity()
            if name in KINDS:
                cost, metric = self._curvature(name, options)
                given |= {"curvature": metric.spectrum, "damping": of_layers(options.get("damping", "auto"))}
            scores = self._scores(metric, cosine=name == "gradcos")
        members = len(options.get("checkpoints") or (1,))
        rehearsed = self._rehearsed(name, given) * members / min(members, MEMBERS)
        further = len(self.train) - len(self._few)
        each = cost.fixed + cost.each * len(self.train) + scores.fixed + scores.each * further
        kept = self._keeping() * further * (members if name == "tracin" else 1) if self.on_disk and further else 0.0
        return rehearsed + members * each + kept + self._writing()

    def _rehearsed(self, name: str, options: Mapping[str, Any]) -> float:
        """Seconds of fit and scores of the first examples, by the first checkpoints."""
        first = {k: v[:MEMBERS] if isinstance(v, list | tuple) else v for k, v in options.items()}
        spec = gradient_method(name, first)

        def run(train: Rows, query: Rows) -> None:
            with tempfile.TemporaryDirectory() as folder:
                spec.fit(self.task, train).score(query, out=Path(folder) / "scores.zarr" if self.on_disk else None)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself will tell
            run(self.train[:2], self.query[:1])  # libraries load on first use
            return timed(lambda: run(self._few, self.query[:QUERIES]))[0]

    def _keeping(self) -> float:
        """Seconds that the scores of a training example take on their way to disk."""
        rows, asked = self.train[: self.batch], self.query[:QUERIES]
        made = np.random.default_rng(0).standard_normal((len(asked), len(rows)), np.float32)
        with tempfile.TemporaryDirectory() as folder:
            store = MatrixStore.open(
                Path(folder) / "scores.zarr",
                asked,
                rows,
                variables=("score",),
                block=len(rows),
                method="plan",
                settings={},
                dtype="float32",
            )
            seconds, _ = timed(lambda: store.write(0, {"score": made}, 0, slice(0, len(asked))))
        return seconds / len(rows) * len(self.query) / len(asked)

    def _writing(self) -> float:
        """Seconds that the pages of the matrix of scores take when they are touched first."""
        touched = min(self.result_bytes, TOUCHED)
        seconds, _ = timed(lambda: np.empty(touched, np.uint8).fill(0))
        return seconds * self.result_bytes / touched

    @property
    def _few(self) -> Rows:
        return self.train[: self.batch * (BATCHES + 1)]

    def _each(self, work: Any) -> float:
        """Seconds per example of work over examples: all but the first batch where there are several."""
        few = self._few
        if len(few) <= self.batch:
            return min(timed(lambda: work(few))[0] for _ in range(2)) / len(few)
        work(few[: self.batch])
        rest = few[self.batch :]
        return timed(lambda: work(rest))[0] / len(rest)

    def _scores(self, metric: Metric, cosine: bool) -> Cost:
        """Beyond what a rehearsal takes."""
        asked = self.query[:QUERIES]
        seconds, prepared = timed(lambda: prepare(self.capture, metric, asked, self.batch))
        scale = len(self.query) / len(asked)

        def run(rows: Rows) -> None:
            for _ in stream(self.capture, prepared, rows, rows.parts(self.batch), 1.0):
                pass

        each = self._each(run)
        if scale > 1:
            bare = self._each(self._captured)
            each = bare + max(0.0, each - bare) * scale
        norms = (
            self._each(lambda rows: squared_norms(self.capture, metric, rows, self.batch, self.task.losses))
            if cosine
            else 0.0
        )
        chunks = -(-len(self.query) // self.sizes.queries(metric.vectors))
        return Cost(seconds * (scale - 1), each * max(1, chunks) + norms)

    def _captured(self, rows: Rows) -> None:
        for at in rows.parts(self.batch):
            self.capture.each(self.task.batch(rows, at), self.task.losses, lambda name, block: None)

    def _curvature(self, name: str, options: Mapping[str, Any]) -> tuple[Cost, InverseFisher]:
        """What is fitted before it is inverted."""
        kind, spec, few = KINDS[name](), influence_of(name, options), self._few
        count = min(enough(kind, self.capture, self.train).examples or len(self.train), len(self.train))
        share = count / len(self.train)
        first = self._each(lambda rows: covariances(kind, self.capture, rows, self.batch, count))
        sums = covariances(kind, self.capture, few, self.batch, count)[0]
        turning, found = timed(lambda: decomposed(kind, sums))
        second = self._each(lambda rows: eigenvalues(kind, self.capture, rows, self.batch, found))
        found = eigenvalues(kind, self.capture, few, self.batch, found)[0]
        blocks = self.capture.gradients(self.task.batch(few, slice(0, 1)), self.task.losses)[1]
        single = single_positions(blocks)
        metric = InverseFisher.of(
            found, of_layers(spec.damping), spec.weight_decay, single, spec.shortcut, spec.query_rank
        )
        return Cost(turning, (first + second) * share), metric
