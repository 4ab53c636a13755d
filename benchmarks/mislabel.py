"""Flipped labels behind a trained network: influence scores beside the plain loss, on the same models and flips.

    PROPONENT_DATA=… python benchmarks/mislabel.py [--draws 3 4 5 6 7] [--epochs 10 50] [--threads 2]

5,000 images of Fashion-MNIST, drawn anew for each draw, a tenth of their labels flipped to another class drawn uniformly; an MLP
784-128-64-10, SGD with momentum .9, rate .01, batch 64. After 50 epochs it has memorised many flips. All settings were chosen on
draws 0 to 2, so report others. ± is the standard deviation over draws; the difference to the trained model's plain loss, draw by
draw, has its standard error. Seconds are of scoring, and of the five trainings where a score needs them.

"label evidence" is `proponent.LabelEvidence`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

import proponent as pp
from gradient_cases import fashion, mlp

N, CLASSES, RATE, FOLDS, CHECKPOINTS, NEIGHBOURS, LEARNING_RATE = 5_000, 10, 0.1, 5, 10, 20, 0.01
State = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """A draw of images and flips, and the network trained on it, up to some epoch."""

    x: Tensor
    y: Tensor
    seed: int
    states: Sequence[State]

    @property
    def model(self) -> nn.Module:
        return loaded(self.states[-1])

    @property
    def checkpoints(self) -> list[State]:
        """Ten at most, evenly spaced, the last among them."""
        step = -(-len(self.states) // CHECKPOINTS)
        return list(self.states[::-1][::step][::-1])


def draw(seed: int) -> tuple[Tensor, Tensor, Any]:
    """Images, labels with a tenth of them wrong, and where."""
    (x, y), random = fashion("train", 60_000), np.random.default_rng(seed)
    at = random.permutation(len(x))[:N]
    x, y, wrong = x[at], y[at].clone(), np.zeros(N, bool)
    chosen = random.permutation(N)[: round(RATE * N)]
    y[chosen] = (y[chosen] + torch.from_numpy(random.integers(1, CLASSES, len(chosen)))) % CLASSES
    wrong[chosen] = True
    return x, y, wrong


def trained(x: Tensor, y: Tensor, seed: int, epochs: int) -> list[State]:
    """The weights after each epoch."""
    torch.manual_seed(seed)
    model, order, states = mlp(), torch.Generator().manual_seed(seed), []
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    for _ in range(epochs):
        for at in torch.randperm(len(x), generator=order).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[at]), y[at]).backward()
            optimiser.step()
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    return states


def loaded(state: State) -> nn.Module:
    model = mlp()
    model.load_state_dict(state)
    return model.eval()


def nll(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def loss(run: Run, states: Sequence[State] = ()) -> Tensor:
    """Of the trained model, or the mean over some of its checkpoints."""
    with torch.no_grad():
        return torch.stack([nll(loaded(s)(run.x), run.y) for s in states or run.states[-1:]]).mean(0)


def margin(run: Run) -> Tensor:
    """How far the strongest other class is ahead of the given label."""
    z, own = run.model(run.x).detach(), run.y[:, None]
    return z.scatter(1, own, -torch.inf).amax(1) - z.gather(1, own)[:, 0]


def ekfac(curvature: Any = None) -> Any:
    """The library's defaults, without the shortcuts that are meant for many queries."""
    return pp.Influence(curvature=curvature or pp.EKFAC(), damping=pp.Damping(0.1, scale="mean"), shortcut=0.0)


def self_influence(run: Run, method: Any, parameters: str = "*") -> Tensor:
    fitted = method.fit(pp.Task(run.model, parameters=parameters), (run.x, run.y))
    return torch.as_tensor(fitted.self_influence().dataset.value.values)


def per_class(values: Tensor, y: Tensor) -> Tensor:
    """Over the mean of all examples with the same label."""
    return values / torch.stack([values[y == c].mean() for c in range(CLASSES)])[y]


def unlike_its_class(run: Run) -> Tensor:
    """Minus the mean cosine of an example's gradient with those of the others that have its label."""
    task, train = pp.Task(run.model, parameters="4.*"), (run.x, run.y)
    scores = pp.GradCos().fit(task, train).score(train).dataset.score.values
    cosines = torch.from_numpy(scores).fill_diagonal_(0)
    same = run.y[:, None] == run.y
    return -(cosines * same).sum(1) / (same.sum(1) - 1)


def evidence(run: Run, steps: int) -> Tensor:
    """What the other examples say of the label."""
    fitted = pp.LabelEvidence(steps=steps).fit(pp.Task(run.model), (run.x, run.y))
    return torch.from_numpy(fitted.values().value)


