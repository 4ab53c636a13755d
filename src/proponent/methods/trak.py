"""TRAK: a ridge regression on the margins' gradients, or on random projections of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proponent.attribution import Attribution, Values
from proponent.capture.blocks import Block, Factors
from proponent.capture.gradients import Capture
from proponent.capture.weights import weights_mark
from proponent.curvature.damping import Damping
from proponent.curvature.projection import projection_of
from proponent.errors import InputError, ProponentWarning
from proponent.methods.fitted_gradients import set_aside
from proponent.methods.score import Sizes
from proponent.methods.sinks import PARTIAL, Disk, Memory, Sink
from proponent.methods.trak_models import Features, Fitted, Products, margins_of, projected, unprojected
from proponent.progress import track
from proponent.rows import Rows
from proponent.store.matrix import MEMORY_LIMIT, MatrixStore, require_memory
from proponent.task import Task

RIDGE = 1.0
"""Of the mean ‖ϕ_i‖², where none is given."""

UNIT = "weight in a linear model of the query's margin: a ranking"

QUERIES = 2**27
"""Numbers of query features, or of products of queries with training examples, held at once."""

DEARER = 4.0
"""Times the operations of a projection up to which "auto" does without one."""


@dataclass(frozen=True)
class TRAK:
    """Each training example's weight in a linear model of the query's margin, with gradients as features.

    score[q, i] = [mean over models of ϕ_q (ΦᵀΦ + λ)⁻¹ ϕ_i] · [mean over models of 1 − p_i],
    ϕ = P ∇f,  f = log p/(1 − p) of the target,  P a random projection, or 1

    The measurement is the query's margin f, whatever the task's own is. Several models, trained with other seeds or on
    random halves, make it much better; the ridge λ matters as much.

    >>> import torch, proponent as pp
    >>> task = pp.Task(torch.nn.Linear(3, 2), loss="cross_entropy")
    >>> train = torch.randn(6, 3), torch.randint(2, (6,))
    >>> scores = TRAK().fit(task, train).score(train).dataset.score
    >>> bool((scores.values.diagonal() > 0).all())  # each example raises its own margin
    True

    Args:
        projection: "gaussian", "rademacher", "sjlt", "fjlt" or "kronecker", or one of these with settings, from
            `proponent.curvature.projection`. None compares whole gradients: exact, through the (n, n) matrix of the training
            examples' products, for up to about 15,000 of them. "auto" does so where it is not much dearer than a projection,
            and takes "sjlt" otherwise.
        dimension: k, the numbers that a gradient is projected to.
        ridge: λ as a multiple of the mean ‖ϕ_i‖², which depends neither on n nor, much, on k; "auto" is 1. Or a
            Damping, whose "mean" is that too.
        seed: of the projection; every model has another.
        batch_size: training examples captured at once; found from their size by default.

    Raises:
        InputError: a ridge of zero, a loss without a margin, or too many training examples for projection=None.

    Source: Park et al., TRAK: attributing model behavior at scale, ICML 2023.
    """

    projection: Any = "auto"
    dimension: int = 4096
    ridge: float | str | Damping = "auto"
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise InputError(f"dimension={self.dimension}", "at least one number", "leave the default of 4,096")
        if self.projection not in ("auto", None):
            projection_of(self.projection)
        ridge_of(self.ridge)

    def fit(self, task: Task | Sequence[Task], train: Any) -> FittedTRAK:
        """Look at every training example once with each model.

        Args:
            task: model and loss; or several, for models that were trained in the same way.
            train: as in `GradDot.fit`.
        """
        start, rows = time.perf_counter(), Rows.of(train)
        tasks = [task] if isinstance(task, Task) else list(task)
        if not tasks:
            raise InputError("no task", "a task, or one for each model", "pass pp.Task(model, loss=…)")
        if self.projection is None:
            require_gram(len(rows), len(tasks))
        captured = [margins_of(each, rows) for each in tasks]
        batches = [self.batch_size or sizes.batch() for _, sizes in captured]
        models = [
            self._model(*one, rows, batch, self.seed + k, len(tasks))
            for k, (one, batch) in enumerate(zip(captured, batches, strict=True))
        ]
        doubt = torch.stack([doubts(*each, rows) for each in zip(tasks, batches, strict=True)]).mean(0)
        directions = [m.ridge.effective_dimension(self.seed) for m in models]
        self._require_directions(models, float(np.mean(directions)))
        return FittedTRAK(
            settings=tasks[0].settings() | {"measurement": "margin", "models": len(tasks)} | self._settings(),
            train=rows,
            tasks=tasks,
            models=models,
            doubt=doubt,
            block=min(batches),
            seconds=time.perf_counter() - start,
            facts={"effective_dimension": round(float(np.mean(directions)), 1)},
        )

    def _model(self, capture: Capture, sizes: Sizes, rows: Rows, batch: int, seed: int, models: int) -> Fitted:
        task = capture.task
        with task.watching():
            _, blocks = capture.gradients(task.batch(rows, slice(0, 1)), task.losses)
        wish = self.projection
        if wish == "auto":
            wish = None if fits(len(rows), models) and exact_is_cheap(len(rows), self.dimension, blocks) else "sjlt"
        if wish is None:
            return unprojected(Products(capture, rows, batch, sizes), self._strength)
        sketch = projection_of(wish).sketch(self.dimension, seed, blocks)
        keep = 8 * len(rows) * sketch.dimension <= MEMORY_LIMIT
        return projected(Features(capture, sketch, batch), rows, self._strength, keep)

    def _strength(self, mean: float) -> float:
        """λ."""
        return ridge_of(self.ridge).of(torch.tensor([max(mean, 1e-30)], dtype=torch.float64))

    def _settings(self) -> dict[str, Any]:
        wish = self.projection if isinstance(self.projection, str | None) else repr(self.projection)
        ridge = vars(ridge_of(self.ridge))
        return {"projection": wish, "dimension": self.dimension, "ridge": ridge, "seed": self.seed}

    def _require_directions(self, models: Sequence[Fitted], directions: float) -> None:
        """Projections keep the ridge's directions apart where they have a few times as many numbers."""
        k = min((m.dimension for m in models if m.dimension is not None), default=None)
        if k is None or directions <= k / 2:
            return
        warnings.warn(
            f"gradients projected to {k:,} numbers, of which the ridge leaves {directions:,.0f}: they have more directions "
            "than a projection of this dimension keeps apart; raise dimension=… or ridge=…, or pass projection=None",
            ProponentWarning,
            stacklevel=3,
        )


