"""What an attribution was asked to do: complete, readable, and enough to repeat it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proponent.errors import InputError
from proponent.store.config import command_of, from_yaml, to_yaml

PRESENTATION = ("out", "top", "self_influence", "saliency", "strict")
"""Settings that decide no score: they may change when a run goes on."""

POSITIVE = ("learning_rate", "batch_size", "top")
DAMPING = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?) *(\* *mean)?", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """The settings of one attribution; every field is also an option of `proponent attribute`.

    >>> Settings("digits.py", "runs/digits", method="ekfac", top=5).command()
    'proponent attribute digits.py --out runs/digits --method ekfac --top 5'

    Args:
        experiment: a Python file that defines task() or recipe(), train() and query(). It is run.
        out: the run directory.
        method: "auto", or a method's name.
        checkpoints: of one training run: a pattern such as "ckpt/*.safetensors".
        learning_rate: at every checkpoint; by default what the checkpoints say.
        damping: "auto", a number, or a multiple of each block's mean eigenvalue such as "0.1*mean".
        weight_decay: the L2 penalty that training added to the mean loss.
        batch_size: training examples captured at once; found from their size by default.
        top: proponents and opponents of each query that are listed.
        self_influence: whether each training example's influence on itself is computed too.
        saliency: whether each query's strongest proponent, a picture, is shown with how the score changes with its pixels.
        strict: stop where a loss or a gradient is not finite, rather than set the example aside: a loss before anything is
            scored, by one forward pass; a gradient afterwards, and the scores stay in the run directory.
    """

    experiment: str
    out: str
    method: str = "auto"
    checkpoints: str | None = None
    learning_rate: float | None = None
    damping: str | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    top: int = 10
    self_influence: bool = False
    saliency: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("experiment", "out", "method"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} = {getattr(self, name)!r}", "text", f"put {name} in quotes")
        for name in POSITIVE:
            self._require(name, "a number above 0", lambda v: v > 0)
        self._require("weight_decay", "a number of at least 0", lambda v: v >= 0)
        for name in ("batch_size", "top"):
            self._require(name, "a whole number", lambda v: isinstance(v, int))
        self.chosen_damping()

    def _require(self, name: str, wanted: str, holds: Any) -> None:
        value = getattr(self, name)
        if value is not None and not (isinstance(value, int | float) and holds(value)):
            raise InputError(f"{name} = {value!r}", wanted, f"change {name}")

    def chosen_damping(self) -> tuple[float, str] | str | None:
        """The damping as (value, scale), as "auto", or None where none was asked for."""
        if self.damping is None or self.damping == "auto":
            return self.damping
        found = DAMPING.fullmatch(str(self.damping).strip())
        if found is None:
            raise InputError(
                f"damping = {self.damping!r}", "'auto', a number, or a number*mean", "write --damping 0.1*mean"
            )
        return float(found[1]), "mean" if found[2] else "absolute"

    def command(self) -> str:
        """The shell command that repeats the run."""
        return command_of(self, "attribute")

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the scores."""
        return {k: v for k, v in asdict(self).items() if k not in PRESENTATION}

    def to_yaml(self) -> str:
        """All settings, as a run's config.yaml."""
        return to_yaml(self)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Settings:
        """Settings as `to_yaml` wrote them.

        Raises:
            InputError: not such a file, or an unknown setting in it.
        """
        return from_yaml(cls, path, "attribute")
