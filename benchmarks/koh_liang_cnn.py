"""The network of Koh & Liang's figure 2 (right): trained to a stationary point, and again without single rows.

All of it is in float64. The objective is (1/n) Σ_{j ≠ i} ℓ_j + λ/2 ‖θ‖², biases too: without their penalty a constant added to
all ten logits costs nothing, and no optimum is isolated. What is found on the way is kept under the benchmarks' cache, so that a
run that was stopped goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F

import proponent as pp
from gradient_cases import SEED, cache, digits
from koh_liang_hessian import add_hessian

DECAY, BATCH, THEIR_QUERY = 0.001, 500, 6558
ADAM = ((6_000, 1e-3), (4_000, 1e-4))
"""Steps and learning rates, with batches of 100."""
APPROACH, REFITTED, SHIFT, MEMORY = 400, 1e-7, 0.1, 100


def network() -> nn.Module:
    """Seven layers of their all-convolutional network, tanh after each but the last; 2,616 parameters."""

    def convolution(before: int, after: int, side: int, stride: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(before, after, side, stride)
        nn.init.trunc_normal_(layer.weight, std=2 / (side * before**0.5), a=-4 / side, b=4 / side)
        nn.init.zeros_(layer.bias)
        return [layer, nn.Tanh()]

    last = nn.Linear(10, 10)
    nn.init.trunc_normal_(last.weight, std=10**-0.5)
    nn.init.zeros_(last.bias)
    hidden = [(1, 8, 3), (8, 8, 3, 2), (8, 8, 3), (8, 8, 3, 2), (8, 8, 3), (8, 10, 1)]
    layers = [module for shape in hidden for module in convolution(*shape)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).double()


def their_small_rows() -> tuple[Tensor, Tensor]:
    """(5500, 1, 28, 28) and classes: every tenth of the 55,000, as their seed draws them."""
    x, y = digits("mnist", "train", 60_000)
    order = np.arange(55_000)
    np.random.RandomState(0).shuffle(order)  # the old generator is what they drew with
    rows = torch.from_numpy(5_000 + order[:5_500])
    return images(x[rows]), y[rows]


def images(x: Tensor) -> Tensor:
    return x.double().view(-1, 1, 28, 28)


@dataclass(frozen=True)
class Objective:
    """The mean loss of a network over its rows, with its penalty, as a function of all parameters in one vector."""

    net: nn.Module
    x: Tensor
    y: Tensor
    decay: float = DECAY

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: p.shape for name, p in self.net.named_parameters()}

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        held = {name: p.view(shape) for (name, shape), p in zip(self.shapes.items(), parts, strict=True)}
        return functional_call(self.net, held, (x,))

    def losses(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(theta, x), y, reduction="none")

    def says(self, theta: Tensor) -> str:
        with torch.no_grad():
            f = torch.cat([self.logits(theta, x) for x, _ in self.batches()])
            loss, right = float(F.cross_entropy(f, self.y)), float((f.argmax(1) == self.y).double().mean())
        value, slope = self.slope(theta)
        return f"objective {value:.5f} (loss {loss:.5f}, accuracy {right:.4f}), gradient {float(slope.norm()):.1e}"

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.x.split(size), self.y.split(size), strict=True)

    def slope(self, theta: Tensor, without: int | None = None) -> tuple[float, Tensor]:
        """The objective without one row, and its gradient."""
        value, total = self.decay / 2 * float(theta @ theta), self.decay * theta
        for x, y in self.batches():
            value, total = self._add(theta, x, y, 1 / len(self.x), value, total)
        if without is not None:
            row = slice(without, without + 1)
            value, total = self._add(theta, self.x[row], self.y[row], -1 / len(self.x), value, total)
        return value, total

    def _add(self, theta: Tensor, x: Tensor, y: Tensor, weight: float, value: float, total: Tensor):
        held = theta.detach().requires_grad_()
        part = self.losses(held, x, y).sum() * weight
        return value + float(part.detach()), total + torch.autograd.grad(part, held)[0]

    def times(self, theta: Tensor, v: Tensor) -> Tensor:
        """The Hessian's product with a vector."""
        total = self.decay * v
        for x, y in self.batches():
            held = theta.detach().requires_grad_()
            first = torch.autograd.grad(self.losses(held, x, y).sum() / len(self.x), held, create_graph=True)[0]
            total = total + torch.autograd.grad(first @ v, held)[0]
        return total

    def gauss_newton(self, theta: Tensor) -> Tensor:
        """(1/n) Σ Jᵀ(diag p − p pᵀ)J with the penalty."""
        made = self.decay * torch.eye(len(theta), dtype=theta.dtype)
        for x, _ in self.batches(50):
            p = self.logits(theta, x).softmax(1).detach()
            jacobian = vmap(jacrev(lambda t, one: self.logits(t, one[None])[0]), (None, 0))(theta, x)
            centred = jacobian - torch.einsum("bc,bcp->bp", p, jacobian)[:, None]
            rows = (centred * (p / len(self.x)).sqrt()[:, :, None]).flatten(0, 1)
            made.addmm_(rows.T, rows)
        return made


