"""Gradient dot products and cosines: the two plainest scores that a trained model gives."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from proponent.capture.gradients import Capture
from proponent.curvature.metric import Identity
from proponent.methods.fitted_gradients import FittedGradients, Member
from proponent.methods.score import Sizes
from proponent.rows import Rows
from proponent.task import Task


@dataclass(frozen=True)
class GradDot:
    """How alike the gradients of a training example and of a query are.

    score[q, i] = −⟨∇m_q, ∇ℓ_i⟩,  which is ⟨∇ℓ_q, ∇ℓ_i⟩ where the measurement is minus the loss

    One gradient step on the training example changes the measurement by learning rate × score: a ranking, not a
    prediction of what removing the example does.

    >>> import torch, proponent as pp
    >>> task = pp.Task(torch.nn.Linear(3, 2), loss="cross_entropy")
    >>> train = torch.randn(6, 3), torch.randint(2, (6,))
    >>> GradDot().fit(task, train).score(train).shape
    (6, 6)

    Args:
        batch_size: training examples captured at once; found from their size by default. No result depends on it.
        engine: "factors" takes every training example's gradient once, for all queries. "jvp" differentiates the training
            losses along each query's gradient: one forward pass over the training examples per query and no backward pass.
            It is for a few queries of a model whose gradients would be taken one by one, and for checking "factors".

    Raises:
        InputError: the data are not what the loss wants; said before the long loop.
        UnsupportedModel: no example has a gradient of its own; or, with "jvp", the model no forward derivative.

    Source: Charpiat et al., Input similarity from the neural network perspective, NeurIPS 2019.
    """

    batch_size: int | None = None
    engine: Literal["factors", "jvp"] = "factors"

    def fit(self, task: Task, train: Any) -> FittedGradients:
        """Find out how the model's gradients are taken, and check it on two examples.

        Args:
            task: model, loss and measurement.
            train: (inputs …, targets), a mapping of arrays, a dataset, a DataLoader or Examples.
        """
        return fitted(
            self,
            task,
            train,
            "GradDot",
            "⟨gradients⟩: change of the measurement per learning rate; a ranking",
            engine=self.engine,
        )


@dataclass(frozen=True)
class GradCos:
    """The cosine between the gradients of a training example and of a query.

    score[q, i] = −⟨∇m_q, ∇ℓ_i⟩ / (‖∇m_q‖ ‖∇ℓ_i‖)

    Without the norms no example stands behind every query just because its gradient is long.

    >>> import torch, proponent as pp
    >>> task = pp.Task(torch.nn.Linear(3, 2), loss="cross_entropy")
    >>> train = torch.randn(6, 3), torch.randint(2, (6,))
    >>> scores = GradCos().fit(task, train).score(train).dataset.score
    >>> bool(abs(scores.values.diagonal() - 1).max() < 1e-5)
    True

    Args:
        batch_size: training examples captured at once; found from their size by default.

    Source: Charpiat et al., Input similarity from the neural network perspective, NeurIPS 2019.
    """

    batch_size: int | None = None

    def fit(self, task: Task, train: Any) -> FittedGradients:
        """As `GradDot.fit`."""
        return fitted(self, task, train, "GradCos", "cosine of the gradients: a ranking", cosine=True)


def fitted(
    spec: Any, task: Task, train: Any, method: str, unit: str, cosine: bool = False, engine: str = "factors"
) -> FittedGradients:
    """One model, gradients compared as they are."""
    start, rows = time.perf_counter(), Rows.of(train)
    with task.watching():
        capture = Capture.of(task, rows)
        sizes = Sizes.of(capture, rows)
    return FittedGradients(
        method=method,
        settings=task.settings() | {"engine": engine},
        unit=unit,
        train=rows,
        members=[Member(capture, Identity(), sizes)],
        cosine=cosine,
        batch=spec.batch_size,
        engine=engine,
        seconds=time.perf_counter() - start,
    )
