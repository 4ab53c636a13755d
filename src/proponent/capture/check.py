"""`check_capture`: are this model's per-example gradients right?"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from proponent.capture.gradients import Capture, few
from proponent.errors import InputError
from proponent.rows import Rows, length
from proponent.task import Task

WORST = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass(frozen=True)
class CaptureCheck:
    """What `check_capture` found.

    Args:
        table: a row per parameter: parameter, module, how its gradient is taken, relative error.
        tolerance: errors up to this are rounding.
    """

    table: pd.DataFrame
    tolerance: float

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return float(self.table["error"].max())

    @property
    def passed(self) -> bool:
        """Whether every gradient is right to rounding."""
        return bool(self.worst <= self.tolerance)

    def __repr__(self) -> str:
        verdict = "all right" if self.passed else "WRONG"
        return f"CaptureCheck: {verdict}, worst relative error {self.worst:.1e}\n{self.table.to_string(index=False)}"


def check_capture(task: Task, train: Any, examples: int = 4, dtype: torch.dtype | None = torch.float64) -> CaptureCheck:
    """Compare each parameter's per-example gradients with autograd, one example at a time.

    error = ‖captured − one by one‖ / ‖one by one‖, over a few examples

    >>> import torch, proponent as pp
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    >>> check = check_capture(pp.Task(model), (torch.randn(5, 3), torch.randint(2, (5,))))
    >>> check.passed, check.table["by"].unique().tolist()
    (True, ['its layer rule'])

    Args:
        task: model, loss and measurement.
        train: training examples, as for `fit`.
        examples: how many are compared.
        dtype: the check is made on a copy of the model in this precision; None takes the model as it is.

    Raises:
        InputError: one of these examples has a loss that is not finite, so that nothing can be compared.
    """
    rows = Rows.of(train)
    own = task if dtype is None else replace(task, model=copy.deepcopy(task.net).to(dtype))
    with own.watching():
        capture = Capture.of(own, rows)
        batch = few(rows, examples, own)
        bad = rows.ids[: length(batch)][~own.losses(batch).isfinite().cpu().numpy()[: len(rows)]]
        if len(bad):
            raise InputError(
                f"losses that are not finite (examples {bad.tolist()})",
                f"{examples} examples with finite losses",
                "pass others of the training examples",
            )
        errors = capture.disagreements(batch)
    ways = {name: _way(unit.rule) for unit in capture.units for name in unit.wanted.values()}
    ways |= dict.fromkeys(capture.tied, "the sum over its uses") | dict.fromkeys(
        capture.whole, "the whole model, one by one"
    )
    homes = {name: unit.name for unit in capture.units for name in unit.wanted.values()}
    table = pd.DataFrame(
        {
            "parameter": list(errors),
            "module": [homes.get(name, "") for name in errors],
            "by": [ways.get(name, "nothing: it is not used") for name in errors],
            "error": list(errors.values()),
        }
    )
    precision = next(iter(own.selected().values())).dtype
    return CaptureCheck(table, WORST.get(precision, 0.02))


def _way(rule: Any) -> str:
    return "the module, once more by torch.func" if rule is None else "its layer rule"
