"""Data Shapley: what each training example, or each source, adds to the subsets that it joins, all sizes alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proponent.methods.retraining import Retraining
from proponent.methods.samplers import Sampling, Semivalue
from proponent.methods.semivalue import FittedSemivalue, settings_of
from proponent.retrain.reduce import shapley_sizes
from proponent.retrain.stopping import Budget, RankStability, Stop

SHAPLEY = Semivalue(sizes=shapley_sizes, rate=float)


@dataclass(frozen=True)
class Shapley:
    """The Shapley value of each training example: what it adds to a subset of the others, in the mean over random orders.

    φ_i = Σ_{S ∌ i} |S|!(n−1−|S|)!/n! · (U(S ∪ i) − U(S)),  U(S) = a measurement of the model trained on S, so that
    Σ_i φ_i = U(all) − U(∅)

    >>> import numpy as np
    >>> from proponent.retrain.game import Game
    >>> glove = Game(lambda held: np.minimum(held[:, 0], held[:, 1] + held[:, 2]), name="gloves")  # left; right, right
    >>> train, query = np.zeros((3, 1)), np.zeros((1, 1))
    >>> Shapley(sampler="exact").fit(glove, train).score(query).dataset.score.values.round(3).tolist()
    [[0.667, 0.167, 0.167]]
    >>> values = Shapley(stop=Budget(200)).fit(glove, train).values(query)
    >>> float(values.value.sum())
    1.0

    How subsets are drawn. Each but "owen" adds up to U(all) − U(∅) to rounding, in every draw; the draws of the first
    three and of "owen" are unbiased.

        "permutation"  prefixes of a random order: n − 1 trainings a draw, and two for the ends of all
        "antithetic"   an order and its reverse
        "stratified"   an order and its rotations by n/strata, which spread an example's places evenly
        "truncated"    `strata` orders, left together once |U(prefix) − U(all)| ≤ tolerance · |U(all) − U(∅)| (in the mean
                       over them and the queries) five times in a row; the examples that are left share the rest alike.
                       Its bias is small for a utility that levels off, such as a mean over many queries
        "owen"         a random coalition at a rate q in each of `strata` strata of (0, 1), changed by each example
        "exact"        all 2ⁿ subsets of n ≤ 12 examples or groups

    A subset whose fit fails takes no part: what the examples before and after it add there does not count for them (for
    a fit that fails by chance their values stay unbiased), and a warning says how many.

    Args:
        sampler: see above.
        stop: a rule from `proponent.retrain.stopping`, or several, joined by | and &. A budget is counted in trainings,
            also in those that a ledger already holds, so that a run that is resumed gives the same bits.
        seed: of the draws.
        seeds: training seeds that draws take turns with, 0, 1, …: U is the mean over them.
        groups: players are groups of examples that join whole: (n,) names, or "own" for the examples' groups.
        strata: of "stratified" and "owen"; orders that "truncated" leaves together.
        tolerance: of "truncated".

    Source: Ghorbani & Zou, Data Shapley, ICML 2019 ("truncated", with the rest at zero); Castro et al., Improving
    polynomial estimation of the Shapley value by stratified random sampling, 2017; Mitchell et al., Sampling Permutations
    for Shapley Value Estimation, JMLR 2022 ("antithetic"); Okhrati & Lipani, A Multilinear Sampling Algorithm to Estimate
    Shapley Values, ICPR 2020 ("owen").
    """

    sampler: str = "permutation"
    stop: Stop = RankStability(0.95) | Budget(20_000)
    seed: int = 0
    seeds: int = 1
    groups: Any = None
    strata: int = 4
    tolerance: float = 0.01

    def __post_init__(self) -> None:
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
        """Hold recipe and examples ready; models are trained when queries are there to be measured.

        Args:
            recipe: a SklearnRecipe, TorchRecipe or FunctionRecipe, or a scikit-learn estimator.
            train: Examples, or (inputs, labels).
            ledger: a directory that keeps every training: calls, methods and runs share what it holds.
            workers: models trained at once; None takes what `joblib.parallel_config` says, or 1.
            keep_models: keep the models in the ledger, so that other queries cost predictions only.

        Raises:
            InputError: groups that do not fit the examples.
            FingerprintMismatch: the ledger is of another recipe or other training examples.
        """
        retraining = Retraining.of(recipe, train, self.groups, ledger, workers, keep_models)
        settings = settings_of(vars(self), retraining.players.count)
        return FittedSemivalue("Shapley", SHAPLEY, self._sampling(), self.stop, retraining, settings)
