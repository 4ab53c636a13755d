"""What an evaluation was asked to do: complete, readable, and enough to repeat it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proponent.errors import InputError
from proponent.store.config import command_of, from_yaml, to_yaml

FEWEST = 3
"""Subsets of which a rank correlation says anything."""


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of one evaluation; every field is also an option of `proponent evaluate`.

    >>> EvaluationSettings("digits.py", "runs/digits-evaluation", subsets=100).command()
    'proponent evaluate digits.py --out runs/digits-evaluation --subsets 100'

    Args:
        experiment: a Python file that defines recipe(), train() and query(), and task() for a PyTorch model. It is run.
        out: the run directory.
        methods: names with commas between them; by default what fits the model, and the baselines.
        subsets: random subsets of the training examples that are trained on.
        fraction: of the training examples in a subset.
        repeats: models per subset, under different seeds; from two on, the noise ceiling is known.
        workers: how many train at once; the numbers do not depend on it.
        seed: of the subsets, of random scores and of resampling.
    """

    experiment: str
    out: str
    methods: str | None = None
    subsets: int = 50
    fraction: float = 0.5
    repeats: int = 1
    workers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("experiment", "out", "methods"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "methods" and value is None):
                raise InputError(f"{name} = {value!r}", "text", f"put {name} in quotes")
        for name, least in (("subsets", FEWEST), ("repeats", 1), ("workers", 1), ("seed", 0)):
            value = getattr(self, name)
            if (value is None and name == "workers") or (type(value) is int and value >= least):
                continue
            raise InputError(f"{name} = {value!r}", f"a whole number of at least {least}", f"change {name}")
        if not (isinstance(self.fraction, float) and 0 < self.fraction < 1):
            raise InputError(f"fraction = {self.fraction!r}", "a number between 0 and 1", "write --fraction 0.5")

    def named(self) -> list[str]:
        """The methods that were asked for by name, each once."""
        return list(dict.fromkeys(m for m in (part.strip().lower() for part in (self.methods or "").split(",")) if m))

    def command(self) -> str:
        """The shell command that repeats the run."""
        return command_of(self, "evaluate")

    def to_yaml(self) -> str:
        """All settings, as a run's config.yaml."""
        return to_yaml(self)

    @classmethod
    def from_yaml(cls, path: str | Path) -> EvaluationSettings:
        """Settings as `to_yaml` wrote them.

        Raises:
            InputError: not such a file, or an unknown setting in it.
        """
        return from_yaml(cls, path, "evaluate")
