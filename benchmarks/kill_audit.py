"""Kill an audit at random moments, start it again, and compare its tables byte by byte with those of a run left alone.

    python benchmarks/kill_audit.py                          # 1,500 generated rows, 20 kills
    python benchmarks/kill_audit.py --file adult.csv --label income --kills 40

The moments are uniform over the time that the run left alone took, its start included, so some fall between stages and
some within one. A run is killed up to three times before it may finish.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

TABLES = ("issues.csv", "values.csv", "slices.csv", "checks.csv", "curve.csv")
KILLS_PER_RUN = 3


def generated(path: Path, n: int = 1500) -> None:
    """Two groups of numbers, a category and words; one label in twenty is wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)).round(2)
    job = rng.choice(["cook", "nurse", "smith", "clerk"], n)
    label = (x[:, 0] + x[:, 1] * x[:, 2] + (job == "nurse") + rng.normal(0, 0.5, n) > 0.3) ^ (rng.random(n) < 0.05)
    note = [" ".join(rng.choice(["fast", "slow", "late", "early", "great", "poor", "phone", "price"], 5)) for _ in x]
    frame = pd.DataFrame(x, columns=[f"x{j}" for j in range(6)]).assign(job=job, note=note)
    frame.assign(y=np.where(label, "yes", "no")).to_csv(path, index=False)


def start(file: str, label: str, out: Path, splits: int) -> subprocess.Popen[bytes]:
    """An audit in a process of its own."""
    code = "import sys; from proponent.cli import app; app(sys.argv[1:])"
    words = ["audit", file, "--label", label, "--out", str(out), "--splits", str(splits)]
    return subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(file: str, label: str, out: Path, splits: int) -> float:
    """Seconds that an audit takes from here to its end."""
    began = time.perf_counter()
    process = start(file, label, out, splits)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the audit failed:\n{errors.decode()}")
    return time.perf_counter() - began


def kill_and_finish(file: str, label: str, out: Path, splits: int, delays: np.ndarray) -> tuple[int, str]:
    """How many runs were killed before one finished, and the last stage that was whole at the last kill."""
    killed = 0
    for delay in delays:
        process = start(file, label, out, splits)
        try:
            process.communicate(timeout=delay)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
    stages = sorted((out / "stages").glob("*.blake2b"), key=lambda p: p.stat().st_mtime)
    finish(file, label, out, splits)
    return killed, stages[-1].stem if stages else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file")
    parser.add_argument("--label", default="y")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        file = given.file or str(Path(folder, "generated.csv"))
        if given.file is None:
            generated(Path(file))
        alone = Path(folder, "alone")
        seconds = finish(file, given.label, alone, given.splits)
        print(f"left alone: {seconds:.1f} s", flush=True)
        kills, runs, same = 0, 0, 0
        while kills < given.kills:
            out = Path(folder, f"killed-{runs}")
            delays = rng.uniform(0.1, seconds, min(KILLS_PER_RUN, given.kills - kills))
            killed, stage = kill_and_finish(file, given.label, out, given.splits, delays)
            identical = all((out / t).read_bytes() == (alone / t).read_bytes() for t in TABLES)
            kills, runs, same = kills + killed, runs + 1, same + identical
            print(
                f"run {runs}: killed {killed} ×, last whole stage {stage}: {'same' if identical else 'OTHER'} bytes",
                flush=True,
            )
        print(f"{kills} kills in {runs} runs; {same} of {runs} runs ended with the same bytes in {', '.join(TABLES)}")
    raise SystemExit(0 if same == runs else 1)


if __name__ == "__main__":
    main()
