"""Curvatures that are multiplied, never formed: v ↦ A v for many vectors at once, in passes over the training examples.

moment      A = (1/n) Σ_i Σ_k g_ik g_ikᵀ      Gauss-Newton (k: the terms of the loss's Hessian), true and empirical Fisher
linearised  A = (1/n) Σ_i ∇²ℓ_i, or Σ_i J_iᵀ H_i J_i for losses whose terms are too many to go through one by one
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from proponent.capture.blocks import CHUNK, Block, Factors
from proponent.capture.gradients import Capture
from proponent.capture.products import times
from proponent.curvature.coordinates import Coordinates
from proponent.curvature.kinds import Kind, targets
from proponent.errors import UnsupportedModel
from proponent.rows import Rows, length


class Operator(Protocol):
    """A symmetric matrix of all parameters."""

    @property
    def coordinates(self) -> Coordinates: ...

    def times(self, vectors: Tensor) -> Tensor:
        """(q, P) A v of each row, in one pass over the training examples."""
        ...

    def times_of(self, vectors: Tensor, batch: Any, start: int) -> Tensor:
        """As `times`, from the examples of one batch; `start` numbers their random signs."""
        ...


class MeanOverExamples:
    """A matrix that is a mean over training examples, applied to many vectors batch by batch."""

    capture: Capture
    rows: Rows
    batch: int

    @cached_property
    def coordinates(self) -> Coordinates:
        return Coordinates.of(self.capture.task)

    def parts(self) -> list[slice]:
        return self.rows.parts(self.batch)

    def times(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for part in self.parts():
            self._add(vectors, self.capture.task.batch(self.rows, part), part.start, total)
        return total.div_(len(self.rows))

    def times_of(self, vectors: Tensor, batch: Any, start: int) -> Tensor:
        total = torch.zeros_like(vectors)
        self._add(vectors, batch, start, total)
        return total.div_(length(batch))

    def _add(self, vectors: Tensor, batch: Any, start: int, total: Tensor) -> None:
        """total += the sum over a batch that begins at example `start`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Moment(MeanOverExamples):
    """The mean over examples of the outer products of gradients.

    Args:
        capture: how gradients are taken.
        rows: training examples.
        kind: whose `fisher` says which gradients: "exact" those of every term of the loss's output Hessian, which makes the
            Gauss-Newton matrix; "sampled" one of a random sum of its outputs; "empirical" the one at the target as it is.
        batch: examples captured at once.
        per_layer: the blocks on the diagonal only.
    """

    capture: Capture
    rows: Rows
    kind: Kind
    batch: int
    per_layer: bool = False

    def _add(self, vectors: Tensor, batch: Any, start: int, total: Tensor) -> None:
        own, into = self.coordinates.split(vectors), self.coordinates.split(total)
        layers = [Shared.of(blocks) for blocks in grouped(targets(self.kind, self.capture, batch, start)).values()]
        along = [layer.along([own[n] for n in layer.names]) for layer in layers]
        if not self.per_layer:
            along = [sum_of(along)] * len(layers)
        for layer, weights in zip(layers, along, strict=True):
            for name, made in zip(layer.names, layer.back(weights), strict=True):
                into[name].add_(made)

    def trace(self) -> float:
        """Σ of the eigenvalues: the mean squared length of a gradient, summed over terms."""
        total = 0.0
        for part in self.parts():
            batch = self.capture.task.batch(self.rows, part)
            for blocks in targets(self.kind, self.capture, batch, part.start):
                total += sum(float(b.norm2().double().sum()) for b in blocks.values())
        return total / len(self.rows)


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum, in the first's place."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def grouped(made: Iterator[dict[str, Block]]) -> dict[str, list[Block]]:
    """Every block's gradients at all the targets."""
    found: dict[str, list[Block]] = {}
    for blocks in made:
        for name, block in blocks.items():
            found.setdefault(name, []).append(block)
    return found


@dataclass(frozen=True)
class Shared:
    """k gradients of each of b examples for one block; where they share a layer's inputs, the inputs are multiplied once.

    Args:
        blocks: k blocks of b gradients.
    """

    blocks: Sequence[Block]

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Shared:
        first = blocks[0]
        one = isinstance(first, Factors) and first.positions == 1 and first.weight and not first.transposed
        return SharedInputs(blocks) if one else cls(blocks)

    @property
    def names(self) -> tuple[str, ...]:
        return self.blocks[0].names

    def along(self, vectors: Sequence[Tensor]) -> Tensor:
        """(k, q, b) ⟨v_q, gradient_ki⟩."""
        q, b = len(vectors[0]), len(self.blocks[0])
        out = vectors[0].new_zeros(len(self.blocks), q, b)
        for k, block in enumerate(self.blocks):
            block.against(vectors, out[k])
        return out

    def back(self, weights: Tensor) -> Iterator[Tensor]:
        """(q, P) of each part: Σ_ki weight_kqi gradient_ki."""
        made = [weighted(block, w) for block, w in zip(self.blocks, weights, strict=True)]
        return (sum_of(parts) for parts in zip(*made, strict=True))


