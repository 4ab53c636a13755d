"""Influence functions of linear models: the formula of Koh & Liang, for removing and for perturbing training rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from proponent.attribution import Attribution, Values
from proponent.convex.curvature import Curvature, MatrixFree, curvature_of
from proponent.convex.problem import dense
from proponent.errors import InputError
from proponent.examples import Examples
from proponent.methods.convex_fit import ConvexFit, Queries
from proponent.store.matrix import require_memory

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Influence:
    """The first-order effect of each training example on each query, from one trained model.

    score[q, i] = −∇m_qᵀ (H + λ)⁻¹ ∇ℓ_i / n,  H the curvature of the mean training loss with its weight decay

    A recipe with a linear scikit-learn model gets its exact Hessian, factorised up to a few thousand parameters; larger ones
    go through conjugate gradients, and each query's relative residual is in the result as `residual`. A task with a
    PyTorch model gets a Fisher matrix, EK-FAC by default.

    >>> from sklearn.linear_model import Ridge
    >>> X, y = np.arange(8.0).reshape(4, 2) ** 2, np.array([0.0, 1.0, 2.0, 4.0])
    >>> scores = Influence().fit(Ridge(), (X, y)).score((X, y))
    >>> bool((np.diag(scores.dataset.score) >= 0).all())  # a row never raises its own loss
    True

    Args:
        curvature: of a task, layer by layer: "ekfac" (default), "kfac", "diagonal", "identity"; EKFAC(…), KFAC(…) or
            Diagonal(…) with settings; or a saved spectrum (a path, or what `EKFAC().fit` gives). Of all parameters
            together: "ggn", "hessian", "fisher", "empirical_fisher"; GGN(…), Hessian(), Fisher(…) or EmpiricalFisher(…).
        solver: of a task, how a curvature of all parameters is inverted: "explicit", "dual", "cg", "nystrom", "arnoldi",
            "lissa", "refinement", "datainf"; Explicit(), Dual(…), CG(…), Nystrom(…), Arnoldi(…), LiSSA(…), Refinement(…) or
            DataInf() with settings. By default explicit for small models, else dual or cg. Each query's relative residual is
            in the result as `residual`.
        damping: λ of a task: "auto" (a tenth of each block's mean eigenvalue), a number, or a Damping.
        weight_decay: of a task: the L2 penalty (weight_decay/2)‖θ‖² that training added to the mean loss.
        shortcut: of a task: the expected relative error up to which layers with one position are scored by short sums;
            0 scores exactly. What it costs is measured on a few examples and kept with the result.
        query_rank: of a task: preconditioned query gradients of layers with several positions are cut to this rank.
        batch_size: of a task: training examples captured at once; found from their size by default.
        engine: of a task: "factors" takes every training example's gradient once, for all queries; "jvp" differentiates the
            training losses along each query's direction H⁻¹∇m_q, as in `GradDot`, without shortcuts.
        tolerance: of a recipe: relative residual of the conjugate gradients.

    Raises:
        UnsupportedModel: the model is not a smooth convex problem, and not a task.
        NotConverged: a recipe's objective has no finite optimum, or the conjugate gradients stalled.
        InputError: settings of a task for a recipe, a damping of zero for a singular curvature, or settings that do not go
            together.

    Source: Koh & Liang, Understanding black-box predictions via influence functions, ICML 2017; for the Fisher matrices
    Grosse et al., Studying large language model generalization with influence functions, 2023.
    """

    curvature: Any = None
    solver: Any = None
    damping: Any = "auto"
    weight_decay: float = 0.0
    shortcut: float = 0.05
    query_rank: int | None = None
    batch_size: int | None = None
    engine: Literal["factors", "jvp"] = "factors"
    tolerance: float = 1e-8

    def fit(self, recipe: Any, train: Any) -> Any:
        """Fit the recipe, or look at the task's model, and prepare its curvature.

        Args:
            recipe: a Task; a SklearnRecipe, or a scikit-learn estimator.
            train: training examples in a form that the task or the recipe takes.
        """
        if hasattr(recipe, "watching"):  # a Task: asking for its class would load torch
            from proponent.methods.influence_gradients import fit_influence

            return fit_influence(self, recipe, train)
        if replace(self, tolerance=1e-8) != Influence():
            raise InputError(
                "settings of a task's curvature for a scikit-learn model",
                "Influence() or Influence(tolerance=…): the exact Hessian with the model's own penalty",
                "leave them out, or pass a Task",
            )
        fit = ConvexFit.of(recipe, train)
        problem = fit.model.problem
        curvature = curvature_of(problem, fit.model.optimum.curvature, problem.penalty_without_one())
        if isinstance(curvature, MatrixFree):
            curvature = MatrixFree(problem, curvature.curvature, curvature.penalty, self.tolerance)
        return FittedInfluence(self, fit, curvature)


@dataclass(frozen=True)
class FittedInfluence:
    """Influence around a fitted linear model."""

    spec: Influence
    fit: ConvexFit
    curvature: Curvature

    def score(self, query: Any) -> Attribution:
        """Scores of all training rows for queries.

        Args:
            query: Examples, or (inputs, labels).
        """
        start = time.perf_counter()
        queries = Examples.of(query)
        require_memory(len(queries), len(self.fit.train), 1)
        directions, residual = self._directions(self.fit.queries(queries))
        score = self._along(directions)
        attributes = {
            "settings": {"measurement": self.fit.recipe.measurement, "tolerance": self.spec.tolerance},
            "seconds": round(self.fit.seconds + time.perf_counter() - start, 3),
        }
        return Attribution.of(
            score,
            query=queries,
            train=self.fit.train,
            method="Influence",
            variables={"residual": (("query",), residual)},
            attributes=attributes,
        )

    def values(self, query: Any) -> Values:
        """Each row's mean score over the queries, at the cost of a single query."""
        measured = self.fit.queries(Examples.of(query))
        gradient = self.fit.query_gradients(measured).mean(axis=0)[:, None]
        return Values.of(
            self._along(self._solve(gradient)[0])[0], train=self.fit.train, method="Influence, mean over queries"
        )

    def perturbation(self, query: Any, rows: Sequence[Any]) -> xr.DataArray:
        """How each query's measurement changes per unit change of each feature of a training row.

        ∂m_q/∂x_i = −∇m_qᵀ H⁻¹ ∂(s_i ∇ℓ_i)/∂x_i, the model refitted as x_i moves; features are those after preprocessing.

        Args:
            query: Examples, or (inputs, labels).
            rows: ids of the training rows.

        Returns:
            dims (query, train, feature).
        """
        queries = Examples.of(query)
        at = self.fit.train.positions(list(rows))
        model, optimum = self.fit.model, self.fit.model.optimum
        problem = model.problem
        measured = self.fit.queries(queries)
        directions, _ = self._directions(measured)
        c, q = problem.outputs, len(queries)
        along = problem.logits_of_columns(directions, problem.x[at])  # (i, c, q)
        raw = self._raw_directions(directions, measured, queries)  # (q, c, feature)
        theta = model.weight_vectors(optimum.theta)
        turned = np.einsum("icq,icm->qim", along, optimum.curvature[at], optimize=True)
        moved = -np.einsum("qim,mp->qip", turned, theta, optimize=True)
        moved -= np.einsum("ic,qcp->qip", optimum.gradient[at], raw.reshape(q, c, -1), optimize=True)
        return xr.DataArray(
            moved,
            dims=("query", "train", "feature"),
            coords={"query": queries.ids, "train": self.fit.train.ids[at]},
            attrs={"unit": "change of the measurement per unit of the feature"},
        )

    def _solve(self, gradients: Array) -> tuple[Array, Array]:
        if isinstance(self.curvature, MatrixFree):
            return self.curvature.solve_with_residuals(gradients)
        return self.curvature.solve(gradients), np.zeros(gradients.shape[1])

    def _directions(self, measured: Queries) -> tuple[Array, Array]:
        """H⁻¹∇m_q as columns, and the solver's relative residuals."""
        return self._solve(self.fit.query_gradients(measured).T)

    def _along(self, directions: Array) -> Array:
        """−directionᵀ(s_i ∇ℓ_i + drift) for every row: (q, n)."""
        problem, optimum = self.fit.model.problem, self.fit.model.optimum
        drift = ((problem.penalty - problem.penalty_without_one()) * optimum.theta).ravel()
        out = np.empty((directions.shape[1], problem.rows))
        step = max(1, int(8e6 / (problem.rows * problem.outputs)))
        for at in range(0, directions.shape[1], step):
            block = directions[:, at : at + step]
            f = problem.logits_of_columns(block)
            out[at : at + step] = -(
                np.einsum("jcb,jc->bj", f, optimum.gradient, optimize=True) + (block.T @ drift)[:, None]
            )
        return out

    def _raw_directions(self, directions: Array, measured: Queries, queries: Examples) -> Array:
        """H⁻¹∇m_q over the preprocessed features, (q, c, feature), also where the problem was solved in fewer coordinates."""
        model = self.fit.model
        c, q = model.problem.outputs, directions.shape[1]
        per_query = directions.reshape(c, model.problem.features, q).transpose(2, 0, 1)
        weights = per_query[:, :, :-1] if model.objective.intercept else per_query
        if model.basis is None:
            return np.asarray(weights)
        flat = model.basis.features(weights.reshape(q * c, -1).T).T.reshape(q, c, -1)
        # Outside the span of the training rows only the penalty curves: there H⁻¹ = 1/λ.
        x = queries.inputs if model.front is None else model.front.transform(queries.inputs)
        outside = dense(x) - model.basis.features(model.basis.coordinates(x).T).T
        slope = measured.measurement.slope(measured.f)
        return np.asarray(flat + slope[:, :, None] * outside[:, None, :] / model.objective.penalty)
