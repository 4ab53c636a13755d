"""Datamodels: a linear model of what a trained model measures, as a function of which examples it was trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from proponent.attribution import Attribution, Values
from proponent.errors import InputError
from proponent.methods.collected import Collect, Collected, required
from proponent.methods.retraining import Measured, Retraining, each_query, mean_query
from proponent.methods.rounds import Drawn, draw
from proponent.methods.semivalue import settings_of
from proponent.retrain.lasso import lasso
from proponent.retrain.regress import FOLDS, Regression, ridge
from proponent.retrain.stopping import Budget
from proponent.retrain.subsets import bernoulli, fractions, resolve

Array = np.ndarray[Any, np.dtype[Any]]
REGRESSIONS = ("ridge", "lasso")
UNIT = "coefficient of the example in a linear model of the measurement"


@dataclass(frozen=True)
class Datamodel:
    """Coefficients of a linear model that predicts a query's measurement from the subset that was trained on.

    m_q(θ_S) ≈ b_q + Σ_{i ∈ S} score[q, i],  by ridge regression or the lasso over `count` random subsets

    >>> import numpy as np
    >>> from proponent.retrain.game import Game
    >>> worth = np.array([3.0, 0.0, -1.0, 0.5])
    >>> additive = Game(lambda held: held @ worth + 2.0, name="additive")
    >>> scores = Datamodel(count=50).fit(additive, np.zeros((4, 1))).score(np.zeros((1, 1)))
    >>> bool(np.allclose(scores.dataset.score, worth, atol=1e-3)), float(scores.dataset.r2[0].round(3))
    (True, 1.0)

    The penalty is one for all queries, chosen by held-out predictions; `r2` and `lds` (the rank correlation) of each query
    say how well five folds predict subsets that they have not seen. Where they are near zero the scores mean nothing yet:
    a datamodel asks for several times as many subsets as there are examples that matter.

    Args:
        fraction: of the examples that a subset holds.
        count: subsets.
        regression: "ridge" (its closed form serves all queries and penalties at once) or "lasso" (as published; a fit for
            each query, penalty and fold).
        independent: examples join independently, so that sizes differ and the level of the scores is known; False: all
            subsets have fraction · n examples, as published, and the scores add up to about zero.
        seed: of the draws; subset s is trained under seed s.
        repeats: seeds per subset, which count as one measurement by their mean.
        resamples: bootstraps for the standard errors of "lasso".

    Source: Ilyas et al., Datamodels: Predicting Predictions from Training Data, ICML 2022; standard errors: MacKinnon &
    White, Some Heteroskedasticity-Consistent Covariance Matrix Estimators, Journal of Econometrics 1985 (HC3).
    """

    fraction: float = 0.5
    count: int = 1000
    regression: str = "ridge"
    independent: bool = True
    seed: int = 0
    repeats: int = 1
    resamples: int = 20

    def __post_init__(self) -> None:
        if self.regression not in REGRESSIONS:
            raise InputError(f"regression={self.regression!r}", f"one of {REGRESSIONS}", "choose one of these")
        if not (0 < self.fraction < 1 and self.count >= 2 * FOLDS and self.repeats >= 1):
            raise InputError(
                f"fraction={self.fraction}, count={self.count}, repeats={self.repeats}",
                f"a fraction strictly between 0 and 1, at least {2 * FOLDS} subsets and one repeat",
                "pass such numbers",
            )

    def fit(
        self,
        recipe: Any,
        train: Any,
        *,
        ledger: str | Path | None = None,
        workers: int | None = None,
        keep_models: bool = False,
    ) -> FittedDatamodel:
        """Hold recipe and examples ready, as `Shapley.fit` does; models are trained when there are queries to measure."""
        retraining = Retraining.of(recipe, train, None, ledger, workers, keep_models)
        plan = (bernoulli if self.independent else fractions)(
            self.fraction, self.count, seed=self.seed, repeats=self.repeats
        )
        subsets = resolve(plan, retraining.players.count)
        regress = ridge if self.regression == "ridge" else partial(lasso, resamples=self.resamples, seed=self.seed)
        settings = settings_of(vars(self), retraining.players.count)
        return FittedDatamodel(Collect(subsets, self.repeats), regress, retraining, settings)


@dataclass(frozen=True, eq=False)
class FittedDatamodel:
    """Datamodels of a recipe, ready for queries; made by `Datamodel.fit`."""

    subsets: Collect
    regress: Callable[[Array, Array], Regression]
    retraining: Retraining
    settings: Mapping[str, Any]

    def score(self, query: Any) -> Attribution:
        """Coefficients for each query, (query, train), with `stderr`; and of each query `r2` and `lds`, held out.

        `stderr` is the error of the penalised coefficients about their own expectation: shrinkage is not in it.

        Args:
            query: anything that `Examples.of` takes.

        Raises:
            ProponentError: too many trainings failed.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, each_query)
        drawn, found = self._regressed(queries)
        return Attribution.of(
            found.coefficient.T,
            query=queries.query,
            train=self.retraining.players.axis,
            method="Datamodel",
            unit=UNIT,
            variables={"stderr": found.stderr.T, "r2": (("query",), found.r2), "lds": (("query",), found.lds)},
            attributes=self._facts(drawn, found, start),
        )

    def values(self, query: Any) -> Values:
        """Coefficients of the mean measurement of the queries, with `stderr`; `r2` and `lds` are among the attributes.

        Args:
            query: anything that `Examples.of` takes.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, mean_query)
        drawn, found = self._regressed(queries)
        held_out = {"r2": float(found.r2[0]), "lds": float(found.lds[0])}
        return Values.of(
            found.coefficient[:, 0],
            train=self.retraining.players.axis,
            method="Datamodel, mean over queries",
            unit=UNIT,
            variables={"stderr": found.stderr[:, 0]},
            attributes=self._facts(drawn, found, start) | held_out,
        )

    def _regressed(self, queries: Measured) -> tuple[Drawn[Collected], Regression]:
        budget = Budget(len(self.subsets.subsets))
        drawn = draw(self.subsets, queries, budget, "Datamodel", queries.at_once)
        queries.report(drawn, "the regression is over the others")
        return drawn, self.regress(*required(drawn, 2 * FOLDS))

    def _facts(self, drawn: Drawn[Collected], found: Regression, start: float) -> dict[str, Any]:
        return {
            "settings": dict(self.settings) | {"measurement": self.retraining.measurement},
            "penalty": found.penalty,
            "trainings": drawn.trainings,
            "failed": drawn.failed,
            "seconds": round(time.perf_counter() - start, 3),
        }