@dataclass(frozen=True)
class Held:
    """An objective made to have its minimum at given weights: less their gradient, plus (hold/2) ‖θ − their weights‖².

    A network whose training was stopped moves on when it is trained again, with or without a row. The gradient that is taken off
    is that motion, to first order; `hold` keeps directions of negative curvature from running away. At a minimum neither is there.
    """

    objective: Objective
    at: Tensor
    gradient: Tensor
    hold: float

    @classmethod
    def of(cls, objective: Objective, theta: Tensor, hold: float) -> Held:
        return cls(objective, theta, objective.slope(theta)[1], hold)

    def slope(self, theta: Tensor, without: int | None = None) -> tuple[float, Tensor]:
        value, slope = self.objective.slope(theta, without)
        away = theta - self.at
        value += float(self.hold / 2 * away @ away - self.gradient @ away)
        return value, slope + self.hold * away - self.gradient


# Training


def kept(name: str) -> Path:
    return cache() / f"koh-liang-cnn-{name}.pt"


def keep(name: str, state: dict) -> None:
    path = kept(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    torch.save(state, unfinished)
    unfinished.replace(path)


def recall(name: str, state: dict) -> dict:
    """What was kept under a name, or the state to begin with."""
    return torch.load(kept(name), weights_only=True) if kept(name).exists() else state


def stopped(objective: Objective) -> tuple[Tensor, float]:
    """The weights after a run of Adam, and the seconds it took."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        start = nn.utils.parameters_to_vector(network().parameters()).detach()
    zero = torch.zeros_like(start)
    state = recall("adam", {"theta": start, "first": zero, "second": zero, "step": 0, "seconds": 0.0})
    rates = [rate for steps, rate in ADAM for _ in range(steps)]
    begun = time.perf_counter() - state["seconds"]
    while state["step"] < len(rates):
        state = adam(objective, state, rates[state["step"]])
        if state["step"] % 500 == 0:
            keep("adam", state | {"seconds": time.perf_counter() - begun})
    return state["theta"], state["seconds"]


def adam(objective: Objective, state: dict, rate: float) -> dict:
    """One step on a batch that its number draws."""
    step, theta = state["step"] + 1, state["theta"].clone().requires_grad_()
    rows = torch.from_numpy(np.random.default_rng((SEED, step)).choice(len(objective.x), 100, replace=False))
    value = objective.losses(theta, objective.x[rows], objective.y[rows]).mean() + DECAY / 2 * theta @ theta
    g = torch.autograd.grad(value, theta)[0]
    first, second = 0.9 * state["first"] + 0.1 * g, 0.999 * state["second"] + 0.001 * g * g
    move = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return state | {"theta": theta.detach() - rate * move, "first": first, "second": second, "step": step}


def approached(objective: Objective, theta: Tensor) -> dict:
    """The weights after 400 quasi-Newton steps that begin from the Gauss-Newton matrix, found anew every 100 steps."""
    state = recall("approached", {"theta": theta, "steps": 0, "seconds": 0.0, "pairs": []})
    while state["steps"] < APPROACH:
        begun = time.perf_counter()
        inverse = inverse_of(objective.gauss_newton(state["theta"]), SHIFT)
        found = descend(objective.slope, state["theta"], inverse, 0.0, 100, state["pairs"])
        state |= {"theta": found.theta, "pairs": found.pairs, "steps": state["steps"] + found.steps}
        state["seconds"] += time.perf_counter() - begun
        keep("approached", state)
        size = float(found.slope.norm())
        print(f"  {state['steps']} steps: objective {found.value:.9f}, gradient {size:.2e}", flush=True)
    return state


@dataclass(frozen=True)
class Found:
    """Where a descent ended."""

    theta: Tensor
    value: float
    slope: Tensor
    steps: int
    pairs: list[tuple[Tensor, Tensor]]


def descend(
    slope: Callable[[Tensor], tuple[float, Tensor]],
    theta: Tensor,
    inverse: Callable[[Tensor], Tensor],
    tolerance: float,
    most: int,
    pairs: Sequence[tuple[Tensor, Tensor]] = (),
) -> Found:
    """Limited-memory BFGS with a given inverse curvature to begin with, until the gradient is shorter than the tolerance.

    Args:
        slope: value and gradient.
        pairs: steps and the changes of the gradient along them, from before.
    """
    pairs, steps = list(pairs), 0
    value, g = slope(theta)
    while float(g.norm()) > tolerance and steps < most:
        move, rate = -by_pairs(g, inverse, pairs), 1.0
        along = float(g @ move)
        while True:
            now, after = slope(theta + rate * move)
            # Near the minimum rounding hides a fall of the value, but not one of the gradient.
            if now <= value + 1e-4 * rate * along or float(after.norm()) < 0.5 * float(g.norm()) or rate < 1e-6:
                break
            rate *= min(0.5, max(0.1, -along * rate / (2 * (now - value - along * rate))))
        if float((after - g) @ move) > 0:
            pairs = [*pairs[-MEMORY:], (rate * move, after - g)]
        theta, value, g, steps = theta + rate * move, now, after, steps + 1
    return Found(theta, value, g, steps, pairs)


def by_pairs(g: Tensor, inverse: Callable[[Tensor], Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse curvature that fits all pairs, times a gradient."""
    weights = []
    for s, y in reversed(pairs):
        weights.append(float(s @ g) / float(s @ y))
        g = g - weights[-1] * y
    found = inverse(g)
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        found = found + (weight - float(y @ found) / float(s @ y)) * s
    return found


def inverse_of(curvature: Tensor, shift: float) -> Callable[[Tensor], Tensor]:
    """By its Cholesky factor; where it is not positive definite, by the absolute values of its eigenvalues."""
    size = len(curvature)
    factor, failed = torch.linalg.cholesky_ex(curvature + shift * torch.eye(size).to(curvature))
    if not int(failed):
        return lambda g: torch.cholesky_solve(g.reshape(size, -1), factor).view_as(g)
    values, vectors = torch.linalg.eigh(curvature)
    values += shift
    print(f"  {int((values < 0).sum())} negative eigenvalues, the least {float(values[0]):.2e}", flush=True)
    held = values.abs().clamp(min=DECAY)[:, None]
    return lambda g: (vectors @ ((vectors.T @ g.reshape(size, -1)) / held)).view_as(g)


def hessian(objective: Objective, theta: Tensor) -> Tensor:
    """With the penalty; its products in float32, which leave some 1e-6 of the largest eigenvalue uncertain."""
    size = len(theta)
    state = recall("hessian", {"made": torch.zeros(size, size, dtype=torch.float64), "rows": 0})
    net = network().float()
    nn.utils.vector_to_parameters(theta.float(), net.parameters())
    while state["rows"] < len(objective.x):
        part = slice(state["rows"], state["rows"] + 20)
        add_hessian(state["made"], net, objective.x[part].float(), objective.y[part], 1 / len(objective.x))
        state["rows"] += 20
        if state["rows"] % 1000 == 0 or state["rows"] >= len(objective.x):
            keep("hessian", state)
    return (state["made"] + state["made"].T) / 2 + DECAY * torch.eye(size, dtype=torch.float64)


# What influence predicts, and what happens


def without_each(held: Held, curvature: Tensor, rows: Sequence[int]) -> dict[int, Tensor]:
    """Weights at the minimum of the objective without each row, near those of all rows."""
    inverse, found, begun = inverse_of(curvature, held.hold), recall("without", {}), time.perf_counter()
    missing = [row for row in rows if row not in found]
    for row in missing:
        made = descend(lambda t, row=row: held.slope(t, row), held.at, inverse, REFITTED, 60)
        found[row] = {"theta": made.theta, "size": float(made.slope.norm()), "steps": made.steps}
        keep("without", found)
    steps, sizes = zip(*((found[row]["steps"], found[row]["size"]) for row in rows), strict=True)
    print(
        f"  {len(rows)} refits, {len(missing)} of them now, in {time.perf_counter() - begun:.0f} s; "
        f"{np.mean(steps):.1f} steps each, largest gradient {max(sizes):.1e}"
    )
    return {row: found[row]["theta"] for row in rows}


def written_out(
    objective: Objective, theta: Tensor, curvature: Tensor, damping: float, query: tuple[Tensor, Tensor]
) -> np.ndarray:
    """(q, n) ∇ℓ_qᵀ (H + damping)⁻¹ ∇ℓ_i / n."""
    one = grad(lambda t, x, y: objective.losses(t, x[None], y[None])[0])
    each = vmap(one, (None, 0, 0), chunk_size=BATCH)
    directions = inverse_of(curvature, damping)(each(theta, *query).T)
    return (each(theta, objective.x, objective.y) @ directions / len(objective.x)).T.numpy()


def by_package(
    objective: Objective, theta: Tensor, query: tuple[Tensor, Tensor], **settings: Any
) -> tuple[np.ndarray, str]:
    """(q, n) scores, and what took how long."""
    net = network()
    nn.utils.vector_to_parameters(theta, net.parameters())
    begun = time.perf_counter()
    fitted = pp.Influence(weight_decay=DECAY, **settings).fit(pp.Task(net), (objective.x, objective.y))
    made = fitted.score(query).dataset
    residual = float(made.residual.max()) if "residual" in made else np.nan
    return made.score.to_numpy(), f"residual {residual:.1e}, {time.perf_counter() - begun:.0f} s"


@dataclass(frozen=True)
class Experiment:
    """A trained network, queries, and what happens to their losses without single rows.

    Args:
        curvature: the Hessian, with the penalty.
        numbers: of the queries among the test images.
    """

    held: Held
    curvature: Tensor
    query: tuple[Tensor, Tensor]
    numbers: Sequence[int]

    @classmethod
    def of(cls, objective: Objective, state: dict, hold: float, queries: int) -> Experiment:
        """Of theirs and of the first misclassified test images."""
        theta = state["theta"]
        print(f"  {state['steps']} steps, {state['seconds']:.0f} s, {objective.says(theta)}")
        curvature = hessian(objective, theta)
        values = torch.linalg.eigvalsh(curvature)
        print(f"  eigenvalues {float(values[0]):.2e} to {float(values[-1]):.4g}, {int((values < 0).sum())} negative")
        probe = torch.randn(len(theta), generator=torch.Generator().manual_seed(SEED), dtype=theta.dtype)
        product = objective.times(theta, probe)
        print(
            f"  Hessian against a product: relative error {float((curvature @ probe - product).norm() / product.norm()):.1e}"
        )
        x, y = digits("mnist", "t10k", 10_000)
        with torch.no_grad():
            wrong = torch.cat([objective.logits(theta, part).argmax(1) for part in images(x).split(BATCH)]) != y
        numbers = [THEIR_QUERY, *(q for q in torch.nonzero(wrong)[:, 0].tolist() if q != THEIR_QUERY)][:queries]
        return cls(Held.of(objective, theta, hold), curvature, (images(x[numbers]), y[numbers]), numbers)

    def changes(self, rows: Sequence[int]) -> np.ndarray:
        """(q, rows) of the queries' losses when a row is left out."""
        found, objective = without_each(self.held, self.curvature, rows), self.held.objective
        with torch.no_grad():
            now = objective.losses(self.held.at, *self.query)
            return torch.stack([objective.losses(found[row], *self.query) - now for row in rows], 1).numpy()

    def written_out(self, damping: float) -> np.ndarray:
        return written_out(self.held.objective, self.held.at, self.curvature, damping, self.query)

    def by_package(self, curvature: Any, solver: Any, damping: float, queries: int) -> tuple[np.ndarray, str]:
        query = (self.query[0][:queries], self.query[1][:queries])
        settings = {"curvature": curvature, "solver": solver, "damping": damping}
        return by_package(self.held.objective, self.held.at, query, **settings)
