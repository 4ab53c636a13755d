"""Beta Shapley: a Shapley value that listens more to small subsets, or to large ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scipy.special import betaincinv

from proponent.errors import InputError
from proponent.methods.retraining import Retraining
from proponent.methods.samplers import Sampling, Semivalue
from proponent.methods.semivalue import FittedSemivalue, settings_of
from proponent.retrain.reduce import beta_sizes
from proponent.retrain.stopping import Budget, RankStability, Stop


@dataclass(frozen=True)
class BetaShapley:
    """The Beta(α, β) Shapley value of each training example: an α above β lets small subsets count more.

    φ_i = (1/n) Σ_{j=1}^n w(j) Δ_j(i),  w(j) = n C(n−1, j−1) B(j+β−1, n−j+α) / B(α, β),  Δ_j(i) = the mean of
    U(S ∪ i) − U(S) over the subsets S of j − 1 others; the mean |S| is (n−1) β/(α+β), and Beta(1, 1) is Shapley's value.

    >>> import numpy as np
    >>> from proponent.retrain.game import Game
    >>> at_least_one = Game(lambda held: held.max(axis=1), name="at least one")  # only the first to come adds anything
    >>> train, query = np.zeros((4, 1)), np.zeros((1, 1))
    >>> small = BetaShapley(alpha=16, beta=1, sampler="exact").fit(at_least_one, train).score(query)
    >>> large = BetaShapley(alpha=1, beta=16, sampler="exact").fit(at_least_one, train).score(query)
    >>> float(small.dataset.score[0, 0].round(3)), float(large.dataset.score[0, 0].round(3))
    (0.842, 0.001)

    With "permutation", "antithetic" and "stratified" each contribution is multiplied by w at its place, which makes long
    prefixes nearly worthless for α ≫ β; "owen" draws its rates from Beta(β, α) and spends every training where it counts.

    Args:
        alpha, beta: positive. The paper's Beta(16, 1), which finds wrong labels best, is the default. (Some libraries name
            the two the other way round.)
        sampler, stop, seed, seeds, groups, strata, tolerance: as for `Shapley`.

    Source: Kwon & Zou, Beta Shapley: a Unified and Noise-reduced Data Valuation Framework for Machine Learning, AISTATS 2022.
    """

    alpha: float = 16.0
    beta: float = 1.0
    sampler: str = "permutation"
    stop: Stop = RankStability(0.95) | Budget(20_000)
    seed: int = 0
    seeds: int = 1
    groups: Any = None
    strata: int = 4
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.beta > 0):
            raise InputError(f"alpha={self.alpha}, beta={self.beta}", "positive numbers", "pass such as 16 and 1")
        self._sampling()

    def _sampling(self) -> Sampling:
        return Sampling(self.sampler, self.seed, self.seeds, self.strata, self.tolerance)

    def fit(
        self,
        recipe: Any,
        train: Any,
        *,
        ledger: str | Path | None = None,
        workers: int | None = None,
        keep_models: bool = False,
    ) -> FittedSemivalue:
        """Hold recipe and examples ready, as `Shapley.fit` does; under one ledger the two share their trainings."""
        semivalue = Semivalue(
            sizes=partial(beta_sizes, alpha=self.alpha, beta=self.beta),
            rate=lambda u: float(betaincinv(self.beta, self.alpha, u)),
        )
        retraining = Retraining.of(recipe, train, self.groups, ledger, workers, keep_models)
        settings = settings_of(vars(self), retraining.players.count)
        return FittedSemivalue("BetaShapley", semivalue, self._sampling(), self.stop, retraining, settings)
