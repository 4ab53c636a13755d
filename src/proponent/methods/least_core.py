"""The least core: payoffs with which no subset of the training examples would be better off on its own."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linprog, nnls

from proponent.attribution import Attribution, Values
from proponent.errors import InputError, NotConverged
from proponent.methods.collected import Collect, Collected, required
from proponent.methods.retraining import Measured, Retraining, each_query, mean_query
from proponent.methods.rounds import Drawn, draw
from proponent.methods.semivalue import settings_of
from proponent.progress import track
from proponent.retrain.stopping import Budget
from proponent.retrain.subsets import Subsets, bernoulli

Array = np.ndarray[Any, np.dtype[Any]]
SLACK = 1e-9
"""Of the utilities' range: how much more than the least subsidy the most even payoffs may use."""
LOWEST = -2.0
"""The least subsidy that is looked for, in units of the largest claim."""
UNIT = "payoff in the least core of the measurement"


@dataclass(frozen=True)
class LeastCore:
    """Payoffs that leave every subset of the examples, up to one subsidy e, at least what it is worth by itself.

    min e  such that  Σ_i φ_i = U(all) − U(∅)  and  Σ_{i ∈ S} φ_i + e ≥ U(S) − U(∅) for every drawn subset S; among the
    payoffs of least e, those of least Σ φ_i², so that examples that are alike are paid alike.

    >>> import numpy as np
    >>> from proponent.retrain.game import Game
    >>> glove = Game(lambda held: np.minimum(held[:, 0], held[:, 1] + held[:, 2]), name="gloves")  # left; right, right
    >>> values = LeastCore(count=100).fit(glove, np.zeros((3, 1))).values(np.zeros((1, 1)))
    >>> bool(np.allclose(values.value, [1, 0, 0], atol=1e-6)), round(values.dataset.attrs["subsidy"], 6) + 0.0
    (True, 0.0)

    Args:
        count: subsets, each example in them with chance ½; besides them the empty set and all examples are trained.
        seed: of the draws; all subsets are trained under training seed 0.
        groups: players are groups of examples that join whole: (n,) names, or "own" for the examples' groups.
        resamples: bootstraps of the subsets for `stderr`, each a linear programme more; below 2 there are none. A
            solution hangs on the few subsets that bind, so that it says how firmly, rather than a distribution.

    Raises:
        NotConverged: the linear programme has no least subsidy, because there are too few subsets.

    Source: Yan & Procaccia, If You Like Shapley Then You'll Love the Core, AAAI 2021; least norm: Lawson & Hanson, Solving
    Least Squares Problems, chapter 23.
    """

    count: int = 1000
    seed: int = 0
    groups: Any = None
    resamples: int = 10

    def __post_init__(self) -> None:
        if self.count < 2:
            raise InputError(f"count={self.count}", "at least 2 subsets", "pass such a number")

    def fit(
        self,
        recipe: Any,
        train: Any,
        *,
        ledger: str | Path | None = None,
        workers: int | None = None,
        keep_models: bool = False,
    ) -> FittedLeastCore:
        """Hold recipe and examples ready, as `Shapley.fit` does; models are trained when there are queries to measure."""
        retraining = Retraining.of(recipe, train, self.groups, ledger, workers, keep_models)
        n = retraining.players.count
        drawn = bernoulli(0.5, self.count, seed=self.seed)(n).included
        ends = np.array([[0] * n, [1] * n], dtype=np.uint8)
        subsets = Subsets.of(np.concatenate([ends, drawn]))
        return FittedLeastCore(self, Collect(subsets), retraining)


