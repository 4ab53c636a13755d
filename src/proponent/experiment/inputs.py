"""What a method is given: rows, their fingerprints, options, and a first try of the model on them."""

from __future__ import annotations

import glob
import hashlib
import re
from pathlib import Path
from typing import Any

from proponent.errors import InputError, ProponentError
from proponent.examples import Examples
from proponent.experiment.describe import Split
from proponent.experiment.load import Experiment, blaming, place
from proponent.experiment.settings import Settings


def options_of(settings: Settings, experiment: Experiment) -> dict[str, Any]:
    """What the method is told beyond its name: only what somebody asked for."""
    options: dict[str, Any] = {
        name: getattr(settings, name) for name in ("weight_decay", "batch_size") if getattr(settings, name) is not None
    }
    damping = settings.chosen_damping()
    if damping in (None, "auto") and experiment.is_task:
        damping = experiment.call("damping") or damping
    if damping is not None:
        options["damping"] = damping
    if isinstance(damping, tuple):
        from proponent.curvature.damping import Damping

        options["damping"] = Damping(damping[0], scale="mean" if damping[1] == "mean" else "absolute")
    if settings.checkpoints is not None:
        options["checkpoints"] = matching(settings.checkpoints)
    elif settings.method == "tracin":
        options["checkpoints"] = experiment.call("checkpoints") or []
    if settings.learning_rate is not None and settings.method not in ("tracin", "auto"):
        raise InputError(
            f"a learning rate for {settings.method}", "one for tracin", "add --method tracin, or leave it out"
        )
    if "checkpoints" in options:
        rates = settings.learning_rate or experiment.call("learning_rates")
        options |= {} if rates is None else {"learning_rates": rates}
        if not options["checkpoints"]:
            raise InputError(
                "no checkpoints for tracin",
                "the checkpoints of one training run",
                "name them with --checkpoints 'ckpt/*.safetensors', or define checkpoints() in the experiment file",
            )
    elif settings.learning_rate is not None:
        raise InputError("a learning rate without checkpoints", "both", "add --method tracin --checkpoints 'ckpt/*'")
    return options


def matching(pattern: str) -> list[str]:
    """The files of a pattern, step-2 before step-10.

    Raises:
        InputError: there are none.
    """
    found = sorted(glob.glob(pattern), key=lambda p: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", p)])
    if not found:
        raise InputError(
            f"no file that matches {pattern!r}",
            "the checkpoints of one training run",
            "check the path; put it in quotes",
        )
    return found


def rows_of(experiment: Experiment) -> dict[Split, Any]:
    """Both sides as Examples (for a recipe, or where they came so) or as rows of tensors."""
    given: dict[Split, Any] = {"train": experiment.train, "query": experiment.query}
    if not experiment.is_task:
        return {split: Examples.of(data) for split, data in given.items()}
    from proponent.rows import Rows

    with blaming(experiment.path, "reading the data"):
        return {split: data if isinstance(data, Examples) else Rows.of(data) for split, data in given.items()}


def fingerprints_of(experiment: Experiment, rows: dict[Split, Any]) -> dict[str, str]:
    with blaming(experiment.path, "reading the data"):
        marks = {"training examples": rows["train"].fingerprint(), "queries": rows["query"].fingerprint()}
    if experiment.is_task:
        from proponent.capture.weights import weights_mark

        marks["weights"] = weights_mark(experiment.subject)
    return marks


def checkpoint_marks(options: dict[str, Any]) -> dict[str, str]:
    """What a run's checkpoints hold, and the learning rates they are weighted by."""
    marks = {"learning rates": repr(options["learning_rates"])} if "learning_rates" in options else {}
    for checkpoint in options.get("checkpoints", ()):
        if isinstance(checkpoint, str | Path) and Path(checkpoint).is_file():
            with Path(checkpoint).open("rb") as file:
                marks[f"checkpoint {Path(checkpoint).name}"] = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    return marks


def try_out(experiment: Experiment) -> None:
    """Run the model on the first training examples and queries: what it cannot take is told before the long work.

    Raises:
        InputError: the model raises; says what, and where in the file's own code.
    """
    if not experiment.is_task:
        return
    from proponent.rows import Rows

    task = experiment.subject
    for split, data, measure in (
        ("train", experiment.train, task.losses),
        ("query", experiment.query, task.measurements),
    ):
        rows = Rows.of(data)
        with task.watching(), blaming(experiment.path, "the model"):
            try:
                measure(task.batch(rows, slice(0, min(2, len(rows)))))
            except ProponentError:
                raise
            except Exception as e:
                if place(e, experiment.path) is not None:
                    raise
                raise InputError(
                    f"{type(e).__name__} ({' '.join(str(e).split())}) from the model on the first of {split}()",
                    "a model and a loss that take the data as the file gives them",
                    f"call the model on {split}() in {experiment.path.name}, and correct shapes and types",
                ) from e
