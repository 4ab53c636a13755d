"""Data Banzhaf: what each training example adds to a subset that every other example joins by the toss of a coin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from proponent.errors import InputError, did_you_mean
from proponent.methods.contrasts import FittedContrast
from proponent.methods.retraining import Retraining
from proponent.methods.samplers import Sampling, Semivalue
from proponent.methods.semivalue import FittedSemivalue, constant, settings_of
from proponent.retrain.reduce import binomial_sizes
from proponent.retrain.stopping import Budget
from proponent.retrain.subsets import bernoulli, resolve

SAMPLERS = ("msr", "exact")


@dataclass(frozen=True)
class Banzhaf:
    """The Banzhaf value of each training example, by maximum sample reuse: every training informs every example's value.

    φ_i = Σ_{S ∌ i} p^|S| (1−p)^(n−1−|S|) (U(S ∪ i) − U(S)) ≈ mean{U(S_s): i ∈ S_s} − mean{U(S_s): i ∉ S_s},
    each example being in S_s with probability p. The values do not add up to U(all) − U(∅).

    >>> import numpy as np
    >>> from proponent.retrain.game import Game
    >>> majority = Game(lambda held: held.sum(axis=1) >= 2, name="majority")
    >>> train, query = np.zeros((3, 1)), np.zeros((1, 1))
    >>> Banzhaf(sampler="exact").fit(majority, train).values(query).value.tolist()
    [0.5, 0.5, 0.5]
    >>> sampled = Banzhaf(count=400).fit(majority, train).values(query).dataset
    >>> bool((abs(sampled.value - 0.5) < 4 * sampled.stderr).all())
    True

    Args:
        count: subsets.
        p: an example's chance to be in a subset; ½ is Banzhaf's value, another its weighted kin.
        seed: of the draws; subset s is trained under training seed s.
        groups: players are groups of examples that join whole: (n,) names, or "own" for the examples' groups.
        sampler: "msr", or "exact": all 2ⁿ subsets of n ≤ 12 players, under training seed 0.
        confidence: of `lower` and `upper`, as for `Downsampling`; "msr" only.

    Source: Wang & Jia, Data Banzhaf: A Robust Data Valuation Framework for Machine Learning, AISTATS 2023; Li & Yu, Robust
    Data Valuation with Weighted Banzhaf Values, NeurIPS 2023.
    """

    count: int = 1000
    p: float = 0.5
    seed: int = 0
    groups: Any = None
    sampler: str = "msr"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise InputError(
                f"sampler={self.sampler!r}", f"one of {SAMPLERS}", did_you_mean(str(self.sampler), SAMPLERS)
            )
        if not (self.count >= 2 and 0 < self.p < 1 and 0 < self.confidence < 1):
            raise InputError(
                f"count={self.count}, p={self.p}, confidence={self.confidence}",
                "at least 2 subsets, and a p and a confidence strictly between 0 and 1",
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
    ) -> FittedContrast | FittedSemivalue:
        """Hold recipe and examples ready, as `Shapley.fit` does; models are trained when there are queries to measure."""
        retraining = Retraining.of(recipe, train, self.groups, ledger, workers, keep_models)
        settings = settings_of(vars(self), retraining.players.count)
        if self.sampler == "exact":
            semivalue = Semivalue(sizes=partial(binomial_sizes, p=self.p), rate=constant(self.p))
            exact = Sampling("exact", self.seed, seeds=1, strata=1, tolerance=0.0)
            return FittedSemivalue("Banzhaf", semivalue, exact, Budget(1), retraining, settings)
        return FittedContrast(
            "Banzhaf",
            "Banzhaf value: the mean over random subsets S of measurement(S with the example) - measurement(S)",
            resolve(bernoulli(self.p, self.count, seed=self.seed), retraining.players.count),
            repeats=1,
            paired=False,
            confidence=self.confidence,
            retraining=retraining,
            settings=settings,
        )
