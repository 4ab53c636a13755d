"""The kinds of curvature that gradients can be measured in, and how each is fitted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from proponent.capture.blocks import Factors
from proponent.capture.convolution import Convolution
from proponent.capture.gradients import Capture
from proponent.capture.weights import weights_mark
from proponent.curvature import diagonal
from proponent.curvature.kronecker import Covariance, some_positions
from proponent.curvature.spectrum import Covariances, Spectrum, Squares, added
from proponent.draws import Draws
from proponent.errors import InputError
from proponent.progress import track
from proponent.rows import Rows, length
from proponent.task import Task

T = TypeVar("T")
R = TypeVar("R")

Fisher = Literal["sampled", "exact", "empirical"]
FEWEST = 400
"""Examples that a curvature is fitted to, where there are as many."""

PIECES = 32
"""Stretches of the training set that a subset is taken from, evenly spread."""


@dataclass(frozen=True)
class Kind:
    """How a Fisher matrix is fitted.

    Args:
        fisher: "sampled" takes one gradient of each example, of a sum of its outputs with random signs: the true Fisher on
            average, which is the Gauss-Newton matrix of the usual losses. "exact" takes one for each class, "empirical" the
            one at the target as it is, which is another matrix.
        examples: how many training examples it is fitted to, spread evenly over them; all by default.
        seed: of the random signs.
        positions: where every layer has several positions an example (tokens, pixels), how many of them for each of a
            layer's inputs or outputs are enough to fit to, and so how many examples, spread evenly; never fewer than 400.
            None takes all. The standard error that this leaves is kept with the result as `curvature_error`.
    """

    fisher: Fisher = "sampled"
    examples: int | None = None
    seed: int = 0
    positions: int | None = 100
    kronecker: ClassVar[bool] = True
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.fisher not in ("sampled", "exact", "empirical"):
            raise InputError(f"fisher {self.fisher!r}", "'sampled', 'exact' or 'empirical'", "pass fisher='sampled'")
        if self.examples is not None and self.examples < 1:
            raise InputError(f"{self.examples} examples to fit to", "at least one", "pass examples=None for all")

    def fit(self, task: Task, train: Any, batch_size: int | None = None) -> Spectrum:
        """Both passes over the training examples.

        Args:
            task: model and loss.
            train: as in `Influence.fit`.
            batch_size: examples captured at once.
        """
        return self.spectrum(task, train, self.covariances(task, train, batch_size), batch_size)

    def covariances(self, task: Task, train: Any, batch_size: int | None = None) -> Covariances:
        """The first pass: of a shard too, to be merged with the others'."""
        rows = Rows.of(train)
        with task.watching():
            return covariances(self, Capture.of(task, rows), rows, batch_size or 256)[0]

    def spectrum(self, task: Task, train: Any, covariances: Covariances, batch_size: int | None = None) -> Spectrum:
        """The second pass, in the bases of (all shards') covariances; of a shard too, to be merged with the others'."""
        rows = Rows.of(train)
        with task.watching():
            bases = decomposed(self, covariances)
            found = eigenvalues(self, Capture.of(task, rows), rows, batch_size or 256, bases)[0]
            return replace(found, made_from=self.made_from(weights_mark(task)))

    def made_from(self, weights: str) -> dict[str, Any]:
        """What a spectrum of this kind says of itself."""
        return {"kind": type(self).__name__, **vars(self), "weights": weights}


@dataclass(frozen=True)
class EKFAC(Kind):
    """Kronecker eigenbases with eigenvalues measured in them.

    F_l ≈ (Q_A ⊗ Q_S) diag(Λ) (Q_A ⊗ Q_S)ᵀ,  Λ_jk = E[(Q_Sᵀ G Q_A)²_jk]

    Parameters that are not a layer's weight or bias (norms, embeddings, loose ones) get the diagonal of the Fisher.

    >>> import torch, proponent as pp
    >>> task = pp.Task(torch.nn.Linear(3, 2))
    >>> train = torch.randn(6, 3), torch.randint(2, (6,))
    >>> scores = pp.Influence(curvature=pp.EKFAC(fisher="exact")).fit(task, train).score(train)
    >>> bool((scores.dataset.score.values.diagonal() >= 0).all())
    True

    Source: George et al., Fast approximate natural gradient descent in a Kronecker-factored eigenbasis, NeurIPS 2018.
    """


