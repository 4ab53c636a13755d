"""Which training data made this model behave as it does?"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Attribution": "proponent.attribution",
    "Damping": "proponent.curvature.damping",
    "DataOOB": "proponent.methods.data_oob",
    "Description": "proponent.examples",
    "Diagonal": "proponent.curvature.kinds",
    "EKFAC": "proponent.curvature.kinds",
    "Examples": "proponent.examples",
    "FingerprintMismatch": "proponent.errors",
    "GradCos": "proponent.methods.grad_dot",
    "GradDot": "proponent.methods.grad_dot",
    "Influence": "proponent.methods.influence",
    "InputError": "proponent.errors",
    "KFAC": "proponent.curvature.kinds",
    "KNNShapley": "proponent.methods.knn_shapley",
    "LabelEvidence": "proponent.methods.label_evidence",
    "LeaveOneOut": "proponent.methods.leave_one_out",
    "MissingExtra": "proponent.errors",
    "NotConverged": "proponent.errors",
    "Plan": "proponent.methods.plan",
    "ProponentError": "proponent.errors",
    "ProponentWarning": "proponent.errors",
    "SklearnRecipe": "proponent.retrain.recipe",
    "Task": "proponent.task",
    "TracIn": "proponent.methods.tracin",
    "UnsupportedModel": "proponent.errors",
    "Values": "proponent.attribution",
    "applications": "proponent.applications",
    "attribute": "proponent.methods.auto",
    "audit": "proponent.audit.run",
    "check_capture": "proponent.capture.check",
    "plan": "proponent.methods.plan",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use, so that importing proponent loads nothing else."""
    if name not in _HOMES:
        raise AttributeError(f"module 'proponent' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if name == "applications" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
