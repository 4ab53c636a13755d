"""KNN-Shapley values beside pyDVL's: both times and their ratio, alternating in one run.

    python benchmarks/knn_shapley.py [--peer-python .venv-peers/bin/python] [--repeats 5]

The peer (pyDVL 0.10.0, which needs numpy < 2) runs in its own interpreter, given by --peer-python or PROPONENT_PEERS.
Each side times its own call, from arrays in memory to one value per training example; starting up is not counted.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

N_TRAIN, N_QUERY, K = 5_000, 500, 5

PEER = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from pydvl.valuation import Dataset, KNNShapleyValuation

with np.load(sys.argv[1]) as z:
    x, y, qx, qy = (z[k] for k in ("x", "y", "qx", "qy"))
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    valuation = KNNShapleyValuation(KNeighborsClassifier(int(line)), Dataset(qx, qy), progress=False)
    found = valuation.fit(Dataset(x, y))
    seconds = time.perf_counter() - start
    result = found.result if hasattr(found, "result") else found.values()
    values = np.empty(len(result))
    values[np.asarray(result.indices)] = result.values
    np.save(sys.argv[2], values)
    print(json.dumps(seconds), flush=True)
"""


def idx(path: Path) -> Any:
    """The array of a gzipped idx file."""
    content = gzip.decompress(path.read_bytes())
    dims = content[3]
    shape = np.frombuffer(content, ">u4", dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape.astype(int))


def data() -> tuple[str, dict[str, Any]]:
    """Fashion-MNIST as float32 in [0, 1], or generated data of the same size."""
    root = Path(os.environ.get("PROPONENT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    folder = root / "images" / "fashion-mnist"
    if not folder.is_dir():
        rng = np.random.default_rng(0)
        y, qy = rng.integers(0, 10, N_TRAIN), rng.integers(0, 10, N_QUERY)
        centres = rng.random((10, 784))
        noisy = [np.float32(centres[c] + rng.normal(0, 1, (len(c), 784))) for c in (y, qy)]
        return "generated data (Fashion-MNIST is not there)", {"x": noisy[0], "y": y, "qx": noisy[1], "qy": qy}

    def part(name: str, count: int) -> tuple[Any, Any]:
        images = idx(folder / f"{name}-images-idx3-ubyte.gz")[:count].reshape(count, -1)
        return np.float32(images) / 255, idx(folder / f"{name}-labels-idx1-ubyte.gz")[:count].astype(int)

    (x, y), (qx, qy) = part("train", N_TRAIN), part("t10k", N_QUERY)
    return "Fashion-MNIST", {"x": x, "y": y, "qx": qx, "qy": qy}


def ours(arrays: dict[str, Any], precision: Any, utility: Any = "fixed") -> tuple[float, Any]:
    """Seconds and values."""
    from proponent.methods.knn_shapley import KNNShapley

    start = time.perf_counter()
    spec = KNNShapley(k=K, utility=utility, precision=precision)
    values = spec.fit((arrays["x"], arrays["y"])).values((arrays["qx"], arrays["qy"]))
    return time.perf_counter() - start, values.value


class Peer:
    """pyDVL in its own process; one line in is one timed call."""

    def __init__(self, python: str, arrays: dict[str, Any], folder: Path) -> None:
        np.savez(folder / "data.npz", **arrays)
        self.values_at = folder / "values.npy"
        command = [python, "-c", PEER, str(folder / "data.npz"), str(self.values_at)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self._line() != "ready":
            raise SystemExit(f"The peer did not start: does {python} have pydvl==0.10.0?")

    def __call__(self) -> tuple[float, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{K}\n")
        self.process.stdin.flush()
        return float(json.loads(self._line())), np.load(self.values_at)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def has_peer(python: str) -> bool:
    """Whether that interpreter is there and has pyDVL."""
    try:
        found = subprocess.run([python, "-c", "import pydvl"], capture_output=True, check=False)
    except OSError:
        return False
    return found.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("PROPONENT_PEERS", ".venv-peers/bin/python"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    name, arrays = data()
    print(f"{name}: {N_TRAIN:,} training examples × {N_QUERY} queries × {arrays['x'].shape[1]} features, K = {K}")
    ours(arrays, "float32")  # not timed: first use loads libraries
    times: dict[str, list[float]] = {"float32": [], "float64": [], "pyDVL": []}
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(args.peer_python, arrays, Path(folder)) if has_peer(args.peer_python) else None
        for _ in range(args.repeats):
            for precision in ("float32", "float64"):
                seconds, values[precision] = ours(arrays, precision)
                times[precision].append(seconds)
            if peer is not None:
                seconds, values["pyDVL"] = peer()
                times["pyDVL"].append(seconds)
    report(times, values, args.peer_python)


def report(times: dict[str, list[float]], values: dict[str, Any], peer_python: str) -> None:
    """Medians, ranges, ratios, and how far the values agree."""
    median = {name: statistics.median(t) for name, t in times.items() if t}
    for name, t in times.items():
        if t:
            label = name if name == "pyDVL" else f"proponent, {name}"
            print(f"  {label:20s} {median[name]:8.4f} s   (median of {len(t)}; {min(t):.4f} to {max(t):.4f})")
    if "pyDVL" not in median:
        print(f"pyDVL is not installed at {peer_python}: no ratio. Make an environment with pydvl==0.10.0 and name its")
        print("interpreter by --peer-python or PROPONENT_PEERS.")
        sys.exit(0)
    for precision in ("float32", "float64"):
        difference = np.abs(values[precision] - values["pyDVL"]).max() / np.abs(values["pyDVL"]).max()
        ratio = median["pyDVL"] / median[precision]
        print(f"  {precision}: {ratio:.1f} times as fast; largest difference {difference:.1e} of the largest value")


if __name__ == "__main__":
    main()
