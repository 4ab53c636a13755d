"""What multiplies the learning rate, step by step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proponent.errors import InputError, did_you_mean

SHAPES = ("constant", "cosine", "linear", "step")


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up from 0, then a shape that starts at 1 and, as a cosine or a line, ends at `floor` after the last step.

    >>> [round(Schedule("cosine", warmup=0.25).factor(step, 8), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]

    Args:
        shape: "constant", "cosine", "linear", or "step".
        warmup: share of all steps in which the rate rises.
        floor: where "cosine" and "linear" end, as a share of the learning rate.
        at: shares of all steps after which "step" multiplies the rate by `drop`.
        drop: see `at`.
    """

    shape: str = "cosine"
    warmup: float = 0.0
    floor: float = 0.0
    at: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError(
                f"schedule {self.shape!r}", f"one of {', '.join(SHAPES)}", did_you_mean(self.shape, SHAPES)
            )
        if not (0 <= self.warmup < 1 and 0 <= self.floor <= 1):
            raise InputError(
                f"warmup={self.warmup}, floor={self.floor}", "shares of all steps and of the rate", "pass 0 ≤ … < 1"
            )

    def factor(self, step: int, steps: int) -> float:
        """What multiplies the learning rate at a step, counted from 0, of so many."""
        rising = round(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / (steps - rising)
        if self.shape == "step":
            return float(self.drop ** sum(step >= share * steps for share in self.at))
        shape = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}[self.shape]
        return 1.0 if self.shape == "constant" else self.floor + (1 - self.floor) * shape


def named_schedule(schedule: Any) -> Callable[[int, int], float]:
    """(step, steps) -> factor, from a name, a Schedule, or a function of the step or of both.

    >>> named_schedule(lambda step: 0.5**step)(3, 100)
    0.125

    Raises:
        InputError: it is none of these.
    """
    if isinstance(schedule, str):
        return Schedule(schedule).factor
    if isinstance(schedule, Schedule):
        return schedule.factor
    if not callable(schedule):
        raise InputError(
            f"schedule {schedule!r}",
            f"one of {', '.join(SHAPES)}, a Schedule, or a function step -> factor",
            "pass one",
        )
    takes = [p for p in inspect.signature(schedule).parameters.values() if p.default is p.empty]
    return schedule if len(takes) >= 2 else lambda step, steps: float(schedule(step))
