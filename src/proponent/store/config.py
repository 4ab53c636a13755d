"""A run's config.yaml and the command that repeats the run, for any dataclass of settings."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from proponent.errors import InputError, did_you_mean

T = TypeVar("T")


def command_of(settings: Any, verb: str) -> str:
    """The shell command that repeats a run: the first field stands alone, the others are options where not the default."""
    first, *others = fields(settings)
    words = ["proponent", verb, str(getattr(settings, first.name))]
    for field in others:
        value, option = getattr(settings, field.name), f"--{field.name.replace('_', '-')}"
        if value != field.default:
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words)


def to_yaml(settings: Any) -> str:
    """All settings, as a run's config.yaml."""
    return str(yaml.safe_dump(asdict(settings), sort_keys=False, allow_unicode=True))


def from_yaml(kind: type[T], path: str | Path, verb: str) -> T:
    """Settings as `to_yaml` wrote them.

    Raises:
        InputError: not such a file, or an unknown setting in it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise InputError(f"{path} ({type(e).__name__})", "a run's config.yaml", "check the path") from e
    own = fields(kind)  # type: ignore[arg-type]
    known = [f.name for f in own]
    for name in values if isinstance(values, dict) else [str(values)]:
        if name not in known:
            raise InputError(
                f"setting {name!r} in {path}", f"a setting of `proponent {verb}`", did_you_mean(name, known)
            )
    absent = [f.name for f in own if f.default is MISSING and f.name not in values]
    if absent:
        raise InputError(f"no {' and no '.join(absent)} in {path}", "a run's config.yaml", "add the missing lines")
    return kind(**values)
