"""Progress on long work: a bar with time left on a terminal, silence anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")

_DISPLAY = Lock()  # one bar at a time: work inside work that shows a bar shows none of its own


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate, showing a bar with the time left where standard error is a terminal.

    >>> list(track([1, 2, 3], "counting"))
    [1, 2, 3]
    """
    if not sys.stderr.isatty() or not _DISPLAY.acquire(blocking=False):
        yield from items
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
    finally:
        _DISPLAY.release()


def say(what: str) -> None:
    """Name the work that begins, where standard error is a terminal and no bar is on it."""
    if sys.stderr.isatty() and not _DISPLAY.locked():
        Console(stderr=True).print(Text(f"{what} …", style="dim"))