def neighbours(run: Run) -> Tensor:
    """−log of the share of the given label among the nearest images, by cosine of centred pixels; no model."""
    x = F.normalize(run.x - run.x.mean(0))
    near = (x @ x.T).fill_diagonal_(-2).topk(NEIGHBOURS).indices
    return -(((run.y[near] == run.y[:, None]).sum(1) + 1) / (NEIGHBOURS + CLASSES)).log()


def out_of_fold(run: Run, averaged: bool = False) -> Tensor:
    """The loss under the model of five that did not see the example; averaged over its checkpoints where wanted."""
    fold, found = torch.from_numpy(np.random.default_rng(run.seed).permutation(N) % FOLDS), torch.empty(N)
    for k in range(FOLDS):
        held, rest = fold == k, fold != k
        part = Run(run.x[held], run.y[held], 0, trained(run.x[rest], run.y[rest], run.seed + k, len(run.states)))
        found[held] = loss(part, part.checkpoints if averaged else ())
    return found


SCORES: dict[str, Callable[[Run], Tensor]] = {
    "plain loss": loss,
    "margin": margin,
    "self-influence, GradDot": lambda run: self_influence(run, pp.GradDot()),
    "  last layer": lambda run: self_influence(run, pp.GradDot(), "4.*"),
    "self-influence, EK-FAC": lambda run: self_influence(run, ekfac()),
    "  over its class's mean": lambda run: per_class(self_influence(run, ekfac()), run.y),
    "  + loss (first-order LOO)": lambda run: self_influence(run, ekfac()) + loss(run),
    "−GradCos to its class": unlike_its_class,
    "label evidence, 1 step": lambda run: evidence(run, 1),
    "label evidence, 2 steps": lambda run: evidence(run, 2),
    "  label evidence + loss": lambda run: evidence(run, 2) + loss(run),
    "pixel neighbours": neighbours,
    "  neighbours + loss": lambda run: neighbours(run) + loss(run),
    "10 checkpoints: mean loss": lambda run: loss(run, run.checkpoints),
    "  TracIn self-influence": lambda run: self_influence(run, pp.TracIn(run.checkpoints, LEARNING_RATE)),
    "  label evidence + mean loss": lambda run: evidence(run, 2) + loss(run, run.checkpoints),
    "  neighbours + mean loss": lambda run: neighbours(run) + loss(run, run.checkpoints),
    "5 trainings: held-out loss": out_of_fold,
    "  mean over checkpoints": lambda run: out_of_fold(run, averaged=True),
}


def judged(score: Callable[[Run], Tensor], run: Run, wrong: Any) -> tuple[float, float, float]:
    """AUROC, the fraction of wrong labels found in the first tenth, and seconds."""
    start = time.perf_counter()
    values, seconds = score(run).numpy(), time.perf_counter() - start
    first = np.argsort(-values, kind="stable")[: len(wrong) // 10]
    return float(roc_auc_score(wrong, values)), float(wrong[first].sum() / wrong.sum()), seconds


def show(epochs: int, found: dict[str, Any]) -> None:
    """A table of (draws, 3) numbers by score."""
    print(f"\n{epochs} epochs\n{'':28}{'AUROC':>16}{'recall at 10 %':>16}{'AUROC − plain loss':>22}{'seconds':>9}")
    for name, numbers in found.items():
        (auroc, recall, seconds), sd = numbers.mean(0), numbers[:, 0].std(ddof=min(1, len(numbers) - 1))
        gap = numbers[:, 0] - found["plain loss"][:, 0]
        error = gap.std(ddof=1) / len(gap) ** 0.5 if len(gap) > 1 else float("nan")
        print(f"{name:28}{auroc:8.4f} ± {sd:.4f}{recall:16.3f}{gap.mean():+13.4f} ± {error:.4f}{seconds:9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", nargs="+", type=int, default=[3, 4, 5, 6, 7], help="0 to 2 chose the settings")
    parser.add_argument("--epochs", nargs="+", type=int, default=[10, 50])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[int, list[Any]] = {e: [] for e in args.epochs}
    for seed in args.draws:
        x, y, wrong = draw(seed)
        states = trained(x, y, seed, max(args.epochs))  # at a constant rate the short run is the start of the long one
        for epochs in args.epochs:
            run = Run(x, y, seed, states[:epochs])
            found[epochs].append({name: judged(score, run, wrong) for name, score in SCORES.items()})
    for epochs, draws in found.items():
        show(epochs, {name: np.array([d[name] for d in draws]) for name in SCORES})


if __name__ == "__main__":
    main()