@dataclass(frozen=True)
class KFAC(Kind):
    """The product of two covariances for each layer: cheaper to fit than EKFAC by one pass, and cruder.

    F_l ≈ E[a aᵀ] ⊗ E[g gᵀ]

    Source: Martens & Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, ICML 2015.
    """

    separable: ClassVar[bool] = True


@dataclass(frozen=True)
class Diagonal(Kind):
    """The mean square of every parameter's gradient: no correlations between parameters.

    F ≈ diag(E[g²])
    """

    kronecker: ClassVar[bool] = False


KINDS: dict[str, type[Kind]] = {"ekfac": EKFAC, "kfac": KFAC, "diagonal": Diagonal}


def covariances(
    kind: Kind, capture: Capture, rows: Rows, batch: int, of: int | None = None
) -> tuple[Covariances, float]:
    """The first pass, and the relative standard error of its sums: by how much two halves of the examples differ.

    Args:
        of: how many examples there are in all, where `rows` are some of them.
    """
    halves = [Covariances(), Covariances()]
    stretches = parts(enough(kind, capture, rows), rows, batch)
    count = of or sum(at.stop - at.start for at in stretches)
    for k, at in enumerate(track(stretches, "curvature: covariances")):
        examples = capture.task.batch(rows, at)
        layers: dict[str, Covariance] = {}
        squares: Squares = {}
        for made in sums(kind, capture, examples, at.start, partial(_counted, layers, kind, count, k)):
            layers |= {name: own for name, own in made.items() if isinstance(own, Covariance)}
            squares = added(squares, {name: own for name, own in made.items() if not isinstance(own, Covariance)})
        halves[k % 2] = halves[k % 2].merge(Covariances(layers, squares, length(examples)))
    return halves[0].merge(halves[1]), _disagreement(*halves)


def _counted(
    before: Mapping[str, Covariance], kind: Kind, count: int, turn: int, name: str, block: Any
) -> Covariance | tuple[Tensor, ...]:
    """A layer's covariance, or a block's squares. Inputs that an earlier target has counted are not counted again."""
    if not (kind.kronecker and isinstance(block, Factors | Convolution) and block.weight):
        return diagonal.squares(block)
    few, share = some_positions(block, _wanted(block, kind, count), turn)
    return before[name].again(few, share) if name in before else Covariance.of(few, share)


def _wanted(block: Factors | Convolution, kind: Kind, count: int) -> float:
    """Positions an example."""
    return float("inf") if kind.positions is None else kind.positions * max(block.sides) / count


def enough(kind: Kind, capture: Capture, rows: Rows) -> Kind:
    """With as many examples as `positions` asks for."""
    if kind.positions is None or not kind.kronecker:
        return kind
    _, blocks = capture.gradients(capture.task.batch(rows, slice(0, 1)), capture.task.losses)
    layers = [b for b in blocks.values() if isinstance(b, Factors | Convolution) and b.weight]
    needed = [kind.positions * max(b.sides) / b.positions for b in layers]
    return replace(
        kind, examples=min(kind.examples or len(rows), max(FEWEST, math.ceil(max(needed, default=len(rows)))))
    )


def decomposed(kind: Kind, covariances: Covariances) -> Spectrum:
    """What the first pass gives: the bases, and every eigenvalue but those that the second pass measures."""
    if covariances.sums and not kind.separable:
        return Spectrum(covariances.bases())
    return Spectrum(covariances.bases(), covariances.means(), examples=covariances.examples, separable=kind.separable)


def eigenvalues(kind: Kind, capture: Capture, rows: Rows, batch: int, found: Spectrum) -> tuple[Spectrum, float]:
    """The second pass, where there is one; and the eigenvalues' relative standard error, as above."""
    if found.others or kind.separable:
        return found, 0.0
    halves = [found, found]
    for k, at in enumerate(track(parts(enough(kind, capture, rows), rows, batch), "curvature: eigenvalues")):
        examples, half = capture.task.batch(rows, at), halves[k % 2]
        squares = half.squares
        for made in sums(kind, capture, examples, at.start, found.squares_of):
            squares = added(squares, made)
        halves[k % 2] = replace(half, squares=squares, examples=half.examples + length(examples))
    return halves[0].merge(halves[1]), _disagreement(*halves)


