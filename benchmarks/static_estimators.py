"""Static gradient estimators in published settings: how well each predicts retraining, and how well the damping chooses itself.

    PROPONENT_DATA=… python benchmarks/static_estimators.py [--settings mnist-mlp …] [--methods ggn ekfac …] [--models 10]

Settings and their retrained models: settings.py. For each method: the linear datamodeling score (LDS) of one model, of the mean
over several, over thinned copies of one model, and over ten checkpoints of its run (and of several runs; balanced, so that each
checkpoint counts alike, at a damping of its own), with the damping that 50 other retrained halves and other queries chose
(AutoDamping), its interval over halves and queries, and the noise ceiling; the best of 17 fixed dampings, chosen on the judging
models themselves, and what choosing lost against it; and the LDS at the dampings that peers take by default, all of one model.
For logistic regression also the correlation with leaving 100 rows out one at a time.

Published, for orientation: mnist-logistic LDS .798 and leave-one-out .878 (dattri's best); mnist-mlp .256 (CG), .331 (TRAK, 10
models), .437 (the same, re-tuned by GraSS), .446 (TRAK, 50 models); fashion-mlp, one model and ten: .46 and .53 (SOURCE), .30 and
.45 (influence).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import proponent as pp
from settings import SETTINGS, Setting, _left_out, setting, tensors

ROWS, FEWER = 6_000, 3_000
"""Gradients that the dual keeps: of one model, and of each checkpoint."""

THINNED, RATE = 10, 0.1
"""Copies of one model with a tenth of its hidden units dropped."""


def decay(of: Setting) -> float:
    """Weight decay counts at an optimum. Elsewhere the chosen damping stands for it: as a floor under all dampings it would
    be too much after the few epochs of fashion-mlp."""
    return of.weight_decay if of.noise_free else 0.0


def ggn(of: Setting, damping: Any, rows: int = ROWS) -> Any:
    """Exact where the matrix can be formed for one model, through its longest gradients otherwise."""
    small = of.name.startswith("mnist-logistic") and rows == ROWS
    solver = pp.Explicit() if small else pp.Dual(rows=rows)
    return pp.Influence(curvature="ggn", solver=solver, damping=damping, weight_decay=decay(of))


def empirical(of: Setting, damping: Any, rows: int = ROWS) -> Any:
    solver = pp.Dual(rows=rows)
    return pp.Influence(curvature="empirical_fisher", solver=solver, damping=damping, weight_decay=decay(of))


def ekfac(of: Setting, damping: Any, rows: int = ROWS) -> Any:
    return pp.Influence(curvature="ekfac", damping=damping, weight_decay=decay(of))


def gradients(of: Setting, damping: Any, rows: int = ROWS) -> Any:
    """No curvature: the mean over checkpoints is then TracIn with equal rates, but balanced. No damping is chosen."""
    return pp.Influence(curvature="identity")


METHODS: dict[str, Callable[..., Any]] = {"ggn": ggn, "ekfac": ekfac, "empirical": empirical}
PLAIN: dict[str, Callable[..., Any]] = {**METHODS, "gradients": gradients}
"""Of which the mean over checkpoints can be taken; without curvature, with --checkpoints only."""

PEERS: dict[str, list[tuple[str, Any]]] = {
    "ekfac": [("kronfluence, 1e-8", 1e-8), ("kronfluence, .1 × mean", pp.Damping(0.1, scale="mean"))],
    "ggn": [("Koh & Liang, .01", 0.01), ("dattri, 1e-3", 1e-3)],
    "empirical": [],
}
"""Dampings that peers take where nothing else is said."""


def tasks(of: Setting, count: int) -> list[Any]:
    loss = getattr(of.recipe, "loss", "cross_entropy")
    return [pp.Task(module, loss=loss, measurement=of.measurement) for module in of.models(count)]


def hidden(task: Any) -> bool:
    """Whether the model has hidden units to drop."""
    return sum(isinstance(m, torch.nn.Linear) for m in task.net.modules()) > 1


def choice(fitted: Any) -> dict[str, Any]:
    return dict(fitted.facts["damping_choice"])


def run(of: Setting, name: str, models: int, checkpoints: bool) -> None:
    """Print one method's table in one setting."""
    method, truth, single = METHODS[name], of.truth(), of.truth(1)
    train, query = tensors(of.train), tensors(of.query)
    own = tasks(of, 1 if of.noise_free else models)
    auto = pp.AutoDamping(ledger=of.tuning(), queries=tensors(of.tuning_query))
    start = time.perf_counter()
    fitted = method(of, auto).fit(own[0], train)
    chosen = choice(fitted)
    damping = pp.Damping(chosen["value"], scale=chosen["scale"])
    first = fitted.score(query)
    seconds = time.perf_counter() - start
    print(
        f"\n{of.name}, {name}: damping {chosen['value']:.3g} on the scale {chosen['scale']}, {seconds:.0f} s",
        flush=True,
    )
    judged = _print("one model, damping chosen", first, of, truth)
    best = choice(method(of, pp.AutoDamping(ledger=truth, queries=query)).fit(own[0], train))
    values, heights = np.array(best["tried"]), np.array(best["agreement"])
    print(
        f"  best fixed damping {values[heights.argmax()]:.3g}: {heights.max():.3f}; choosing lost {heights.max() - judged:+.3f}; "
        f"all: {', '.join(f'{v:.1g}: {h:.3f}' for v, h in zip(values, heights, strict=True))}",
        flush=True,
    )
    if not of.noise_free and len(truth) > len(single):
        _print("the same, against one model of each half", first, of, single)
    for what, value in PEERS[name]:
        _print(what, method(of, value).fit(own[0], train).score(query), of, truth)
    if hidden(own[0]):
        few = pp.thinned(own[0], THINNED, RATE)
        thin = _mean(method(of, damping), few, train, query, method(of, damping).fit(few[0], train).score(query))
        _print(f"one model, mean of {THINNED} thinned copies of it", thin, of, truth)
        _print("the same, against one model of each half", thin, of, single)
    if checkpoints and not of.noise_free:
        over_training(of, name, models, auto)
    if len(own) > 1:
        mean = _mean(method(of, damping), own, train, query, first)
        _print(f"mean of {len(own)} models", mean, of, truth)
        _print("the same, against one model of each half", mean, of, single)
    for how in _left_out(of):
        left = of.left_out(how)
        for what, value in [("chosen", damping), ("none", 0.0 if of.noise_free else 1e-6)]:
            one = pp.evaluate.loo_correlation(method(of, value).fit(own[0], train).score(query), left)
            print(
                f"  left out, {how}, damping {what}: Pearson {one.pearson:.4f} [{one.pearson_lower:.4f}, "
                f"{one.pearson_upper:.4f}], slope {one.slope:.3f}",
                flush=True,
            )


