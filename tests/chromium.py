"""Headless Chromium for tests that look at a page: one run, ended whatever becomes of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if p), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-quic", "--no-first-run", "--window-size=1500,1000", "--virtual-time-budget=8000"),
    "--dump-dom",
]
SECONDS = 90

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


def dom_of(page: Path, scratch: Path) -> str:
    """The page as it stands once its scripts have run; a browser that hangs is killed, and one more is tried."""
    for attempt in (1, 2):
        out = scratch / f"dom-{attempt}.html"
        if _browse(page, scratch / f"profile-{attempt}", out):
            return out.read_text("utf-8")
    pytest.fail(f"chromium gave no page within {SECONDS} s, twice")


def _browse(page: Path, profile: Path, out: Path) -> bool:
    """Into a file and a process group of its own: the browser's children would hold a pipe open after it is killed."""
    with out.open("w") as file:
        process = subprocess.Popen(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", page.as_uri()],
            stdout=file,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=SECONDS) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
