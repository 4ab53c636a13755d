"""What a run writes down about itself: seconds by stage, warnings, versions, and that its directory can be written."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from proponent.errors import InputError, ProponentWarning

T = TypeVar("T")

PACKAGES = ("proponent", "numpy", "scipy", "scikit-learn", "torch", "transformers")


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, also one that fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


def with_warnings(work: Callable[[], T]) -> tuple[T, tuple[str, ...]]:
    """What the work returns, and the ProponentWarnings that it gave, each once, in order."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ProponentWarning)
        made = work()
    return made, tuple(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, ProponentWarning)))


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Say in words that a run directory cannot be written.

    Raises:
        InputError: it cannot.
    """
    try:
        yield
    except OSError as e:
        raise InputError(f"{e.strerror} for {out!r}", "a writable directory", "name another with --out") from e


def versions() -> dict[str, str]:
    """Of the packages that took part."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        if name in sys.modules or name == "scikit-learn":
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found
