"""Representer points: a prediction as a sum over training examples, through the last linear layer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from proponent.attribution import Attribution, Values
from proponent.convex.curvature import curvature_of
from proponent.convex.optimum import find_optimum
from proponent.convex.problem import Problem
from proponent.errors import InputError
from proponent.methods.last_layer import LastLayer
from proponent.rows import Rows
from proponent.store.matrix import require_memory
from proponent.task import Task

Array = np.ndarray[Any, np.dtype[Any]]

UNIT = "share of the last layer's logit of the query's class: shares add up to it"


@dataclass(frozen=True)
class RepresenterPoints:
    """A prediction as a sum over training examples, through the last linear layer.

    score[q, i] = α_i φ(x_i)·φ(x_q),  α_i = −(1/λn) ∂ℓ_i/∂logit,  so that Σ_i score[q, i] = logit(q)

    φ are the layer's inputs, with a one for its bias, and the layer is fitted anew on them: only at the minimum of the mean
    loss with weight decay λ are its weights this sum. The logit is that of the query's label, or where it has none of the
    class that is predicted; with one output and "binary_cross_entropy" it is the log-odds of that label.

    >>> import numpy as np, torch, proponent as pp
    >>> task = pp.Task(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)))
    >>> train = torch.randn(20, 3), torch.randint(2, (20,))
    >>> fitted = RepresenterPoints(l2=0.01).fit(task, train)
    >>> logits = fitted.logits(train)[np.arange(20), train[1]]
    >>> bool(np.allclose(fitted.score(train).dataset.score.sum("train"), logits, atol=1e-6))
    True

    Args:
        l2: weight decay λ of the re-fitted last layer, on the mean loss, of its bias too; positive.
        layer: name of the last linear layer; found by itself where the model ends in one.
        jacobian: no fit until the minimum but one Newton step from the weights as they are, W′ = W − H⁻¹∇F, each example
            with its part of it: score[q, i] = (1/n) [W − H⁻¹(∇ℓ_i + λW)] φ(x_q) at the class, whose sum is the logit after
            that step (RPS-LJE). The shares are smaller for examples that are merely far from being fitted.

    Raises:
        NotConverged: the re-fit stopped short of the minimum; says where, and what to change.
        UnsupportedModel: the model does not end in a linear layer, or the loss is not convex in its outputs.

    Source: Yeh et al., Representer point selection for explaining deep neural networks, NeurIPS 2018; Sui et al., Representer
    point selection via local Jacobian expansion for post-hoc classifier explanation, NeurIPS 2021.
    """

    l2: float = 0.01
    layer: str | None = None
    jacobian: bool = False

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise InputError(f"l2={self.l2!r}", "a positive weight decay: weights are a sum with 1/l2", "pass l2=0.01")

    def fit(self, task: Task, train: Any) -> FittedRepresenterPoints:
        """One forward pass over the training examples, and the fit of the last layer, in double precision.

        Args:
            task: model and loss.
            train: as in `GradDot.fit`.
        """
        start, rows = time.perf_counter(), Rows.of(train)
        layer = LastLayer.of(task, rows, self.layer)
        features, targets = layer.features(rows)
        if targets is None:
            raise InputError("training examples without targets", "one for each", "pass (inputs, targets)")
        problem = layer.problem(features, targets, self.l2)
        expansion = Step.of(problem, layer.weights) if self.jacobian else Stationary.of(problem, layer.weights)
        return FittedRepresenterPoints(
            method="RepresenterPoints, Jacobian" if self.jacobian else "RepresenterPoints",
            settings=task.settings() | {"l2": self.l2, "layer": layer.name, "jacobian": self.jacobian},
            train=rows,
            layer=layer,
            expansion=expansion,
            seconds=time.perf_counter() - start,
            facts={
                "largest_change_of_a_logit": round(
                    float(np.abs(features @ (expansion.weights - layer.weights).T).max()), 4
                )
            },
        )


class Expansion(Protocol):
    """The last layer's weights as a sum over training examples.

    Args:
        problem: that they solve.
        weights: (c, d).
    """

    @property
    def problem(self) -> Problem: ...

    @property
    def weights(self) -> Array: ...

    def shares(self, features: Array, which: Array, sign: Array) -> Array:
        """(q, n) of sign_q · logit_which(q) at features (q, d)."""
        ...


@dataclass(frozen=True)
class Stationary:
    """At the minimum λW = −Σ_i s_i ∂ℓ_i/∂logits φ_iᵀ.

    Args:
        alpha: (n, c) −s_i ∂ℓ_i/∂logits / λ.
    """

    problem: Problem
    weights: Array
    alpha: Array

    @classmethod
    def of(cls, problem: Problem, start: Array) -> Stationary:
        optimum = find_optimum(problem, start)
        return cls(problem, optimum.theta, -optimum.gradient / problem.penalty[0])

    def shares(self, features: Array, which: Array, sign: Array) -> Array:
        return np.asarray((features @ self.problem.x.T) * self.alpha.T[which] * sign[:, None])


@dataclass(frozen=True)
class Step:
    """One Newton step: W′ = Σ_i (W/n − H⁻¹(s_i ∇ℓ_i + λW/n)).

    Args:
        before: (c, d) the weights that it starts from.
    """

    problem: Problem
    weights: Array
    before: Array

    @classmethod
    def of(cls, problem: Problem, start: Array) -> Step:
        logits = problem.logits(start)
        gradient = problem.gradient(start, logits).reshape(-1, 1)
        step = _curvature(problem, logits).solve(gradient).reshape(start.shape)
        return cls(problem, start - step, start)

    def shares(self, features: Array, which: Array, sign: Array) -> Array:
        problem, n = self.problem, self.problem.rows
        logits = problem.logits(self.before)
        along = np.zeros((len(features), problem.outputs, problem.features))
        along[np.arange(len(features)), which] = features * sign[:, None]
        solved = _curvature(problem, logits).solve(along.reshape(len(features), -1).T)
        pull = problem.weight[:, None] * problem.loss.gradient(logits, problem.y)
        moved = np.einsum("icq,ic->qi", problem.logits_of_columns(solved), pull, optimize=True)
        whole = along.reshape(len(features), -1) @ self.before.ravel()
        decayed = solved.T @ (problem.penalty * self.before).ravel()
        return np.asarray((whole - decayed)[:, None] / n - moved)


def _curvature(problem: Problem, logits: Array) -> Any:
    weighted = problem.weight[:, None, None] * problem.loss.hessian(logits, problem.y)
    return curvature_of(problem, weighted, problem.penalty)


@dataclass(frozen=True)
class FittedRepresenterPoints:
    """Shares of all training examples in the last layer's logits.

    Args:
        method: its name.
        settings: what it was made with, kept with every result.
        train: the training examples.
        layer: the last layer.
        expansion: its weights as a sum over the training examples.
        seconds: that the fit took.
        facts: kept with every result: how far the new weights move a training example's logit.
    """

    method: str
    settings: Mapping[str, Any]
    train: Rows
    layer: LastLayer
    expansion: Expansion
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def logits(self, query: Any) -> Array:
        """(q, c) of the re-fitted layer."""
        return self.layer.features(Rows.of(query))[0] @ self.expansion.weights.T

    def score(self, query: Any) -> Attribution:
        """Shares of all training examples in each query's logit.

        Args:
            query: queries, in the same form as the training examples; or without targets, as inputs alone.
        """
        start, queries = time.perf_counter(), Rows.of(query)
        require_memory(len(queries), len(self.train), 2)
        features, targets = self.layer.features(queries)
        which, sign = self.layer.signs(targets, features @ self.expansion.weights.T)
        return Attribution.of(
            self.expansion.shares(features, which, sign),
            query=queries,
            train=self.train,
            method=self.method,
            unit=UNIT,
            attributes=self._facts(start),
        )

    def self_influence(self) -> Values:
        """Each training example's share in its own logit: large where it is fitted by itself."""
        start = time.perf_counter()
        x, (_, targets) = self.expansion.problem.x, self.layer.features(self.train)
        which, sign = self.layer.signs(targets, x @ self.expansion.weights.T)
        step = max(1, 2**24 // len(x))
        own = [
            self.expansion.shares(x[at : at + step], which[at : at + step], sign[at : at + step]).diagonal(at)
            for at in range(0, len(x), step)
        ]
        return Values.of(
            np.concatenate(own),
            train=self.train,
            method=f"{self.method}, self-influence",
            unit=UNIT,
            attributes=self._facts(start),
        )

    def _facts(self, start: float) -> dict[str, Any]:
        seconds = round(self.seconds + time.perf_counter() - start, 3)
        return {**self.facts, "settings": dict(self.settings), "seconds": seconds}
