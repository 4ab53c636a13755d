"""Ground truth to judge attributions by: models of Fashion-MNIST retrained on random halves, kept for other benchmarks.

    PROPONENT_DATA=… python benchmarks/banks.py [--banks mlp logistic] [--measurements loss margin] [--repeats 5] [--workers 2]

    from banks import bank
    truth = bank("mlp", "loss")        # .ledger, .train, .query, .recipe; reads what is there, trains what is missing

The first 5,000 training images and 200 test images; 100 random halves. "mlp": a perceptron 784-128-64-10, SGD with momentum .9 at
rate .05 falling along a cosine, batch 64, 20 epochs, each half under `repeats` seeds of weights and order. "logistic":
scikit-learn's LogisticRegression with C = .01 (mean loss + ‖w‖²/2Cn, bias free), which has one optimum, so one model a half.
Measurements are minus the loss, or the margin, of the test images.

Banks are ledger directories under PROPONENT_BENCH_CACHE (by default proponent-bench in the user's cache folder), named by all
that they hold; a run that is killed goes on where it was, and more repeats train only what they add. Each is checked: the noise
ceiling, and the linear datamodeling score of random numbers, gradient dot products and influence with EK-FAC (damping a tenth
of each block's mean eigenvalue), of one model and, of "mlp", of the mean over three seeds' models. Intervals resample halves and
queries.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import proponent as pp
from gradient_cases import cache, fashion, logistic, mlp
from proponent.retrain.ledger import Ledger
from proponent.retrain.run import retrain
from proponent.retrain.subsets import full, halves
from proponent.retrain.torch_recipe import SGD, TorchRecipe

TRAIN, QUERIES, SUBSETS, SEEDS, STRENGTH = 5_000, 200, 100, 3, 0.01


@dataclass(frozen=True, eq=False)
class Bank:
    """A recipe, its data and its models retrained on halves.

    Args:
        name: "mlp" or "logistic".
        recipe: how the models were made.
        train, query: (images, classes).
        ledger: what was measured.
        seconds: this call took.
    """

    name: str
    recipe: Any
    train: tuple[Any, Any]
    query: tuple[Any, Any]
    ledger: Ledger
    seconds: float

    @property
    def noise_free(self) -> bool:
        """Whether one model of a half is all there is to know."""
        return self.name == "logistic"


RECIPES: dict[str, Callable[[str], Any]] = {
    "mlp": lambda measurement: TorchRecipe(
        mlp, optimizer=SGD(lr=0.05, momentum=0.9), schedule="cosine", epochs=20, batch_size=64, measurement=measurement
    ),
    "logistic": lambda measurement: pp.SklearnRecipe(
        LogisticRegression(C=STRENGTH, max_iter=1000, tol=1e-6), measurement
    ),
}


def bank(name: str, measurement: str = "loss", *, repeats: int = 5, workers: int | None = 2) -> Bank:
    """A bank, from the cache as far as it is there.

    Args:
        name: "mlp" or "logistic".
        measurement: "loss" or "margin".
        repeats: seeds per half; "logistic" has one.
        workers: models trained at once.
    """
    parts = (fashion("train", TRAIN), fashion("t10k", QUERIES))
    train, query = ((x.numpy().astype(np.float64 if name == "logistic" else np.float32), y.numpy()) for x, y in parts)
    recipe, start = RECIPES[name](measurement), time.perf_counter()
    made = [_one_repeat(name, recipe, train, query, r, workers) for r in range(1 if name == "logistic" else repeats)]
    return Bank(name, recipe, train, query, _joined(made), time.perf_counter() - start)


def _one_repeat(name: str, recipe: Any, train: Any, query: Any, repeat: int, workers: int | None) -> Ledger:
    """All halves under their seed number `repeat`: so that more repeats leave what is there as it is."""
    plan = halves(SUBSETS)(TRAIN)
    seeded = type(plan)(plan.included, plan.seeds + repeat * SUBSETS)
    folder = cache() / "banks" / f"fashion-{name}-{recipe.measurement}-{recipe.fingerprint()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return retrain(recipe, train, query, seeded, ledger=folder, workers=workers)


def _joined(ledgers: Sequence[Ledger]) -> Ledger:
    """The same halves under all seeds."""
    first = ledgers[0].dataset
    parts = {
        name: np.concatenate([getattr(one, name) for one in ledgers]) for name in ("included", "measured", "seeds")
    }
    return Ledger.of(**parts, train=first["train"].to_numpy(), query=first["query"].to_numpy())


def modules(bank: Bank) -> list[nn.Module]:
    """Models of all training examples, as torch has them."""
    plan = full(repeats=1 if bank.noise_free else SEEDS)
    models: Any = retrain(bank.recipe, bank.train, bank.query, plan, keep_models=True).models
    return [linear(model) if bank.noise_free else model.module().eval() for model in models]


def linear(model: Any) -> nn.Module:
    """scikit-learn's logistic regression in torch."""
    module = logistic()
    layer = next(m for m in module.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(model.coef_))
        layer.bias.copy_(torch.from_numpy(model.intercept_))
    return module.eval()


def scores(bank: Bank) -> Iterator[tuple[str, Any]]:
    """Attributions that a bank is checked by."""
    train, query = ((torch.from_numpy(np.float32(x)), torch.from_numpy(y)) for x, y in (bank.train, bank.query))
    tasks = [pp.Task(module, measurement=bank.recipe.measurement) for module in modules(bank)]
    decay = 1 / (STRENGTH * TRAIN) if bank.name == "logistic" else 0.0
    damping = pp.Damping(0.1, scale="mean")
    specs = {"GradDot": pp.GradDot(), "EK-FAC": pp.Influence(pp.EKFAC(), damping=damping, weight_decay=decay)}
    yield "random", pp.evaluate.baselines.random(bank.train, bank.query)
    for name, spec in specs.items():
        each = [spec.fit(task, train).score(query) for task in tasks]
        yield f"{name}, one model", each[0]
        if len(each) > 1:
            mean = functools.reduce(lambda a, b: a + b, (one.dataset["score"] for one in each)) / len(each)
            yield f"{name}, mean of {len(each)}", pp.Attribution(each[0].dataset.assign(score=mean))


def check(bank: Bank) -> None:
    """Print the ceiling, and how well some attributions do."""
    print(f"\n{bank.name}, {bank.recipe.measurement}: {bank.ledger}, {bank.seconds:.0f} s", flush=True)
    print(f"{'':24}{'LDS [95 %]':>24}{'ceiling':>9}{'of it':>8}{'slope':>8}")
    for name, attribution in scores(bank):
        found = pp.evaluate.lds(attribution, bank.ledger, noise_free=bank.noise_free)
        interval = f"{found.mean:.3f} [{found.lower:+.3f}, {found.upper:+.3f}]"
        print(f"{name:24}{interval:>24}{found.ceiling:9.3f}{found.of_ceiling:8.1%}{found.slope:8.2f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banks", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--measurements", nargs="+", default=["loss"], choices=["loss", "margin"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    for name in args.banks:
        for measurement in args.measurements:
            check(bank(name, measurement, repeats=args.repeats, workers=args.workers))


if __name__ == "__main__":
    main()
