"""How well results predict what retraining does, find what is wrong, and agree with each other.

>>> import numpy as np, proponent as pp
>>> pp.evaluate.detection(np.array([0.1, 0.9, 0.8, 0.7]), is_bad=np.array([True, False, False, False])).auroc
1.0
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Brittleness": "proponent.evaluate.flips",
    "Comparison": "proponent.evaluate.comparison",
    "Curve": "proponent.evaluate.curves",
    "Detection": "proponent.evaluate.detect",
    "LDS": "proponent.evaluate.datamodeling",
    "LOOCorrelation": "proponent.evaluate.left_out",
    "Stability": "proponent.evaluate.seeds",
    "TailPatch": "proponent.evaluate.steps",
    "addition_curve": "proponent.evaluate.curves",
    "baselines": "proponent.evaluate.baselines",
    "brittleness": "proponent.evaluate.flips",
    "compare": "proponent.evaluate.comparison",
    "detection": "proponent.evaluate.detect",
    "expected_spearman": "proponent.evaluate.ceiling",
    "lds": "proponent.evaluate.datamodeling",
    "loo_correlation": "proponent.evaluate.left_out",
    "noise_ceiling": "proponent.evaluate.ceiling",
    "removal_curve": "proponent.evaluate.curves",
    "stability": "proponent.evaluate.seeds",
    "tail_patch": "proponent.evaluate.steps",
    "training_step": "proponent.evaluate.torch_steps",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use, so that judging scikit-learn results loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'proponent.evaluate' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if name == "baselines" else getattr(module, name)


def __dir__() -> list[str]:
    return list(__all__)
