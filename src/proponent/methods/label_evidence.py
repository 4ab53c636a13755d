"""What all other training examples say of an example's label, through a trained network's gradients."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from proponent.attribution import Values
from proponent.batches import call, target_of, with_target
from proponent.capture.blocks import Dense
from proponent.capture.forward_mode import outputs_along
from proponent.capture.one_by_one import gradient_sum
from proponent.curvature.damping import Damping
from proponent.curvature.kinds import EKFAC
from proponent.errors import InputError, UnsupportedModel
from proponent.losses import CrossEntropy
from proponent.methods.fitted_gradients import FittedGradients, Member
from proponent.methods.influence import Influence
from proponent.rows import Rows
from proponent.task import Task

LARGEST = 20.0
"""β is looked for up to here, on evidence of standard deviation 1."""


@dataclass(frozen=True)
class LabelEvidence:
    """The loss of an example's label under what the other training examples say of it: large for wrong labels.

    z_i = J_i (F + λ)⁻¹ Σ_{j ≠ i} J_jᵀ r_j,  r_j = e(y_j) − 1/C,  value_i = −log softmax(β z_i)[y_i]

    J is the Jacobian of the logits, F = E[Jᵀ r rᵀ J] as EK-FAC, β of largest likelihood; a second step adds the same with
    r_j = e(y_j) − softmax(β z_j). The residuals are those of the uniform prediction, so that an example which the network
    has memorised still has its say, and has none about itself: memorised wrong labels, which have a small loss, are found
    too. The own term J_i (F + λ)⁻¹ J_iᵀ is taken as the multiple of I − 11ᵀ/C that the self-influence gives.

    >>> import torch, proponent as pp
    >>> x = torch.cat([torch.randn(20, 2) - 3, torch.randn(20, 2) + 3])
    >>> y = torch.tensor([0] * 20 + [1] * 20)
    >>> y[0] = 1
    >>> values = LabelEvidence().fit(pp.Task(torch.nn.Linear(2, 2)), (x, y)).values()
    >>> values.highest(1)["id"].tolist()
    [0]

    Args:
        damping: λ, as for `Influence`.
        steps: of the sum above; no gain was found beyond two.
        batch_size: training examples captured at once; found from their size by default.

    Raises:
        UnsupportedModel: the task is not a classification with one softmax for each example.

    Source: ours; benchmarks/mislabel.py measures it beside losses and self-influences.
    """

    damping: float | str | Damping = "auto"
    steps: int = 2
    batch_size: int | None = None

    def fit(self, task: Task, train: Any) -> FittedLabelEvidence:
        """Fit the curvature.

        Args:
            task: of a trained classifier, with loss "cross_entropy".
            train: training examples, as for `Influence.fit`.
        """
        start, rows = time.perf_counter(), Rows.of(train)
        labels, classes = _labels(task, rows)
        residuals = F.one_hot(labels, classes).to(task.precision) - 1 / classes
        pull = replace(task, loss=_pull, measurement="loss")
        spec = Influence(EKFAC(fisher="empirical"), damping=self.damping, shortcut=0.0, batch_size=self.batch_size)
        fitted = spec.fit(pull, _with(rows, residuals))
        return FittedLabelEvidence(self, task, rows, labels, residuals, fitted, time.perf_counter() - start)


@dataclass(frozen=True)
class FittedLabelEvidence:
    """Label evidence around a trained network.

    Args:
        spec, task, train: what it was made of.
        labels: (n,) classes.
        residuals: (n, C) e(y) − 1/C.
        fitted: influence of −Σ_c r_c logit_c, a loss whose gradient is Jᵀ r whatever the logits.
        seconds: that the fit took.
    """

    spec: LabelEvidence
    task: Task
    train: Rows
    labels: Tensor = field(repr=False)
    residuals: Tensor = field(repr=False)
    fitted: FittedGradients = field(repr=False)
    seconds: float = 0.0

    def values(self) -> Values:
        """−log softmax(β z_i)[y_i] of every training example; the highest are the likeliest to be wrong."""
        start, classes = time.perf_counter(), self.residuals.shape[1]
        # The residual's square is 1 − 1/C, and the self-influence carries 1/n.
        own = torch.from_numpy(self.fitted.self_influence().value) * len(self.train) / (1 - 1 / classes)
        residuals, z = self.residuals, torch.zeros_like(self.residuals, dtype=torch.float64)
        hot = F.one_hot(self.labels, classes).double()
        for _ in range(self.spec.steps):
            said = self._said(residuals) - own[:, None] * residuals
            z = _scaled(said, self.labels, onto=z)
            residuals = (hot - z.softmax(1)).to(self.residuals.dtype)
        return Values.of(
            F.cross_entropy(z, self.labels, reduction="none").numpy(),
            train=self.train,
            method="LabelEvidence",
            unit="loss of the label under the other examples' evidence; a ranking",
            attributes={
                "settings": self.task.settings() | {"steps": self.spec.steps, "damping": str(self.spec.damping)},
                "seconds": round(self.seconds + time.perf_counter() - start, 3),
            },
        )

    def _said(self, residuals: Tensor) -> Tensor:
        """(n, C): J_i (F + λ)⁻¹ Σ_j J_jᵀ r_j, by one backward pass over the training set and one in forward mode."""
        member, rows = self.fitted.members[0], _with(self.train, residuals)
        task, batch = member.capture.task, self.fitted.batch or member.sizes.batch()
        with member.looked_at():
            parts = rows.parts(batch)
            total = gradient_sum(task, (task.batch(rows, at) for at in parts), task.losses)
            along = {name: -u for name, u in _preconditioned(member, rows, total).items()}
            made = [outputs_along(task, along, task.batch(rows, at), call) for at in parts]
        return torch.cat(made).double().cpu()


def _preconditioned(member: Member, rows: Rows, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(F + λ)⁻¹ times one gradient, by parameter."""
    _, blocks = member.capture.gradients(member.capture.task.batch(rows, slice(0, 1)), member.capture.task.losses)
    own = {k: Dense(b.names, tuple(gradient[n].flatten()[None] for n in b.names)) for k, b in blocks.items()}
    return {name: rows[0] for name, rows in member.metric.directions(own)[0].items()}


