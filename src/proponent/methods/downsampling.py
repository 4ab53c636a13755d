"""Downsampling: what models trained with an example measure, against those trained without it; memorization."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proponent.errors import InputError
from proponent.methods.contrasts import FittedContrast
from proponent.methods.retraining import Retraining
from proponent.methods.semivalue import settings_of
from proponent.retrain.subsets import fractions, resolve


@dataclass(frozen=True)
class Downsampling:
    """The mean measurement of models whose random subset holds a training example, minus that of the others.

    score[q, i] = mean{m_q(θ_s): i ∈ S_s} − mean{m_q(θ_s): i ∉ S_s},  |S_s| = ⌊fraction · n + ½⌋

    It estimates what i does to such a subset in the place of another example: subsets are of one size, so that expected
    scores add up to zero (`Banzhaf` and `Datamodel`, whose subsets vary in size, know the level). `self_influence()` is the
    same for the example's own measurement: with a recipe that measures "correct", Feldman's memorization.

    >>> import numpy as np
    >>> from proponent.retrain.game import Game
    >>> worth = np.array([3.0, 0.0, -1.0, 0.5, 0.0, 1.0])
    >>> additive = Game(lambda held: held @ worth, name="additive")
    >>> scores = Downsampling(count=400).fit(additive, np.zeros((6, 1))).score(np.zeros((1, 1)))
    >>> scores.proponents(query=0, k=1)["id"].tolist(), scores.opponents(query=0, k=1)["id"].tolist()
    ([0], [2])
    >>> bool((scores.dataset.lower < scores.dataset.upper).all())
    True

    Subset s is trained under seed s, so that the mean is over training's own randomness as well. `lower` and `upper` are
    Welch's interval; where all measurements are 0 or 1, Agresti & Caffo's, which keeps its level near 0 and 1.

    Args:
        fraction: of the examples that a subset holds.
        count: subsets. The published estimates use 2,000 to 4,000; a standard error is at most 1/√count · 1.1 for
            measurements in [0, 1] at fraction 0.7.
        seed: of the draws.
        repeats: seeds per subset, which count as one draw by their mean.
        antithetic: subsets come in pairs that between them leave out as little as they can. Worth it where pairs of
            examples matter together; where effects add up, a pair tells hardly more than one of its two.
        confidence: of the intervals.

    Source: Feldman & Zhang, What Neural Networks Memorize and Why: Discovering the Long Tail via Influence Estimation,
    NeurIPS 2020; Agresti & Caffo, Simple and Effective Confidence Intervals for Proportions and Differences of
    Proportions, The American Statistician 2000.
    """

    fraction: float = 0.7
    count: int = 2000
    seed: int = 0
    repeats: int = 1
    antithetic: bool = False
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.count < 2 or (self.antithetic and self.count % 2):
            raise InputError(f"count={self.count}", "at least 2, and even if antithetic", "pass such a number")
        if not (0 < self.fraction < 1 and 0 < self.confidence < 1 and self.repeats >= 1):
            raise InputError(
                f"fraction={self.fraction}, confidence={self.confidence}, repeats={self.repeats}",
                "a fraction and a confidence strictly between 0 and 1, and at least one repeat",
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
    ) -> FittedContrast:
        """Hold recipe and examples ready, as `Shapley.fit` does; models are trained when there are queries to measure."""
        retraining = Retraining.of(recipe, train, None, ledger, workers, keep_models)
        plan = fractions(self.fraction, self.count, seed=self.seed, repeats=self.repeats, antithetic=self.antithetic)
        return FittedContrast(
            "Downsampling",
            f"mean measurement with the example - without it, on random subsets of {self.fraction:g} n",
            resolve(plan, retraining.players.count),
            self.repeats,
            self.antithetic,
            self.confidence,
            retraining,
            settings_of(vars(self), retraining.players.count),
        )
