"""Which training data made this model behave as it does?"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Adam": "proponent.retrain.torch_recipe",
    "AdamW": "proponent.retrain.torch_recipe",
    "Arnoldi": "proponent.curvature.inverses",
    "Attribution": "proponent.attribution",
    "AutoDamping": "proponent.curvature.damping",
    "Banzhaf": "proponent.methods.banzhaf",
    "BetaShapley": "proponent.methods.beta_shapley",
    "Budget": "proponent.retrain.stopping",
    "CG": "proponent.curvature.inverses",
    "ClassWiseShapley": "proponent.methods.class_wise_shapley",
    "Damping": "proponent.curvature.damping",
    "DataInf": "proponent.curvature.inverses",
    "DataOOB": "proponent.methods.data_oob",
    "Datamodel": "proponent.methods.datamodel",
    "Description": "proponent.examples",
    "Diagonal": "proponent.curvature.kinds",
    "Downsampling": "proponent.methods.downsampling",
    "Dual": "proponent.curvature.inverses",
    "EKFAC": "proponent.curvature.kinds",
    "EmpiricalFisher": "proponent.curvature.problems",
    "Ensemble": "proponent.methods.ensemble",
    "Examples": "proponent.examples",
    "Explicit": "proponent.curvature.inverses",
    "FingerprintMismatch": "proponent.errors",
    "Fisher": "proponent.curvature.problems",
    "FunctionRecipe": "proponent.retrain.recipe",
    "GAS": "proponent.methods.gas",
    "GGN": "proponent.curvature.problems",
    "Game": "proponent.retrain.game",
    "GradCos": "proponent.methods.grad_dot",
    "GradDot": "proponent.methods.grad_dot",
    "Hessian": "proponent.curvature.problems",
    "Influence": "proponent.methods.influence",
    "InputError": "proponent.errors",
    "Interrupted": "proponent.retrain.run",
    "KFAC": "proponent.curvature.kinds",
    "KNNShapley": "proponent.methods.knn_shapley",
    "LabelEvidence": "proponent.methods.label_evidence",
    "LeastCore": "proponent.methods.least_core",
    "LeaveOneOut": "proponent.methods.leave_one_out",
    "Ledger": "proponent.retrain.ledger",
    "LiSSA": "proponent.curvature.inverses",
    "MissingExtra": "proponent.errors",
    "NotConverged": "proponent.errors",
    "Nystrom": "proponent.curvature.inverses",
    "Plan": "proponent.methods.plan",
    "ProponentError": "proponent.errors",
    "ProponentWarning": "proponent.errors",
    "RankStability": "proponent.retrain.stopping",
    "Refinement": "proponent.curvature.inverses",
    "RelatIF": "proponent.methods.relatif",
    "RepresenterPoints": "proponent.methods.representer_points",
    "SGD": "proponent.retrain.torch_recipe",
    "Schedule": "proponent.retrain.torch_recipe",
    "Shapley": "proponent.methods.shapley",
    "SklearnRecipe": "proponent.retrain.recipe",
    "StandardError": "proponent.retrain.stopping",
    "Subsets": "proponent.retrain.subsets",
    "TRAK": "proponent.methods.trak",
    "Task": "proponent.task",
    "TorchRecipe": "proponent.retrain.torch_recipe",
    "TracIn": "proponent.methods.tracin",
    "thinned": "proponent.methods.thinned",
    "UnsupportedModel": "proponent.errors",
    "Values": "proponent.attribution",
    "all_subsets": "proponent.retrain.subsets",
    "applications": "proponent.applications",
    "attribute": "proponent.methods.auto",
    "audit": "proponent.audit",
    "bernoulli": "proponent.retrain.subsets",
    "bootstraps": "proponent.retrain.subsets",
    "check_capture": "proponent.capture.check",
    "each_left_out": "proponent.retrain.subsets",
    "evaluate": "proponent.evaluate",
    "fractions": "proponent.retrain.subsets",
    "full": "proponent.retrain.subsets",
    "groups_left_out": "proponent.retrain.subsets",
    "halves": "proponent.retrain.subsets",
    "open_ledger": "proponent.retrain.trained",
    "permutations": "proponent.retrain.subsets",
    "plan": "proponent.methods.plan",
    "retrain": "proponent.retrain",
    "without": "proponent.retrain.subsets",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use, so that importing proponent loads nothing else."""
    if name not in _HOMES:
        raise AttributeError(f"module 'proponent' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if name in ("applications", "audit", "evaluate", "retrain") else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