@dataclass(frozen=True)
class FittedTRAK:
    """Scores of all training examples for any queries.

    Args:
        settings: what it was made with, kept with every result.
        train: the training examples.
        tasks: one for each model.
        models: each with its own Gram matrix.
        doubt: (n,) mean over models of 1 − p_i.
        block: training examples at once.
        seconds: that the fit took.
        facts: kept with every result: the effective dimension tr G(G + λ)⁻¹.
    """

    settings: Mapping[str, Any]
    train: Rows
    tasks: Sequence[Task]
    models: Sequence[Fitted]
    doubt: Tensor
    block: int
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
        chunks = queries.parts(max(1, QUERIES // max(m.width for m in self.models)))
        if out is not None:
            self._fill(queries, chunks, Disk(self._store(queries, out, len(chunks)), len(chunks)))
            return Attribution.load(out)
        require_memory(len(queries), len(self.train), 1)
        memory = Memory(np.empty((len(queries), len(self.train)), self._precision), len(chunks))
        self._fill(queries, chunks, memory)
        return Attribution.of(
            memory.score,
            query=queries,
            train=self.train,
            method="TRAK",
            unit=UNIT,
            attributes=self._facts(start) | set_aside(memory.score, queries, self.train),
        )

    def self_influence(self) -> Values:
        """[mean over models of ϕ_i (ΦᵀΦ + λ)⁻¹ ϕ_i] · [mean of 1 − p_i]: large for memorised and for odd ones."""
        start = time.perf_counter()
        leverage = torch.stack([m.leverages().cpu() for m in self.models]).mean(0)
        value = (leverage * self.doubt).double().numpy()
        return Values.of(
            value,
            train=self.train,
            method="TRAK, self-influence",
            unit=UNIT,
            attributes=self._facts(start) | set_aside(value, None, self.train),
        )

    def _fill(self, queries: Rows, chunks: Sequence[slice], sink: Sink) -> None:
        weight, turn = self.doubt / len(self.models), 0
        for model in self.models:
            for chunk in chunks:
                missing = sink.missing(turn, self.train.parts(self.block))
                made = model.scores(queries[chunk], missing) if missing else iter(())
                for at, scores in track(made, "TRAK: training examples", total=len(missing)):
                    sink.add(turn, chunk, at, scores.cpu() * weight[at])
                turn += 1

    def _store(self, queries: Rows, out: str | Path, chunks: int) -> MatrixStore:
        return MatrixStore.open(
            out,
            queries,
            self.train,
            variables=("score",) if len(self.models) == 1 else ("score", PARTIAL),
            block=self.block,
            method="TRAK",
            settings={**self.settings, "weights": [weights_mark(task) for task in self.tasks]},
            rounds=chunks * len(self.models),
            dtype=self._precision,
            unit=UNIT,
            facts=self.facts,
        )

    @property
    def _precision(self) -> str:
        return str(self.tasks[0].precision).removeprefix("torch.")

    def _facts(self, start: float) -> dict[str, Any]:
        seconds = round(self.seconds + time.perf_counter() - start, 3)
        return {**self.facts, "settings": dict(self.settings), "seconds": seconds}


def ridge_of(wish: float | str | Damping) -> Damping:
    """A Damping from a multiple of the mean, "auto" or itself."""
    if isinstance(wish, str) and wish == "auto":
        return Damping(RIDGE, scale="mean")
    made = Damping(float(wish), scale="mean") if isinstance(wish, int | float) else wish
    if not isinstance(made, Damping):
        raise InputError(f"ridge {wish!r}", "'auto', a number or a Damping", "pass ridge='auto'")
    if made.value == 0:
        raise InputError(
            "a ridge of zero",
            "a positive one: without it the linear model fits the training examples' noise",
            "pass ridge='auto', or a multiple of the mean ‖ϕ‖² such as 1",
        )
    return made


def doubts(task: Task, batch: int, rows: Rows) -> Tensor:
    """(n,) 1 − p of each example's target: how strongly its loss follows its margin, −∂ℓ/∂f."""
    own = replace(task, measurement="probability")
    with own.watching(), torch.no_grad():
        return 1 - torch.cat([own.measurements(own.batch(rows, at)) for at in rows.parts(batch)]).cpu()


def fits(n: int, models: int) -> bool:
    """Whether the products of n training examples, and a factor of them for each model, are held in memory."""
    return 4 * n * n * (models + 1) <= MEMORY_LIMIT


def require_gram(n: int, models: int) -> None:
    """Refuse training examples whose products, and their factor, do not fit in memory."""
    if not fits(n, models):
        most = int((MEMORY_LIMIT / (4 * (models + 1))) ** 0.5)
        raise InputError(
            f"{n:,} training examples and {models} models without a projection",
            f"at most {most:,}: their ({n:,}, {n:,}) products and each model's factor of them are held in memory",
            "pass projection='sjlt', or fewer models",
        )


def exact_is_cheap(n: int, k: int, blocks: Mapping[str, Block]) -> bool:
    """Whether the (n, n) products of whole gradients are taken with few more operations than a projection and its Gram."""
    sizes = sum(sum(b.sizes) for b in blocks.values())
    exact = n * n * sum(min(_ghost(b), sum(b.sizes)) for b in blocks.values()) + n**3 / 3
    return exact <= DEARER * (n * sizes + n * n * k if n <= k else n * sizes + n * k * k + k**3 / 3)


def _ghost(block: Block) -> float:
    """Multiplications of a product from factors."""
    return block.positions**2 * sum(block.sides) if isinstance(block, Factors) else float("inf")
