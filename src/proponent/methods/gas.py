"""GAS: gradients of unit length, aggregated over the checkpoints of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proponent.capture.blocks import Block
from proponent.curvature.metric import Identity, Metric
from proponent.curvature.queries import Blockwise, Prepared
from proponent.errors import InputError
from proponent.methods.fitted_gradients import FittedGradients
from proponent.methods.tracin import TracIn
from proponent.task import Task


@dataclass(frozen=True)
class GAS:
    """TracIn with every gradient divided by its length, so that examples count that are fitted already.

    score[q, i] = Σ_c η_c cos(−∇m_q(θ_c), ∇ℓ_i(θ_c)),  or with `by_layer` Σ_c η_c Σ_layers cos of the layer's gradients

    A loss that is small has a small gradient whatever the example has taught the model: plain gradient products pass over
    it, such as over the poisons of an attack that has worked.

    >>> import torch, proponent as pp
    >>> model = torch.nn.Linear(3, 2)
    >>> train = torch.randn(6, 3), torch.randint(2, (6,))
    >>> scores = GAS([model.state_dict()], learning_rates=0.5).fit(pp.Task(model), train).score(train).dataset.score
    >>> bool(abs(scores.values.diagonal() - 0.5).max() < 1e-5)
    True

    Args:
        checkpoints, learning_rates, batch_size: as in `TracIn`.
        by_layer: gradients are divided by their length layer by layer (GAS-L).

    Raises:
        InputError: as `TracIn`.

    Source: Hammoudeh & Lowd, Identifying a training-set attack's target using renormalized influence estimation, CCS 2022.
    """

    checkpoints: Sequence[str | Path | Mapping[str, Any]]
    learning_rates: float | Sequence[float] | None = None
    by_layer: bool = False
    batch_size: int | None = None

    def fit(self, task: Task, train: Any) -> FittedGradients:
        """As `TracIn.fit`."""
        fitted = TracIn(self.checkpoints, self.learning_rates, self.batch_size).fit(task, train)
        metric: Metric = ByLayer() if self.by_layer else Identity()
        return replace(
            fitted,
            method="GAS-L" if self.by_layer else "GAS",
            settings={**fitted.settings, "by_layer": self.by_layer},
            unit="Σ learning rate × cosine of the gradients over checkpoints: a ranking",
            members=[replace(m, metric=metric) for m in fitted.members],
            cosine=not self.by_layer,
        )


@dataclass(frozen=True)
class ByLayer(Blockwise):
    """Each block's gradients as vectors of length 1; a gradient of zero stays so.

    Args:
        inner: in what they are measured.
    """

    inner: Identity = field(default_factory=Identity)

    @property
    def vectors(self) -> int:
        return self.inner.vectors

    def directions(self, blocks: Mapping[str, Block]) -> tuple[dict[str, Tensor], None]:
        raise InputError("a perturbation of cosines", "scores that are sums of inner products", "use TracIn")

    def prepare(self, name: str, query: Block) -> Prepared:
        return OverLengths(name, self.inner, self.inner.prepare(name, query), length(self.inner, name, query))

    def norm2(self, name: str, block: Block) -> Tensor:
        return self.inner.norm2(name, block).sign()


@dataclass(frozen=True)
class OverLengths:
    """One block of queries.

    Args:
        lengths: (q,) of their gradients.
    """

    name: str
    metric: Identity
    query: Prepared
    lengths: Tensor

    def add(self, block: Block, out: Tensor) -> None:
        made = torch.zeros_like(out)
        self.query.add(block, made)
        out.add_(made.div_(self.lengths[:, None]).div_(length(self.metric, self.name, block)))


def length(metric: Identity, name: str, block: Block) -> Tensor:
    """(b,) of each example's gradient; the smallest number instead of zero."""
    norm2 = metric.norm2(name, block)
    return norm2.clamp(min=torch.finfo(norm2.dtype).tiny).sqrt()
