"""All benchmarks in turn: `make bench`.

Peers are measured where they are installed: cleanlab 2.9 in this environment (`pip install cleanlab==2.9.0`), those of peers.txt
in one of their own, named by PROPONENT_PEERS (pyDVL needs numpy < 2).
"""

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "gradients.py",
    "ekfac_accuracy.py",
    "plan.py",
    "gradient_memory.py",
    "mislabel.py",
    "leave_one_out.py",
    "knn_shapley.py",
    "audit_time.py",
    "label_errors.py",
    "removal.py",
    "kill_audit.py",
    "memorization.py",
    "koh_liang.py",
    "data_cleaning.py",
    "stacked_training.py",
    "shapley_speed.py",
    "banks.py",
    "settings.py",
    "static_estimators.py",
    "unrolled.py",
    "solvers.py",
    "trak_time.py",
)

if __name__ == "__main__":
    here = Path(__file__).parent
    failed = []
    for script in SCRIPTS:
        print(f"\n=== {script}", flush=True)
        if subprocess.run([sys.executable, str(here / script)], check=False).returncode != 0:
            failed.append(script)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
