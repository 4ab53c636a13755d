"""A few batches of the real work of the gradient methods, timed: what grows with the training set is scaled up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from proponent.capture.gradients import Capture
from proponent.curvature.damping import of_layers
from proponent.curvature.fisher import InverseFisher
from proponent.curvature.kinds import KINDS, covariances, decomposed, eigenvalues, enough
from proponent.curvature.metric import Identity, Metric
from proponent.methods.influence_gradients import single_positions
from proponent.methods.plan import influence_of, timed
from proponent.methods.score import Sizes, prepare, squared_norms, stream
from proponent.rows import Rows
from proponent.task import Task

BATCHES = 2
"""That are timed, after one that warms up."""

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
        opened: seconds that looking at the model took.
    """

    task: Task
    train: Rows
    query: Rows
    capture: Capture
    sizes: Sizes
    batch: int
    opened: float

    @classmethod
    def of(cls, task: Task, train: Any, query: Any, batch_size: int | None = None) -> Probe:
        rows = Rows.of(train)
        start = time.perf_counter()
        with task.watching():
            capture = Capture.of(task, rows)
            sizes = Sizes.of(capture, rows)
        opened = time.perf_counter() - start
        return cls(task, rows, Rows.of(query), capture, sizes, batch_size or sizes.batch(), opened)

    @property
    def result_bytes(self) -> int:
        """Of the matrix of scores."""
        return len(self.query) * len(self.train) * self.task.precision.itemsize

    def seconds(self, name: str, options: Mapping[str, Any]) -> float:
        """Predicted for fit and scores of all training examples."""
        with self.task.watching():
            if name in KINDS:
                cost, metric = self._curvature(name, options)
            else:
                cost, metric = Cost(), Identity()
            cost = cost + self._scores(metric, cosine=name == "gradcos")
        members = len(options.get("checkpoints") or (1,))
        return self.opened + members * (cost.fixed + cost.each * len(self.train)) + self._writing()

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
        asked = self.query[:QUERIES]
        prepare(self.capture, metric, asked[:1], self.batch)
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
        return Cost(seconds * scale, each * max(1, chunks) + norms)

    def _captured(self, rows: Rows) -> None:
        for at in rows.parts(self.batch):
            self.capture.each(self.task.batch(rows, at), self.task.losses, lambda name, block: None)

    def _curvature(self, name: str, options: Mapping[str, Any]) -> tuple[Cost, Metric]:
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
        inverting, metric = timed(
            lambda: InverseFisher.of(
                found, of_layers(spec.damping), spec.weight_decay, single, spec.shortcut, spec.query_rank
            )
        )
        return Cost(turning + inverting, (first + second) * share), metric