def over_training(of: Setting, name: str, models: int, auto: Any) -> None:
    """Balanced means over the checkpoints of one run and of all; the dampings are chosen at those of the first."""
    train, query = tensors(of.train), tensors(of.query)
    loss = getattr(of.recipe, "loss", "cross_entropy")
    total, sizes, dampings = np.float64(0), np.float64(0), []
    start = time.perf_counter()
    for count, run in enumerate(of.trajectories(models), 1):
        for at, module in enumerate(run):
            task = pp.Task(module, loss=loss, measurement=of.measurement)
            fitted = PLAIN[name](of, auto if count == 1 else dampings[at], FEWER).fit(task, train)
            if count == 1:
                found = fitted.facts.get("damping_choice", {"value": 0.0, "scale": "absolute"})
                dampings.append(pp.Damping(found["value"], scale=found["scale"]))
            scores = fitted.score(query).dataset["score"].to_numpy()
            deviation = scores.std(1, keepdims=True)
            total, sizes = total + scores / deviation, sizes + deviation
        if count in (1, models):
            mean = pp.Attribution.of(total * sizes, query=range(len(scores)), train=range(scores.shape[1]), method=name)
            what = f"{len(run)} checkpoints of {count} run{'s' * (count > 1)}"
            for truth, so in ((of.truth(), ""), (of.truth(1), ", against one model of each half")):
                _print(f"{what}{so}", mean, of, truth)
            print(
                f"  {time.perf_counter() - start:.0f} s; dampings {', '.join(f'{d.value:.2g}' for d in dampings)}",
                flush=True,
            )


def _mean(spec: Any, own: Sequence[Any], train: Any, query: Any, first: Any) -> Any:
    total = first.dataset["score"].to_numpy().astype(np.float64)
    for task in own[1:]:
        total = total + spec.fit(task, train).score(query).dataset["score"].to_numpy()
    return pp.Attribution(first.dataset.assign(score=(("query", "train"), total / len(own))))


def _print(what: str, scores: Any, of: Setting, truth: Any) -> float:
    found = pp.evaluate.lds(scores, truth, noise_free=of.noise_free)
    print(
        f"  {what}: LDS {found.mean:.3f} [{found.lower:.3f}, {found.upper:.3f}], ceiling {found.ceiling:.3f}, "
        f"slope {found.slope:.2f}",
        flush=True,
    )
    return float(found.mean)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(PLAIN))
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument(
        "--checkpoints", choices=["with", "without", "only"], default="with", help="means over checkpoints"
    )
    args = parser.parse_args(argv)
    for name in args.settings:
        for method in args.methods:
            of = setting(name)
            if args.checkpoints == "only":
                print(f"\n{name}, {method}", flush=True)
                auto = pp.AutoDamping(ledger=of.tuning(), queries=tensors(of.tuning_query))
                over_training(of, method, args.models, auto)
            else:
                run(of, method, args.models, args.checkpoints == "with")


if __name__ == "__main__":
    main()
