"""Influence functions of a PyTorch model: its gradients, measured in the inverse of a Fisher matrix."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from proponent.attribution import CHANGE
from proponent.capture.blocks import Block, Factors
from proponent.capture.gradients import Capture
from proponent.capture.weights import weights_mark
from proponent.curvature.coordinates import Coordinates
from proponent.curvature.damping import Damping, damping_of
from proponent.curvature.fisher import InverseFisher, shortcut_errors
from proponent.curvature.gram import DualPath
from proponent.curvature.inverses import CG, SOLVERS, Dual, Explicit, Solver
from proponent.curvature.kinds import KINDS, Kind, covariances, decomposed, eigenvalues
from proponent.curvature.metric import Identity, Metric
from proponent.curvature.problems import MATRICES, EmpiricalFisher, Fisher, Matrix, Problem
from proponent.curvature.spectrum import Spectrum
from proponent.errors import FingerprintMismatch, InputError, ProponentWarning, did_you_mean
from proponent.methods.damping_choice import LAYERS, WHOLE, Choice, choose
from proponent.methods.fitted_gradients import FittedGradients, Member, require_engine
from proponent.methods.score import Sizes, totals
from proponent.rows import Rows
from proponent.task import Task

Array = np.ndarray[Any, np.dtype[Any]]

COMPARED, FEWEST = 32, 4
"""Examples as queries, and as many others, on which the shortcuts' error is measured: in all no more than are captured at
once, or these few."""

SMALL = 4000
"""Parameters up to which the whole matrix is formed, where nothing else is asked for."""

Curvature = Kind | Spectrum | Matrix | str

WORSE = 3.0
"""Times the error that was asked for, above which a warning says so."""


def fit_influence(spec: Any, task: Task, train: Any) -> FittedGradients:
    """`Influence.fit` for a task."""
    start, rows = time.perf_counter(), Rows.of(train)
    curvature = curvature_of(spec.curvature)
    solver = solver_of(spec.solver, curvature)
    spec = _forward(spec)
    with task.watching():
        capture = Capture.of(task, rows)
        sizes = Sizes.of(capture, rows)
        curved = _curved(spec, curvature, solver, capture, rows, sizes)
    choice = _choice(spec, curved, capture, rows, sizes)
    with task.watching():
        metric, facts = curved.metric(choice.damping)
    return FittedGradients(
        method=f"Influence ({_said(curvature, solver)})",
        settings=task.settings() | _settings(spec, curvature, solver, choice.damping),
        unit=CHANGE,
        train=rows,
        members=[Member(capture, metric, sizes)],
        scale=1 / len(rows),
        batch=spec.batch_size,
        engine=spec.engine,
        seconds=time.perf_counter() - start,
        facts=facts | ({"damping_choice": choice.facts()} if choice.reason else {}),
    )


def _forward(spec: Any) -> Any:
    """With what forward mode leaves no choice about: directions are whole.

    Raises:
        InputError: an unknown engine, or a cut of what it takes whole.
    """
    require_engine(spec.engine)
    if spec.engine == "factors":
        return spec
    if spec.query_rank is not None:
        raise InputError(
            f"query_rank={spec.query_rank} with engine={spec.engine!r}",
            "query_rank with engine='factors', or query_rank=None",
            "leave one of them out: forward mode takes whole directions",
        )
    return replace(spec, shortcut=0.0)


def _choice(spec: Any, curved: Curved, capture: Capture, rows: Rows, sizes: Sizes) -> Choice:
    """The damping that was given, or the one that chooses itself."""
    wish = damping_of(spec.damping)
    if isinstance(wish, Damping) or curved.usual is None:
        return Choice(wish if isinstance(wish, Damping) else Damping(0.0), "")
    batch = spec.batch_size or sizes.batch()

    def sums(queries: Rows, dampings: Sequence[Damping], included: Array) -> Array:
        weights = torch.from_numpy(included)
        with capture.task.watching():
            made = [totals(capture, metric, queries, rows, batch, weights) for metric in curved.metrics(dampings)]
        together = torch.cat(made).reshape(len(dampings), len(queries), len(included))
        return together.numpy(force=True) / len(rows)

    return choose(wish, curved.usual, sums, rows)


class Curved(Protocol):
    """A curvature that is known, and can be inverted with any damping."""

    @property
    def usual(self) -> Damping | None:
        """The damping where nothing is known but the spectrum; None where there is none to choose."""
        ...

    def metric(self, damping: Damping) -> tuple[Metric, dict[str, Any]]:
        """The inverse, and what should be known of it."""
        ...

    def metrics(self, dampings: Sequence[Damping]) -> Iterator[Metric]:
        """The inverses at several dampings: one after the other, or together where that is cheaper."""
        ...


def _curved(
    spec: Any, curvature: Curvature, solver: Solver | None, capture: Capture, rows: Rows, sizes: Sizes
) -> Curved:
    batch = spec.batch_size or sizes.batch()
    if isinstance(curvature, str):
        return Uncurved()
    if isinstance(curvature, Kind | Spectrum):
        return InEigenbases.of(spec, curvature, capture, rows, batch)
    solver = solver or _usual_solver(curvature, capture, rows)
    problem = curvature.problem(capture, rows, batch)
    return BySolver(problem, solver, spec.weight_decay)


@dataclass(frozen=True)
class Uncurved:
    """The identity."""

    usual: None = None

    def metrics(self, dampings: Sequence[Damping]) -> Iterator[Metric]:
        return iter([Identity()] * len(dampings))

    def metric(self, damping: Damping) -> tuple[Metric, dict[str, Any]]:
        return Identity(), {}


@dataclass(frozen=True)
class BySolver:
    """All parameters together.

    Args:
        problem: the curvature.
        solver: how it is inverted.
        weight_decay: that is added to it.
    """

    problem: Problem
    solver: Solver
    weight_decay: float

    usual: Damping = WHOLE

    def metrics(self, dampings: Sequence[Damping]) -> Iterator[Metric]:
        if isinstance(self.solver, Dual):
            kept = self.problem.longest(self.solver.rows)
            return iter([DualPath(kept, [self._total(d) for d in dampings])])
        return (self.metric(d)[0] for d in dampings)

    def _total(self, damping: Damping) -> float:
        """λ with the weight decay."""
        absolute = damping.scale == "absolute"
        return self.weight_decay + damping.of_trace(0.0 if absolute else self._trace(), self.problem.coordinates.size)

    def _trace(self) -> float:
        """The dual knows it already."""
        if isinstance(self.solver, Dual):
            return self.problem.longest(self.solver.rows).trace
        return self.problem.trace

    def metric(self, damping: Damping) -> tuple[Metric, dict[str, Any]]:
        total = self._total(damping)
        if not total > 0 and self.solver.name in ("dual", "nystrom", "datainf", "refinement"):
            raise InputError(f"no damping for solver={self.solver.name!r}", "a positive one", "pass damping='auto'")
        metric, facts = self.solver.metric(self.problem, total)
        return metric, {"solver": {"name": self.solver.name, "damping": total, **facts}}


@dataclass(frozen=True)
class InEigenbases:
    """Layer by layer, in the eigenbases of a spectrum.

    Args:
        spec: the specification.
        spectrum: eigenvalues and bases.
        single: names of the blocks with one position.
        blocks: gradients of the examples on which shortcuts are measured; none where there is no shortcut to take.
        compared: how many these are.
        facts: about the fit.
    """

    spec: Any
    spectrum: Spectrum
    single: frozenset[str]
    blocks: Mapping[str, Block]
    compared: int
    facts: Mapping[str, Any]
    usual: Damping = LAYERS

    def metrics(self, dampings: Sequence[Damping]) -> Iterator[Metric]:
        return (self.metric(d)[0] for d in dampings)

    @classmethod
    def of(cls, spec: Any, curvature: Kind | Spectrum, capture: Capture, rows: Rows, batch: int) -> InEigenbases:
        mark = weights_mark(capture.task)
        facts: dict[str, Any] = {}
        if isinstance(curvature, Spectrum):
            found = curvature
            if found.made_from.get("weights", mark) != mark:
                raise FingerprintMismatch(
                    "a spectrum of other weights",
                    "one of this model as it is now",
                    "fit it again, or load its checkpoint",
                )
        else:
            sums, first = covariances(curvature, capture, rows, batch)
            found, second = eigenvalues(curvature, capture, rows, batch, decomposed(curvature, sums))
            found = replace(found, made_from=curvature.made_from(mark))
            facts["curvature_error"] = {"covariances": round(first, 5), "eigenvalues": round(second, 5)}
        single = single_positions(_first(capture, rows, 1))
        shortcuts = spec.query_rank is not None or (bool(single) and spec.shortcut > 0)
        compared = min(len(rows), 2 * COMPARED, max(batch, FEWEST)) if shortcuts else 0
        return cls(spec, found, single, _first(capture, rows, compared) if shortcuts else {}, compared, facts)

    def metric(self, damping: Damping) -> tuple[Metric, dict[str, Any]]:
        spec, facts = self.spec, dict(self.facts)
        decay, shortcut, rank = spec.weight_decay, spec.shortcut, spec.query_rank
        metric = InverseFisher.of(self.spectrum, damping, decay, self.single, shortcut, rank)
        if metric.expansions or metric.rank is not None:
            half = min(COMPARED, self.compared)
            facts["shortcut"] = shortcut_errors(metric, self.blocks, slice(0, half), slice(self.compared - half, None))
            error = facts["shortcut"]["relative_error"]
            if metric.rank is None and error > WORSE * spec.shortcut:
                warnings.warn(
                    f"scores within about {error:.1%} of the exact ones, where {spec.shortcut:.1%} was asked for: "
                    "these gradients are not like those that the curvature was fitted to; shortcut=0 scores exactly",
                    ProponentWarning,
                    stacklevel=4,
                )
        return metric, facts


def curvature_of(wish: Any) -> Curvature:
    """A curvature from its name or itself.

    Raises:
        InputError: an unknown name.
    """
    if wish is None:
        return KINDS["ekfac"]()
    if isinstance(wish, Kind | Spectrum | Matrix):
        return wish
    if isinstance(wish, str | Path) and str(wish).endswith(".safetensors"):
        return Spectrum.load(wish)
    if wish == "identity":
        return "identity"
    if wish in KINDS:
        return KINDS[wish]()
    if wish in MATRICES:
        return MATRICES[wish]()
    names = ["identity", *KINDS, *MATRICES]
    raise InputError(
        f"curvature {wish!r}",
        f"one of {', '.join(names)}, EKFAC(…), KFAC(…), Diagonal(…), GGN(…), Hessian(), Fisher(…), EmpiricalFisher(…), "
        "or a saved spectrum",
        did_you_mean(str(wish), names),
    )


EVERY = frozenset(SOLVERS) - {"datainf"}

LEGAL: dict[str, frozenset[str]] = {
    "ggn": EVERY,
    "fisher": EVERY,
    "empirical_fisher": frozenset(SOLVERS),
    "hessian": frozenset({"explicit", "cg", "lissa", "arnoldi"}),
}
"""The solvers that each curvature of all parameters together can be inverted by."""


def solver_of(wish: Any, curvature: Curvature) -> Solver | None:
    """A solver from its name or itself; None where the curvature needs or chooses its own.

    Raises:
        InputError: an unknown name, or a pair that does not go together.
    """
    own = getattr(curvature, "name", None)
    if wish is None:
        return None
    solver = SOLVERS[wish]() if isinstance(wish, str) and wish in SOLVERS else wish
    if not isinstance(solver, Solver):
        raise InputError(f"solver {wish!r}", f"one of {', '.join(SOLVERS)}", did_you_mean(str(wish), SOLVERS))
    if own not in LEGAL:
        raise InputError(
            f"solver={solver.name!r} for the curvature {_name(curvature)}, which is inverted in its own basis",
            f"solvers are for curvature={', '.join(map(repr, LEGAL))}",
            "leave solver out, or choose one of these curvatures",
        )
    legal = LEGAL[own] - ({"dual"} if getattr(curvature, "per_layer", False) else frozenset())
    if solver.name not in legal:
        raise InputError(
            f"solver={solver.name!r} for curvature={own!r}", f"one of {', '.join(sorted(legal))}", "choose one of them"
        )
    return solver


def _usual_solver(curvature: Matrix, capture: Capture, rows: Rows) -> Solver:
    """Explicit for small models, the dual where there are no more gradients than it keeps, conjugate gradients otherwise."""
    if Coordinates.of(capture.task).size <= SMALL:
        return Explicit()
    few = isinstance(curvature, Fisher | EmpiricalFisher) and not curvature.per_layer and len(rows) <= Dual().rows
    return Dual() if few else CG()


def _said(curvature: Curvature, solver: Solver | None) -> str:
    return _name(curvature) + (f", {solver.name}" if solver else "")


def _name(curvature: Curvature) -> str:
    if isinstance(curvature, str):
        return curvature
    return "a fitted spectrum" if isinstance(curvature, Spectrum) else type(curvature).__name__


def _settings(spec: Any, curvature: Curvature, solver: Solver | None, damping: Damping) -> dict[str, Any]:
    """What decides the scores, for the record."""
    made: dict[str, Any] = {"curvature": _name(curvature)}
    if isinstance(curvature, Kind | Matrix):
        made |= vars(curvature)
    if isinstance(curvature, Spectrum):
        made |= {"spectrum": dict(curvature.made_from)}
    if isinstance(curvature, Matrix):
        made |= {"solver": vars(solver) | {"name": solver.name} if solver else "usual"}
    return made | {
        "damping": vars(damping),
        "weight_decay": spec.weight_decay,
        "shortcut": spec.shortcut,
        "query_rank": spec.query_rank,
        "engine": spec.engine,
    }


def single_positions(blocks: Mapping[str, Block]) -> frozenset[str]:
    """Names of the blocks that have one position an example."""
    return frozenset(n for n, b in blocks.items() if isinstance(b, Factors) and b.positions == 1)


def _first(capture: Capture, rows: Rows, count: int) -> dict[str, Any]:
    """Gradients of the first examples."""
    return capture.gradients(capture.task.batch(rows, slice(0, count)), capture.task.losses)[1]
