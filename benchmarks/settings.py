"""Published settings with retrained models to judge attributions by, kept on disk.

    PROPONENT_DATA=… python benchmarks/settings.py [--settings fashion-mlp …] [--parts tuning models truth check …] [--repeats 5]

    from settings import setting
    fashion = setting("fashion-mlp")     # .train, .query, .recipe; .models(10), .truth(), .tuning()

"mnist-logistic", "mnist-mlp" (dattri, NeurIPS 2024): the first 5,000 training and 500 test images of MNIST, normalised by .1307
and .3081, minus the loss. Logistic regression: SGD at .01, batch 32, 20 epochs. A perceptron 784-128-64-10 with dropout .1
after each ReLU: SGD at .01 with momentum .9, batch 64, 50 epochs. One model of each of 100 halves is their truth.
"mnist-logistic-converged": the same images in float64, mean loss + .01 ‖w‖²/2 (bias free) at its optimum; a removed row's share
of the sum is left out and all else stays, so halves are optima of n⁻¹ Σ_{i in half} loss_i + .01 ‖w‖²/2.
"fashion-mlp" (SOURCE, NeurIPS 2024; ASTRA, 2025): the first 6,144 training and 100 test images of Fashion-MNIST, normalised by
.2860 and .3530, a perceptron 784-512-256-128-10: SGD at .03 with momentum .9, weight decay .001, batch 64, 20 epochs; margins.
"concrete" (the same papers): 896 and 103 rows of UCI Concrete, standardised by the 896; a perceptron 8-128-128-128-1: SGD at .03
with momentum .9, weight decay 1e-5, batch 32, 20 epochs, squared error; minus it, or in "concrete-absolute" minus the
absolute error. All rates are constant.

`truth` is 100 random halves under `repeats` seeds. `tuning` is 50 other halves under other seeds, measured on other held-out
examples: what a method's damping may be chosen by. `left_out` of the logistic regressions removes 100 rows one at a time, in
several ways (see LEFT_OUT). Each part is a folder under PROPONENT_BENCH_CACHE (by default proponent-bench in the user's cache
folder): a run that is killed goes on where it was, what is complete is only read.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import proponent as pp
import softmax_optimum
from gradient_cases import absolute, cache, digits, perceptron, root
from proponent.evaluate.ceiling import expected_spearman
from proponent.examples import Examples
from proponent.retrain.ledger import Ledger
from proponent.retrain.run import retrain
from proponent.retrain.subsets import Subsets, halves, without
from proponent.retrain.torch_recipe import SGD, TorchRecipe

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[Array, Array]

SUBSETS, TUNING, REMOVED, DECAY = 100, 50, 100, 0.01
MODEL_SEEDS, TUNING_SEEDS = 10_000, 20_000
"""Where the seeds of full models and tuning halves begin; those of the truth begin at 0."""

LEFT_OUT = ("sequential", "skipped", "reshuffled", "reshuffled-5")
"""How a row is removed. Sequential: batches are consecutive rows, in every epoch alike, as dattri's are. Skipped: the row has
weight 0 and all batches stay. Reshuffled: the recipe without it under the same seed, whose order is another one; under 5."""


HESSIAN_DAMPING = {"mnist-logistic": 0.03, "mnist-logistic-converged": DECAY}
"""Of the first the best of .003, .01, .03 and .1 by leave-one-out; of the second the decay that it was trained with."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A recipe with its data, and what was retrained with it.

    Args:
        name: of the setting.
        make_model: an untrained module of its architecture and precision.
        recipe: how models are trained and measured.
        train, query, tuning_query: (inputs, targets).
        weight_decay: of the mean loss, for curvature.
        noise_free: whether training has one outcome.
        workers: models trained at once.
    """

    name: str
    make_model: Callable[[], nn.Module]
    recipe: Any
    train: Pair
    query: Pair
    tuning_query: Pair
    weight_decay: float = 0.0
    noise_free: bool = False
    workers: int = 2

    @property
    def folder(self) -> Path:
        """Where its parts are."""
        return cache() / "settings" / f"{self.name}-{self.recipe.fingerprint()[:12]}"

    @property
    def measurement(self) -> Any:
        return self.recipe.measurement

    def truth(self, repeats: int | None = None) -> Ledger:
        """The halves to judge by, under as many seeds; by default all that are there, and at least one."""
        count = 1 if self.noise_free else repeats or max(1, self._repeats)
        return _joined([self._retrained(f"truth-{r}", _seeded(halves(SUBSETS), r * SUBSETS)) for r in range(count)])

    def tuning(self) -> Ledger:
        """Other halves, measured on other queries."""
        drawn = _seeded(halves(TUNING, seed=1), TUNING_SEEDS)
        return self._retrained("tuning", drawn, self.tuning_query)

    def models(self, count: int = 1) -> list[nn.Module]:
        """Models of all training examples, in eval mode, under different seeds."""
        return [self._optimum()] if self.noise_free else self._modules("full", _seeded(_all(count), MODEL_SEEDS))

    def trajectories(self, count: int = 1, points: int = 10) -> list[list[nn.Module]]:
        """Checkpoints of the runs of `models(count)`, evenly spaced, the trained model last.

        Rates are constant, so a shorter run under the same seed is the beginning of a longer one.
        """
        epochs = [self.recipe.epochs * (k + 1) // points for k in range(points)]
        seeded = _seeded(_all(count), MODEL_SEEDS)
        at = [self._modules(f"full-{e}", seeded, replace(self.recipe, epochs=e)) for e in epochs[:-1]]
        return [list(run) for run in zip(*at, self.models(count), strict=True)]

    def left_out(self, how: str = "sequential") -> Ledger:
        """The full model, and 100 models of all rows but one; `how` is one of LEFT_OUT, or "optimum"."""
        rows = _removed(len(self.train[0]))
        if how.startswith("reshuffled"):
            plan = without([[row] for row in rows], repeats=5 if how == "reshuffled-5" else 1)
            return self._retrained(f"left-out-{how}", _seeded(plan, MODEL_SEEDS))
        fit = {"sequential": self._sequential, "skipped": self._skipped}.get(how, self._optima)
        return self._kept(f"left-out-{how}", lambda: fit(rows))

    @property
    def _repeats(self) -> int:
        return sum(path.suffix == ".zarr" for path in self.folder.glob("truth-*"))

    def _retrained(self, part: str, plan: Any, query: Pair | None = None) -> Ledger:
        folder, query = self.folder / part, query or self.query
        return self._kept(
            part, lambda: retrain(self.recipe, self.train, query, plan, ledger=folder, workers=self.workers)
        )

    def _kept(self, part: str, make: Callable[[], Ledger]) -> Ledger:
        path = self.folder / f"{part}.zarr"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            made = make()
            made.save(path)
            print(f"{self.name} {part}: {made}, {time.perf_counter() - start:.0f} s", flush=True)
        return Ledger.load(path)

    def _modules(self, part: str, plan: Any, recipe: Any = None) -> list[nn.Module]:
        drawn = plan(len(self.train[0]))
        paths = [self.folder / "models" / f"{part}-{seed}.pt" for seed in drawn.seeds]
        missing = [at for at, path in enumerate(paths) if not path.exists()]
        if missing:
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            some = drawn.take(missing)
            by = recipe or self.recipe
            kept: Any = retrain(by, self.train, self.query, some, keep_models=True, workers=self.workers)
            for at, model in zip(missing, kept.models, strict=True):
                _store(model.module(), paths[at])
        return [_loaded(self.make_model(), path) for path in paths]

    def _optimum(self) -> nn.Module:
        path = self.folder / "models" / "optimum.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            (w,) = softmax_optimum.each_left_out(*self.train, self.weight_decay, np.arange(0))
            _store(linear(self.make_model(), w), path)
        return _loaded(self.make_model(), path)

    def _skipped(self, rows: Array) -> Ledger:
        train, query = (Examples.of(pair) for pair in (self.train, self.query))
        fit = lambda row: self.recipe.fit(Examples.of(self.train, weights=row), MODEL_SEEDS)  # noqa: E731
        return self._of_rows(rows, [self.recipe.measure(fit(row), query) for row in _without(rows, len(train))])

    def _sequential(self, rows: Array) -> Ledger:
        """As the recipe trains, without shuffling."""
        query = Examples.of(self.query)
        included = _without(rows, len(self.train[0]))
        return self._of_rows(rows, [self.recipe.measure(self._in_sequence(row > 0), query) for row in included])

    def _in_sequence(self, kept: Array) -> nn.Module:
        x, y = (t[torch.from_numpy(kept)] for t in tensors(self.train))
        torch.manual_seed(MODEL_SEEDS)
        model, size = self.make_model(), self.recipe.batch_size
        optimizer = torch.optim.SGD(model.parameters(), lr=self.recipe.optimizer.lr)
        for _ in range(self.recipe.epochs):
            for own, target in zip(x.split(size), y.split(size), strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(own), target).backward()
                optimizer.step()
        return model.eval()

    def _optima(self, rows: Array) -> Ledger:
        optima = softmax_optimum.each_left_out(*self.train, self.weight_decay, rows)
        return self._of_rows(rows, -softmax_optimum.losses(optima, *self.query))

    def _of_rows(self, rows: Array, measured: Any) -> Ledger:
        included = _without(rows, len(self.train[0]))
        train, query = (Examples.of(pair) for pair in (self.train, self.query))
        seeds = np.full(len(included), MODEL_SEEDS)
        return Ledger.of(included, np.asarray(measured), train=train, query=query, seeds=seeds)


def tensors(pair: Pair) -> tuple[Tensor, Tensor]:
    """Arrays as torch has them."""
    return torch.from_numpy(pair[0]), torch.from_numpy(pair[1])


def linear(module: nn.Module, w: Array) -> nn.Module:
    """A linear module with these weights, the bias last."""
    layer: Any = next(module.children())
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(w[:, :-1]))
        layer.bias.copy_(torch.from_numpy(w[:, -1]))
    return module.eval()


def _store(module: nn.Module, path: Path) -> None:
    unfinished = path.with_suffix(".unfinished")
    torch.save(module.state_dict(), unfinished)
    unfinished.replace(path)


def _loaded(module: nn.Module, path: Path) -> nn.Module:
    module.load_state_dict(torch.load(path, weights_only=True))
    return module.eval()


def _without(rows: Array, n: int) -> Array:
    """(1 + k, n) all rows, then all but each of these."""
    included: Array = without([[row] for row in rows])(n).included
    return included


def _all(count: int) -> Any:
    return lambda n: Subsets.of(np.ones((count, n), np.uint8), np.arange(count))


def _seeded(plan: Any, first: int) -> Any:
    """A plan whose seeds begin at `first`."""

    def draw(n: int) -> Subsets:
        drawn = plan(n)
        return Subsets(drawn.included, drawn.seeds + first)

    return draw


def _joined(ledgers: Sequence[Ledger]) -> Ledger:
    """The same halves under all seeds."""
    first = ledgers[0].dataset
    parts = {
        name: np.concatenate([getattr(one, name) for one in ledgers]) for name in ("included", "measured", "seeds")
    }
    return Ledger.of(**parts, train=first["train"].to_numpy(), query=first["query"].to_numpy())


def _images(name: str, n: int, queries: int, tuning: int, mean: float, deviation: float) -> tuple[Pair, Pair, Pair]:
    def normalised(part: str, start: int, stop: int) -> Pair:
        x, y = digits(name, part, stop)
        return ((x[start:].numpy() - np.float32(mean)) / np.float32(deviation)), y[start:].numpy()

    return normalised("train", 0, n), normalised("t10k", 0, queries), normalised("t10k", queries, queries + tuning)


_mnist = functools.partial(_images, "mnist", 5_000, 500, 200, 0.1307, 0.3081)


def mnist_logistic() -> Setting:
    make = functools.partial(perceptron, 784, 10)
    sgd = SGD(lr=0.01, momentum=0.0)
    recipe = TorchRecipe(make, optimizer=sgd, schedule="constant", epochs=20, batch_size=32)
    return Setting("mnist-logistic", make, recipe, *_mnist())


def mnist_logistic_converged() -> Setting:
    parts = [(x.astype(np.float64), y) for x, y in _mnist()]
    strength = 1 / (DECAY * len(parts[0][0]))
    recipe = pp.SklearnRecipe(LogisticRegression(C=strength, max_iter=5000, tol=1e-5))
    make = lambda: perceptron(784, 10).double()  # noqa: E731
    return Setting("mnist-logistic-converged", make, recipe, *parts, weight_decay=DECAY, noise_free=True)


def mnist_mlp() -> Setting:
    make = functools.partial(perceptron, 784, 128, 64, 10, dropout=0.1)
    sgd = SGD(lr=0.01, momentum=0.9)
    recipe = TorchRecipe(make, optimizer=sgd, schedule="constant", epochs=50, batch_size=64)
    return Setting("mnist-mlp", make, recipe, *_mnist())


def fashion_mlp() -> Setting:
    make = functools.partial(perceptron, 784, 512, 256, 128, 10)
    sgd = SGD(lr=0.03, momentum=0.9, weight_decay=1e-3)
    recipe = TorchRecipe(make, optimizer=sgd, schedule="constant", epochs=20, batch_size=64, measurement="margin")
    parts = _images("fashion-mnist", 6_144, 100, 150, 0.2860, 0.3530)
    return Setting("fashion-mlp", make, recipe, *parts, weight_decay=1e-3)


def concrete(name: str = "concrete", measurement: Any = "loss") -> Setting:
    table = np.loadtxt(root() / "tabular" / "uci-regression" / "concrete" / "data.txt")
    order = np.random.RandomState(0).choice(len(table), len(table), replace=False)  # kronfluence's split
    table = (table - table[order[:896]].mean(0)) / table[order[:896]].std(0)
    cut = [order[:896], order[927:], order[896:927]]
    parts = [(np.float32(table[rows, :-1]), np.float32(table[rows, -1])) for rows in cut]
    make = functools.partial(perceptron, 8, 128, 128, 128, 1)
    sgd = SGD(lr=0.03, momentum=0.9, weight_decay=1e-5)
    recipe = TorchRecipe(
        make,
        loss="squared_error",
        optimizer=sgd,
        schedule="constant",
        epochs=20,
        batch_size=32,
        measurement=measurement,
    )
    return Setting(name, make, recipe, *parts, weight_decay=1e-5)


SETTINGS: dict[str, Callable[[], Setting]] = {
    "fashion-mlp": fashion_mlp,
    "mnist-mlp": mnist_mlp,
    "mnist-logistic": mnist_logistic,
    "mnist-logistic-converged": mnist_logistic_converged,
    "concrete": concrete,
    "concrete-absolute": functools.partial(concrete, "concrete-absolute", absolute),
}


def setting(name: str) -> Setting:
    """One of SETTINGS."""
    return SETTINGS[name]()


def scores(of: Setting, count: int) -> Iterator[tuple[str, Any]]:
    """Attributions that a setting is checked by: of one model, and the mean over `count` models."""
    train, query = tensors(of.train), tensors(of.query)
    loss = getattr(of.recipe, "loss", "cross_entropy")
    tasks = [pp.Task(module, loss=loss, measurement=of.measurement) for module in of.models(count)]
    damping = pp.Damping(0.1, scale="mean")
    influence = pp.Influence(pp.EKFAC(), damping=damping, weight_decay=of.weight_decay)
    yield "random", pp.evaluate.baselines.random(of.train, of.query)
    for name, spec in {"GradDot": pp.GradDot(), "EK-FAC": influence}.items():
        each = [spec.fit(task, train).score(query) for task in tasks]
        yield f"{name}, one model", each[0]
        if count > 1:
            mean = functools.reduce(lambda a, b: a + b, (one.dataset["score"] for one in each)) / count
            yield f"{name}, mean of {count}", pp.Attribution(each[0].dataset.assign(score=mean))
    if of.name in HESSIAN_DAMPING:
        yield "Hessian", hessian(of)


def hessian(of: Setting) -> pp.Attribution:
    """Influence of a softmax regression with its whole Hessian, in float64: what the logistic truths are checked by."""
    layer: Any = of.models()[0][0]
    w = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().double().numpy()
    score = softmax_optimum.influence(w, of.train, of.query, HESSIAN_DAMPING[of.name])
    return pp.Attribution.of(score, query=np.arange(len(score)), train=np.arange(score.shape[1]), method="Hessian")


def check(of: Setting, count: int = 10) -> None:
    """Print the ceiling, and how well some attributions do."""
    truth, attributions = of.truth(), list(scores(of, 1 if of.noise_free else count))
    print(f"\n{of.name}: {truth}\nceilings of other repeats: {_ceilings(truth)}", flush=True)
    print(f"{'':24}{'LDS [95 %]':>24}{'ceiling':>9}{'of it':>8}{'slope':>8}")
    for name, attribution in attributions:
        found = pp.evaluate.lds(attribution, truth, noise_free=of.noise_free)
        interval = f"{found.mean:.3f} [{found.lower:+.3f}, {found.upper:+.3f}]"
        print(f"{name:24}{interval:>24}{found.ceiling:9.3f}{found.of_ceiling:8.1%}{found.slope:8.2f}", flush=True)
    if of.noise_free:
        _newton(of)
    elif _left_out(of):
        _between(of)
    for how in _left_out(of):
        print(f"{f'left out, {how}':24}{'Pearson':>24}{'Spearman':>9}{'slope':>8}")
        for name, attribution in attributions:
            one = pp.evaluate.loo_correlation(attribution, of.left_out(how))
            interval = f"{one.pearson:.3f} [{one.pearson_lower:+.3f}, {one.pearson_upper:+.3f}]"
            print(f"{name:24}{interval:>24}{one.spearman:9.3f}{one.slope:8.2f}", flush=True)


def _between(of: Setting) -> None:
    """How well the effects of rows whose batches stay tell those of rows that are taken out of a sequence of batches."""
    effects = {how: ledger.measured[:1] - ledger.measured[1:] for how in LEFT_OUT[:2] for ledger in [of.left_out(how)]}
    each = [np.corrcoef(a, b)[0, 1] for a, b in zip(*(e.T for e in effects.values()), strict=True)]
    print(f"{' against '.join(effects)}: Pearson {np.mean(each):.3f}", flush=True)


def _newton(of: Setting) -> None:
    """Leave-one-out of the removed rows by Newton steps from the full optimum."""
    start = time.perf_counter()
    removed = _removed(len(of.train[0])).tolist()
    for steps in (1, 2):
        scores = pp.LeaveOneOut(steps=steps).fit(of.recipe, of.train).score(of.query, rows=removed)
        one = pp.evaluate.loo_correlation(scores, of.left_out("optimum"))
        seconds = time.perf_counter() - start
        print(
            f"LeaveOneOut, steps={steps}: Pearson 1 - {1 - one.pearson:.1e}, slope {one.slope:.5f}, {seconds:.0f} s",
            flush=True,
        )


def _removed(n: int) -> Array:
    return np.sort(np.random.default_rng(0).permutation(n)[:REMOVED])


def _ceilings(truth: Ledger) -> str:
    """A perfect predictor's score by truths of other repeats, from variances within and between halves: of normal scores, so
    that the few longest losses are not all that counts. Beyond one repeat long tails cost more than this says."""
    count = len(truth) // SUBSETS
    if count == 1:
        return "unknown"
    scores = norm.ppf((rankdata(truth.measured, axis=0) - 0.5) / len(truth))
    measured = scores.reshape(count, SUBSETS, -1)
    noise = measured.var(0, ddof=1).mean(0)
    effect = np.maximum(measured.mean(0).var(0, ddof=1) - noise / count, 0)
    known = (effect > 0) | (noise > 0)
    share = lambda repeats: effect[known] / (effect + noise / repeats)[known]  # noqa: E731
    ceiling = {r: expected_spearman(np.sqrt(share(r)), SUBSETS).mean() for r in (1, 5, 10, 20, 50, 100)}
    return ", ".join(f"{repeats} {value:.3f}" for repeats, value in ceiling.items())


def _left_out(of: Setting) -> Iterable[str]:
    if not of.name.startswith("mnist-logistic"):
        return ()
    return ("optimum",) if of.noise_free else LEFT_OUT


PARTS: dict[str, Callable[[Setting, int], Any]] = {
    "tuning": lambda of, repeats: of.tuning(),
    "models": lambda of, repeats: of.models(1 if of.noise_free else 10),
    "trajectories": lambda of, repeats: of.trajectories(10),
    "truth": lambda of, repeats: of.truth(repeats),
    "left_out": lambda of, repeats: [of.left_out(how) for how in _left_out(of)],
    "check": lambda of, repeats: check(of),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args(argv)
    for name in args.settings:
        of = setting(name)
        for part in args.parts:
            start = time.perf_counter()
            PARTS[part](of, args.repeats)
            print(f"{name} {part}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