class SharedInputs(Shared):
    """Of a linear layer with one position: Σ_k g_k aᵀ with the same a."""

    def along(self, vectors: Sequence[Tensor]) -> Tensor:
        a, g = self._a, self._g
        b, k, o = g.shape
        q = len(vectors[0])
        out = vectors[0].new_empty(k, q, b)
        step = max(1, CHUNK // (o * b))
        for at in range(0, q, step):
            few = slice(at, min(at + step, q))
            made = times(vectors[0][few].reshape(-1, a.shape[1]), a.T).view(-1, o, b)
            if len(vectors) > 1:
                made += vectors[1][few, :, None]
            out[:, few] = torch.bmm(made.permute(2, 0, 1), g.mT).permute(2, 1, 0)
        return out

    def back(self, weights: Tensor) -> Iterator[Tensor]:
        a, g = self._a, self._g
        b, _, o = g.shape
        q = weights.shape[1]
        weight, bias = a.new_empty(q, o * a.shape[1]), a.new_empty(q, o)
        step = max(1, CHUNK // (o * b))
        for at in range(0, q, step):
            few = slice(at, min(at + step, q))
            made = torch.bmm(weights[:, few].permute(2, 1, 0), g).permute(1, 2, 0)  # (q, O, b)
            weight[few] = times(made.reshape(-1, b), a).view(-1, o * a.shape[1])
            bias[few] = made.sum(2)
        return iter((weight, bias)[: len(self.names)])

    @property
    def _a(self) -> Tensor:
        first = self.blocks[0]
        assert isinstance(first, Factors)
        return first.a[:, 0]

    @cached_property
    def _g(self) -> Tensor:
        """(b, k, O)."""
        return torch.stack([block.g[:, 0] for block in self.blocks if isinstance(block, Factors)], 1)


def weighted(block: Block, weights: Tensor) -> tuple[Tensor, ...]:
    """Σ_i weight_qi gradient_i, (q, P) for each part.

    Args:
        weights: (q, b).
    """
    totals = [weights.new_zeros(len(weights), size) for size in block.sizes]
    step = max(1, CHUNK // max(1, sum(block.sizes)))
    for at in range(0, len(block), step):
        part = slice(at, at + step)
        for total, rows in zip(totals, block[part].rows(), strict=True):
            total.addmm_(weights[:, part], rows)
    return tuple(totals)


@dataclass(frozen=True)
class Linearised(MeanOverExamples):
    """The exact Hessian of the mean loss, or its Gauss-Newton matrix, by differentiating twice.

    Args:
        capture: of the task whose losses are differentiated.
        rows: training examples.
        second: which of the two.
        batch: examples at once.
    """

    capture: Capture
    rows: Rows
    second: Literal["hessian", "ggn"]
    batch: int

    def _add(self, vectors: Tensor, batch: Any, start: int, total: Tensor) -> None:
        held = {name: p.detach() for name, p in self.capture.task.selected().items()}
        tangents = {n: v.view(-1, *held[n].shape) for n, v in self.coordinates.split(vectors).items()}
        # A tangent of each query goes through the whole network at once.
        step = max(1, CHUNK // max(1, sum(p.numel() for p in held.values())))
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of PyTorch's own decompositions
            made = _differentiated(vmap(self._product(held, batch), chunk_size=step), tangents)
        total += self.coordinates.join({n: m.flatten(1) for n, m in made.items()}, vectors)

    def _product(self, held: dict[str, Tensor], batch: Any) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        """v ↦ A v for a sum over the batch."""
        task = self.capture.task

        def net(parameters: dict[str, Tensor]) -> Callable[..., Any]:
            return lambda *a, **k: functional_call(task.net, parameters, a, k)

        if self.second == "hessian":
            slope = grad(lambda p: task.losses(batch, net=net(p)).sum())
            return lambda v: jvp(slope, (held,), (v,))[1]
        loss = task._loss
        if not hasattr(loss, "per_example"):
            raise UnsupportedModel(
                "the Gauss-Newton matrix of a loss that is a function",
                "a named loss, whose output is known",
                "use a named loss, curvature='hessian' or 'empirical_fisher'",
            )

        def output(parameters: dict[str, Tensor]) -> Tensor:
            return loss.output(net(parameters), batch)

        def product(v: dict[str, Tensor]) -> dict[str, Tensor]:
            made, tangent = jvp(output, (held,), (v,))
            curved = jvp(grad(lambda z: loss.per_example(z, batch).sum()), (made,), (tangent,))[1]
            found: dict[str, Tensor] = vjp(output, held)[1](curved)[0]
            return found

        return product

    def trace(self, probes: int = 16, seed: int = 0) -> float:
        """Hutchinson's estimate of the sum of the eigenvalues."""
        task = self.capture.task
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (probes, self.coordinates.size), generator=generator) * 2 - 1
        signs = signs.to(task.device, task.precision)
        return float((signs * self.times(signs)).sum()) / probes


def _differentiated(product: Callable[..., dict[str, Tensor]], tangents: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        return product(tangents)
    except (RuntimeError, NotImplementedError) as e:
        raise UnsupportedModel(
            f"a model that cannot be differentiated twice ({str(e).splitlines()[0]})",
            "operations that torch.func differentiates in forward mode",
            "use curvature='fisher' or 'ekfac', which need one backward pass",
        ) from e
