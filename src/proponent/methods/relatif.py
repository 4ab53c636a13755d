"""RelatIF and renormalised influence: scores over the length of the training example's effect, or of its gradient."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from proponent.curvature.lengths import squared
from proponent.curvature.metric import Identity, Metric
from proponent.errors import InputError, UnsupportedModel, did_you_mean
from proponent.methods.fitted_gradients import FittedGradients
from proponent.methods.influence import Influence
from proponent.task import Task

OVER = ("parameters", "loss", "gradient")


@dataclass(frozen=True)
class RelatIF:
    """Influence relative to how much a training example moves the model as a whole.

    score[q, i] = −∇m_qᵀ H⁻¹ ∇ℓ_i / (n · length_i)

    Outliers and mislabelled examples have long gradients, and stand behind every query. Over that length those come first
    that matter to this query in particular.

    >>> import torch, proponent as pp
    >>> task = pp.Task(torch.nn.Linear(3, 2))
    >>> train = torch.randn(6, 3), torch.randint(2, (6,))
    >>> plain, relative = (spec.fit(task, train).score(train).dataset.score for spec in (pp.Influence(), RelatIF()))
    >>> bool((plain * relative >= 0).all())  # the lengths are positive
    True

    Args:
        influence: which influence: an `Influence(…)`, or another method with a metric, such as `GradDot()`.
        over: the length: "parameters" is ‖H⁻¹∇ℓ_i‖, how far removing the example moves the parameters (θ-RelatIF); "loss" is
            √(∇ℓ_iᵀ H⁻¹ ∇ℓ_i), how much it changes the losses (ℓ-RelatIF); "gradient" is ‖∇ℓ_i‖ (renormalised influence).

    Raises:
        UnsupportedModel: not a task, or a curvature whose inverse has no square at hand.

    Source: Barshan et al., RelatIF: identifying explanatory training examples via relative influence, AISTATS 2020;
    Hammoudeh & Lowd, Identifying a training-set attack's target using renormalized influence estimation, CCS 2022.
    """

    influence: Any = field(default_factory=Influence)
    over: Literal["parameters", "loss", "gradient"] = "parameters"

    def __post_init__(self) -> None:
        if self.over not in OVER:
            raise InputError(f"over={self.over!r}", f"one of {', '.join(OVER)}", did_you_mean(str(self.over), OVER))

    def fit(self, task: Task, train: Any) -> FittedGradients:
        """As `Influence.fit` of a task."""
        fitted = self.influence.fit(task, train)
        if not isinstance(fitted, FittedGradients) or fitted.cosine:
            raise UnsupportedModel(
                f"relative scores of {type(fitted).__name__}",
                "influence on a task, as a product of gradients",
                "pass a Task, with Influence(…) or GradDot()",
            )
        if self.over == "parameters":
            for member in fitted.members:
                squared(member.metric)
        return replace(
            fitted,
            method=f"{fitted.method}, relative to {self.over}",
            settings={**fitted.settings, "over": self.over},
            unit=f"influence over the length of the training example's effect ({self.over}): a ranking",
            relative={"parameters": squared, "loss": itself, "gradient": plain}[self.over],
        )


def itself(metric: Metric) -> Metric:
    """Its norm is √(gᵀ P g)."""
    return metric


def plain(metric: Metric) -> Metric:
    """Its norm is ‖g‖."""
    return Identity()
