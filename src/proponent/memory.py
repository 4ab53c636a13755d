"""The peak memory of a stretch of work: the process's resident set, as the system counts it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
INTERVAL = 0.005


@dataclass
class Peak:
    """Filled in when the work is over.

    Args:
        megabytes: the process's largest resident set meanwhile; None where the system does not tell.
        before: its resident set at the beginning.
    """

    megabytes: float | None = None
    before: float | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the largest resident set of this process while the body runs.

    >>> with peak_memory() as peak:
    ...     held = bytearray(50_000_000)
    >>> peak.megabytes is None or peak.megabytes > 50
    True
    """
    peak = Peak(before=_field("VmRSS"))
    try:
        CLEAR.write_text("5")  # Linux: the high-water mark begins anew
    except OSError:
        yield from _sampled(peak)
        return
    yield peak
    peak.megabytes = _field("VmHWM")


def _sampled(peak: Peak) -> Iterator[Peak]:
    """Where the mark cannot be reset: look every few milliseconds."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            now = _field("VmRSS")
            peak.megabytes = now if peak.megabytes is None else max(peak.megabytes, now or 0.0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _field(name: str) -> float | None:
    """A field of the process's status in MB."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(name)), None)