def _disagreement(one: Any, other: Any) -> float:
    """‖one − other‖ / ‖one + other‖, which is the relative standard error of their mean."""
    if not one.examples or not other.examples:
        return float("nan")
    pairs = list(zip(one.parts(), other.parts(), strict=True))
    gap = sum(float((x - y).square().sum()) for x, y in pairs)
    total = sum(float((x + y).square().sum()) for x, y in pairs)
    return (gap / total) ** 0.5 if total else 0.0


def parts(kind: Kind, rows: Rows, batch: int) -> list[slice]:
    """The stretches of the training set that are looked at."""
    n, wanted = len(rows), min(len(rows), kind.examples or len(rows))
    if wanted == n:
        return rows.parts(batch)
    size = max(1, min(batch, -(-wanted // PIECES)))
    count = -(-wanted // size)
    starts = [round(k * (n - size) / max(1, count - 1)) for k in range(count)]
    return [slice(at, at + size) for at in starts]


def targets(kind: Kind, capture: Capture, examples: Any, start: int) -> Iterator[dict[str, Any]]:
    """Gradients at the targets that the kind of Fisher wants; what is not finite counts as zero."""
    return _each(kind, capture.task, start, lambda of: _finite(capture.gradients(examples, of)))


def sums(
    kind: Kind, capture: Capture, examples: Any, start: int, of_block: Callable[[str, Any], T]
) -> Iterator[dict[str, T]]:
    """As `targets`, but of each block only a sum over its examples; the block is let go of before the next one comes.

    Args:
        of_block: the sum, as a tensor, a tuple of tensors or a `Covariance`.
    """
    return _each(kind, capture.task, start, lambda of: _summed(capture, examples, of, of_block))


def _summed(
    capture: Capture, examples: Any, of: Callable[[Any], Tensor], of_block: Callable[[str, Any], T]
) -> dict[str, T]:
    made: dict[str, T] = {}
    values = capture.each(examples, of, lambda name, block: made.__setitem__(name, of_block(name, block)))
    if _all_finite([values, *_tensors(made.values())]):
        return made
    return {name: of_block(name, block) for name, block in _finite(capture.gradients(examples, of)).items()}


def _each(kind: Kind, task: Task, start: int, made: Callable[[Callable[[Any], Tensor]], R]) -> Iterator[R]:
    """What is made of the losses at each target."""
    if kind.fisher == "empirical":
        yield made(task.losses)
    elif kind.fisher == "sampled":
        draws = Draws(kind.seed, start)
        yield made(lambda b: task.signed_outputs(b, draws))
    else:
        for k in itertools.count():
            try:
                found = made(_class(task, k))
            except StopIteration:
                return
            yield found


def _class(task: Task, k: int) -> Callable[[Any], Tensor]:
    """√p_k ℓ(k): its gradients' outer products, summed over k, are the expectation over the model's targets."""

    def weighted(batch: Any) -> Tensor:
        weight, losses = _nth(task.expected_losses(batch), k)
        return weight.sqrt() * losses

    return weighted


def _nth(items: Any, k: int) -> Any:
    for _ in range(k):
        next(items)
    return next(items)


def _finite(made: tuple[Tensor, dict[str, Any]]) -> dict[str, Any]:
    """Examples with a number that is not finite, taken out as zeros: one must not spoil the sums."""
    values, blocks = made
    held = _tensors(blocks.values())
    if _all_finite([values, *held]):
        return blocks
    ok = values.isfinite()
    for t in held:
        ok = ok & t.flatten(1).isfinite().all(1)
    return {name: _masked(block, ok) for name, block in blocks.items()}


def _tensors(held: Iterable[Any]) -> list[Tensor]:
    """Those of floating point in some tensors, tuples of tensors, blocks or covariances."""
    leaves = tree_leaves([list(vars(x).values()) if is_dataclass(x) else x for x in held])
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def _all_finite(held: Sequence[Tensor]) -> bool:
    return bool(torch.stack([t.sum() for t in held]).isfinite().all())


def _masked(block: Any, ok: Tensor) -> Any:
    def clean(v: Any) -> Any:
        if isinstance(v, tuple) and v and all(isinstance(t, Tensor) for t in v):
            return tuple(clean(t) for t in v)
        if isinstance(v, Tensor) and v.is_floating_point():
            return v.masked_fill(~ok.view(-1, *(1,) * (v.ndim - 1)), 0)
        return v

    return replace(block, **{k: clean(v) for k, v in vars(block).items()})
