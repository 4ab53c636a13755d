"""Small tables with known faults, for tests that run a whole audit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits

WORDS = [
    "parcel",
    "screen",
    "battery",
    "phone",
    "fast",
    "slow",
    "price",
    "money",
    "return",
    "late",
    "early",
    "great",
    "poor",
]


def mixed(n: int = 160, seed: int = 0) -> pd.DataFrame:
    """Numbers, words, categories, dates, gaps, a group and an id; `paid` follows age and job."""
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 80, n).astype(float)
    job = rng.choice(["cook", "nurse", "smith"], n)
    paid = age / 20 + 1.5 * (job == "nurse") + rng.normal(0, 0.4, n) > 2.8
    age[rng.random(n) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "age": age,
            "job": job,
            "since": pd.date_range("2020-01-01", periods=n, freq="3D").strftime("%Y-%m-%d"),
            "note": [" ".join(rng.choice(WORDS, 6)) + f" {i * 7919 % 9973}" for i in range(n)],
            "source": rng.choice(["web", "shop", "app"], n),
            "paid": np.where(paid, "yes", "no"),
        }
    )


def texts(n: int = 120, seed: int = 0) -> pd.DataFrame:
    """One column of text; its first word, among others, decides."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    first = np.where(y == 1, rng.choice(["great", "lovely"], n), rng.choice(["poor", "broken"], n))
    return pd.DataFrame(
        {
            "text": [f"{f} {' '.join(rng.choice(WORDS[:-2], 6))} {i}" for i, f in enumerate(first)],
            "kind": np.where(y == 1, "good", "bad"),
        }
    )


def regression(n: int = 150, seed: int = 0) -> pd.DataFrame:
    """A linear law; rows 0, 5, 10, … 45 are 15 deviations off."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = x @ [1.0, 2.0, 0.0] + rng.normal(0, 0.3, n)
    y[:50:5] += 4.5
    return pd.DataFrame(x, columns=["a", "b", "c"]).assign(y=y)


def misleading(n: int = 500, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training rows whose labels are turned round in the north, and clean rows to measure on."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + 300, 3))
    region = rng.choice(["north", "south", "east", "west"], n + 300)
    label = x[:, 0] + x[:, 1] + rng.normal(0, 0.3, n + 300) > 0
    turned = (region == "north") & (np.arange(n + 300) < n) & (rng.random(n + 300) < 0.8)
    frame = pd.DataFrame(x.round(6), columns=["u", "v", "w"]).assign(
        region=region, y=np.where(label ^ turned, "up", "down"), turned=turned
    )
    return frame[:n], frame[n:]


def cancer(flips: int = 15, seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """Breast cancer with flipped labels, and the ids of the flipped rows."""
    rng = np.random.default_rng(seed)
    frame = load_breast_cancer(as_frame=True).frame.rename(columns={"target": "y"})
    frame.iloc[:, :-1] = frame.iloc[:, :-1].map(lambda v: float(f"{v:.2g}"))  # few different values are quick to bin
    at = rng.choice(len(frame), flips, replace=False)
    label = frame["y"].to_numpy().copy()
    label[at] = 1 - label[at]
    return frame.assign(y=np.where(label == 1, "benign", "malignant")), [str(i) for i in at]


def three_digits(flips: int = 10, seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """Zeros, ones and twos with flipped labels, and the ids of the flipped rows."""
    rng = np.random.default_rng(seed)
    digits = load_digits(n_class=3, as_frame=True)
    frame = digits.data.iloc[:300]
    label = digits.target.iloc[:300].to_numpy().copy()
    at = rng.choice(300, flips, replace=False)
    label[at] = (label[at] + rng.integers(1, 3, flips)) % 3
    return frame.assign(digit=[f"digit {v}" for v in label]), [str(i) for i in at]


def save(folder: Path, frame: pd.DataFrame, name: str = "table.csv") -> str:
    """The path of a written table."""
    frame.to_csv(folder / name, index=False)
    return str(folder / name)
