"""Wall time and peak memory of `proponent audit` on three real tables, each in a fresh process.

python benchmarks/audit_time.py [--sets adult sms-spam diabetes130]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data import root

SETS = {
    "adult": (["tabular/adult/adult-train.csv", "--label", "income"], "tabular/adult/adult-test.csv", 90, 2000),
    "sms-spam": (["text/sms-spam/sms-spam.csv", "--label", "label"], None, 60, None),
    "diabetes130": (
        ["tabular/diabetes130/dataset_diabetes.zip", "--label", "readmitted", "--id", "encounter_id"],
        None,
        300,
        None,
    ),
}


def audit(name: str) -> tuple[float, float]:
    """Seconds and peak MB."""
    (file, *options), test, _, _ = SETS[name]
    extra = [] if test is None else ["--test", str(root() / test)]
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "proponent",
            "audit",
            str(root() / file),
            *options,
            *extra,
            "--out",
            out + "/run",
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{name}: the audit failed")
        return time.perf_counter() - start, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    for name in parser.parse_args().sets:
        if not (root() / Path(SETS[name][0][0])).exists():
            print(f"{name}: not found in {root()}")
            continue
        seconds, megabytes = audit(name)
        limit = f"wanted < {SETS[name][2]} s" + (f", < {SETS[name][3]} MB" if SETS[name][3] else "")
        print(f"{name:12} {seconds:6.1f} s   peak {megabytes:6.0f} MB   ({limit})", flush=True)