def _pull(net: Any, batch: Any) -> Tensor:
    return -(target_of(batch) * call(net, batch)).sum(1)


def _with(rows: Rows, targets: Tensor) -> Rows:
    """The same examples with other targets."""

    return replace(rows, take=lambda a, b: with_target(rows.take(a, b), targets[a:b]))


def _labels(task: Task, rows: Rows) -> tuple[Tensor, int]:
    """(n,) labels, and the number of classes."""
    if not isinstance(task._loss, CrossEntropy):
        raise UnsupportedModel(
            f"the loss {task.settings()['loss']}", "loss='cross_entropy'", "label evidence is about classes"
        )
    labels = torch.cat([target_of(b) for b in rows.batches(4096, "cpu")])
    with task.watching(), torch.no_grad():
        shape = call(task.net, task.batch(rows, slice(0, 1))).shape
    if labels.ndim != 1 or len(shape) != 2:
        raise UnsupportedModel(
            f"labels of shape {tuple(labels.shape)} and outputs of shape {tuple(shape)}",
            "one label and one row of logits for each example",
            "pass a classifier of whole examples",
        )
    if bool(((labels < 0) | (labels >= shape[1])).any()):
        raise InputError("labels that are no classes", f"0 … {shape[1] - 1}", "leave such examples out")
    return labels, shape[1]


def _scaled(z: Tensor, labels: Tensor, onto: Tensor) -> Tensor:
    """onto + β z, β > 0 of largest likelihood of the labels."""
    z = z / z.std().clamp(min=1e-300)

    def loss(beta: float) -> float:
        return float(F.cross_entropy(onto + beta * z, labels))

    return onto + float(minimize_scalar(loss, bounds=(0, LARGEST), method="bounded").x) * z
