"""`proponent demo`: two audits of data that come with scikit-learn, the first with errors planted and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text
from sklearn.datasets import load_breast_cancer, load_digits

from proponent.audit.run import audit
from proponent.audit.settings import Settings
from proponent.report.terminal import summarise

FLIPPED = 0.05


def run_demo(out: Path, console: Console) -> None:
    """Audit digits with 5 % of labels flipped, then breast cancer as it is."""
    out.mkdir(parents=True, exist_ok=True)
    table, truth = plant_errors(out)
    console.print(
        Text(f"Digits: {len(table):,} images of 8 × 8 pixels, {len(truth)} labels flipped at random.", style="bold")
    )
    result = audit(Settings(str(out / "digits.csv"), "digit", str(out / "digits"), id="image", splits=5))
    summarise(result, console, out / "digits" / "report.html")
    train = set(result.values["row"])
    planted = set(truth["image"].astype(str)) & train
    ranked = result.values.sort_values("label_error", ascending=False, kind="stable")["row"].tolist()
    found = len(planted & set(ranked[: len(planted)]))
    flagged = result.issues.loc[result.issues["kind"] == "label_error", "row"]
    right = len(planted & set(flagged))
    console.print()
    console.print(
        Text.assemble(
            ("Planted errors: ", "bold"),
            f"{found} of the {len(planted)} in the training rows are among the top {len(planted)} finds; "
            f"{right} of the {len(flagged)} rows flagged as label errors are planted ones.",
        )
    )
    console.print()
    console.print(Text("Breast cancer: 569 rows, unmodified.", style="bold"))
    frame = load_breast_cancer(as_frame=True).frame
    frame = frame.assign(target=np.where(frame["target"] == 1, "benign", "malignant"))
    frame.to_csv(out / "breast-cancer.csv", index=False)
    result = audit(Settings(str(out / "breast-cancer.csv"), "target", str(out / "breast-cancer"), splits=5))
    summarise(result, console, out / "breast-cancer" / "report.html")


def plant_errors(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write digits.csv with flipped labels, and the truth, which the audit never reads, apart."""
    digits = load_digits(as_frame=True)
    rng = np.random.default_rng(0)
    label = digits.target.to_numpy().copy()
    at = np.sort(rng.choice(len(label), round(FLIPPED * len(label)), replace=False))
    right = label[at].copy()
    label[at] = (label[at] + rng.integers(1, 10, len(at))) % 10
    names = [f"image-{i:04d}" for i in range(len(label))]
    table = digits.data.assign(digit=[f"digit {v}" for v in label])
    table.insert(0, "image", names)
    truth = pd.DataFrame({"image": [names[i] for i in at], "right": right, "planted": label[at]})
    table.to_csv(out / "digits.csv", index=False)
    truth.to_csv(out / "digits-truth.csv", index=False)
    return table, truth