@dataclass(frozen=True, eq=False)
class FittedLeastCore:
    """The least core of a recipe's training examples, ready for queries; made by `LeastCore.fit`."""

    spec: LeastCore
    subsets: Collect
    retraining: Retraining

    def score(self, query: Any) -> Attribution:
        """Payoffs in each query's own game, (query, train), with `stderr`, and each query's `subsidy`.

        Args:
            query: anything that `Examples.of` takes.

        Raises:
            ProponentError: too many trainings failed.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, each_query)
        drawn, payoff, subsidy, stderr = self._solved(queries)
        return Attribution.of(
            payoff,
            query=queries.query,
            train=self.retraining.players.axis,
            method="LeastCore",
            unit=UNIT,
            variables={"stderr": stderr, "subsidy": (("query",), subsidy)},
            attributes=self._facts(drawn, start),
        )

    def values(self, query: Any) -> Values:
        """Payoffs in the game of the mean measurement, with `stderr`; the `subsidy` is among the attributes.

        Args:
            query: anything that `Examples.of` takes.
        """
        start, queries = time.perf_counter(), self.retraining.of_queries(query, mean_query)
        drawn, payoff, subsidy, stderr = self._solved(queries)
        return Values.of(
            payoff[0],
            train=self.retraining.players.axis,
            method="LeastCore, mean over queries",
            unit=UNIT,
            variables={"stderr": stderr[0]},
            attributes=self._facts(drawn, start) | {"subsidy": float(subsidy[0])},
        )

    def _solved(self, queries: Measured) -> tuple[Drawn[Collected], Array, Array, Array]:
        budget = Budget(len(self.subsets.subsets))
        drawn = draw(self.subsets, queries, budget, "LeastCore", queries.at_once)
        queries.report(drawn, "the others' claims are met")
        included, measured = required(drawn, 3)
        nobody, everybody = (np.flatnonzero(included.sum(axis=1) == size) for size in (0, included.shape[1]))
        if not (len(nobody) and len(everybody)):
            raise InputError(
                "a failed training of the empty set or of all examples",
                "both, which say what is to be shared",
                "look at the warning's reason; a FunctionRecipe has to give a model for no examples too",
            )
        total = measured[everybody[0]] - measured[nobody[0]]
        claims = np.setdiff1d(np.arange(len(included)), np.r_[nobody, everybody])
        held, worth = included[claims], measured[claims] - measured[nobody[0]]
        solved = [self._with_error(held, worth[:, c], total[c]) for c in track(range(len(total)), "least cores")]
        payoff, subsidy, stderr = (np.array(part) for part in zip(*solved, strict=True))
        return drawn, payoff, subsidy, stderr

    def _with_error(self, held: Array, worth: Array, total: float) -> tuple[Array, float, Array]:
        payoff, subsidy = least_core(held, worth, total)
        if self.spec.resamples < 2:
            return payoff, subsidy, np.full(len(payoff), np.nan)
        rng = np.random.default_rng(self.spec.seed)
        again = []
        for _ in range(self.spec.resamples):
            rows = rng.integers(len(held), size=len(held))
            with suppress(NotConverged):  # too few different subsets among the drawn
                again.append(least_core(held[rows], worth[rows], total)[0])
        return payoff, subsidy, np.std(again, axis=0, ddof=1) if len(again) > 1 else np.full(len(payoff), np.nan)

    def _facts(self, drawn: Drawn[Collected], start: float) -> dict[str, Any]:
        settings = settings_of(vars(self.spec), self.retraining.players.count)
        return {
            "settings": settings | {"measurement": self.retraining.measurement},
            "trainings": drawn.trainings,
            "failed": drawn.failed,
            "seconds": round(time.perf_counter() - start, 3),
        }


def least_core(held: Array, worth: Array, total: float) -> tuple[Array, float]:
    """The most even payoffs of least subsidy, (n,), and that subsidy.

    Args:
        held: (m, n) subsets, neither empty nor of all players.
        worth: (m,) U(S) − U(∅).
        total: U(all) − U(∅).

    Raises:
        NotConverged: the linear programme was not solved, or has no least subsidy because the subsets are too few.
    """
    held, at = np.unique(held.astype(np.float64), axis=0, return_inverse=True)
    claim = np.full(len(held), -np.inf)
    np.maximum.at(claim, at, worth)
    m, n = held.shape
    scale = max(float(np.abs(claim).max(initial=0.0)), abs(total), 1e-300)
    # A subset and its complement together keep e ≥ −3/2 of the scale; where no such claims balance, e would fall for ever.
    answer = linprog(
        np.r_[np.zeros(n), 1.0],
        A_ub=-np.c_[held, np.ones(m)],
        b_ub=-claim / scale,
        A_eq=np.r_[np.ones(n), 0.0][None],
        b_eq=[total / scale],
        bounds=[(None, None)] * n + [(LOWEST, None)],
        method="highs",
    )
    if answer.status != 0:
        raise NotConverged(f"a linear programme that ended with {answer.message!r}", "an optimum", "draw more subsets")
    subsidy = float(answer.x[-1])
    if subsidy <= LOWEST * (1 - 1e-9):
        raise NotConverged(f"{m} different subsets of {n} players", "enough for a least subsidy", "draw more subsets")
    even = _least_norm(held, claim / scale - subsidy - SLACK, total / scale)
    return (answer.x[:n] if even is None else even) * scale, subsidy * scale


def _least_norm(held: Array, least: Array, total: float) -> Array | None:
    """The shortest x with held · x ≥ least and Σ x = total: least distance programming by non-negative least squares.

    With x = total/n + y, Σ y = 0: min |y| such that G y ≥ h, G = held centred by row. For the u ≥ 0 nearest to solving
    [Gᵀ; hᵀ] u = (0, …, 0, 1) with residual r, y_j = −r_j / r_{n+1}.
    """
    n = held.shape[1]
    g = held - held.mean(axis=1, keepdims=True)
    h = least - held.sum(axis=1) * (total / n)
    if (h <= 0).all():
        return np.full(n, total / n)
    matrix, target = np.vstack([g.T, h]), np.r_[np.zeros(n), 1.0]
    try:
        u, _ = nnls(matrix, target, maxiter=50 * matrix.shape[1])
    except RuntimeError:
        return None
    r = matrix @ u - target
    if -r[-1] < 1e-12:
        return None
    y = -r[:n] / r[-1]
    return np.asarray(total / n + y) if (g @ y >= h - 1e-6).all() else None
