"""TracIn: gradient dot products, summed over the checkpoints of a training run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from proponent.capture.gradients import Capture
from proponent.curvature.metric import Identity
from proponent.errors import InputError, MissingExtra
from proponent.methods.fitted_gradients import FittedGradients, Member
from proponent.methods.score import Sizes
from proponent.rows import Rows
from proponent.task import Task


@dataclass(frozen=True)
class TracIn:
    """How much training on an example moved a query's measurement, followed through the checkpoints of one run.

    score[q, i] = −Σ_c η_c ⟨∇m_q(θ_c), ∇ℓ_i(θ_c)⟩   (TracInCP)

    It assumes plain SGD; with momentum or Adam the checkpoints' gradients are not the steps that were taken.

    >>> import torch, proponent as pp
    >>> model = torch.nn.Linear(3, 2)
    >>> train = torch.randn(6, 3), torch.randint(2, (6,))
    >>> run = [model.state_dict(), model.state_dict()]
    >>> TracIn(run, learning_rates=0.1).fit(pp.Task(model), train).score(train).shape
    (6, 6)

    Args:
        checkpoints: of one training run: paths of safetensors files (or torch files, read with weights_only=True), or
            state dicts. Each is read once per pass over the training set.
        learning_rates: η at each checkpoint, or one for all. By default the safetensors metadata's "learning_rate".
        batch_size: training examples captured at once; found from their size by default.
        engine: "factors" or "jvp", as in `GradDot`.

    Raises:
        InputError: a learning rate is missing, or a checkpoint does not fit the model.

    Source: Pruthi et al., Estimating training data influence by tracing gradient descent, NeurIPS 2020.
    """

    checkpoints: Sequence[str | Path | Mapping[str, Any]]
    learning_rates: float | Sequence[float] | None = None
    batch_size: int | None = None
    engine: Literal["factors", "jvp"] = "factors"

    def fit(self, task: Task, train: Any) -> FittedGradients:
        """Check every checkpoint's fit to the model, on a copy of it.

        Args:
            task: model, loss and measurement; its own weights are not used.
            train: as in `GradDot.fit`.
        """
        start, rows = time.perf_counter(), Rows.of(train)
        rates = self._rates()
        own = replace(task, model=copy.deepcopy(task.net))
        with own.watching():
            capture = Capture.of(own, rows)
            sizes = Sizes.of(capture, rows)
        members = [
            Member(capture, Identity(), sizes, rate, _into(own.net, checkpoint))
            for checkpoint, rate in zip(self.checkpoints, rates, strict=True)
        ]
        return FittedGradients(
            method="TracIn",
            settings=task.settings() | {"learning_rates": rates, "checkpoints": len(rates), "engine": self.engine},
            unit="Σ learning rate × ⟨gradients⟩ over checkpoints: a ranking",
            train=rows,
            members=members,
            batch=self.batch_size,
            engine=self.engine,
            seconds=time.perf_counter() - start,
        )

    def _rates(self) -> list[float]:
        if not self.checkpoints:
            raise InputError("no checkpoint", "the checkpoints of one training run", "check the paths or the pattern")
        given = self.learning_rates
        if given is None:
            return [_stored_rate(c) for c in self.checkpoints]
        rates = [float(given)] * len(self.checkpoints) if isinstance(given, int | float) else list(map(float, given))
        if len(rates) != len(self.checkpoints):
            raise InputError(
                f"{len(rates)} learning rates for {len(self.checkpoints)} checkpoints", "one for each", "pass as many"
            )
        return rates


def _into(net: nn.Module, checkpoint: str | Path | Mapping[str, Any]) -> Callable[[], Any]:
    @contextmanager
    def loaded() -> Iterator[None]:
        state = checkpoint if isinstance(checkpoint, Mapping) else read_state(checkpoint)
        try:
            net.load_state_dict(state)
        except RuntimeError as e:
            raise InputError(
                f"a checkpoint that does not fit the model ({e})", "the model's own state dict", "check it"
            ) from e
        yield

    return loaded


def read_state(path: str | Path) -> dict[str, Any]:
    """A state dict from a safetensors file, or from a torch file by the reader that runs no code."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"nothing at {path}", "a checkpoint", "check the path")
    if path.suffix == ".safetensors":
        return dict(_safetensors().load_file(path))
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _stored_rate(checkpoint: str | Path | Mapping[str, Any]) -> float:
    if not isinstance(checkpoint, Mapping) and Path(checkpoint).suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(checkpoint, "pt") as file:
            stored = (file.metadata() or {}).get("learning_rate")
        if stored is not None:
            return float(stored)
    raise InputError(
        "a checkpoint without a learning rate",
        "learning_rates=…, or metadata {'learning_rate': …} in the safetensors file",
        "pass the learning rate of each checkpoint, or one for all",
    )


def _safetensors() -> Any:
    try:
        import safetensors.torch as reader
    except ImportError as e:
        raise MissingExtra("no safetensors", "the package safetensors", "pip install 'proponent[torch]'") from e
    return reader
