"""(being written)"""

from typing import Any

BATCH = 64


def supports(estimator: Any, train: Any) -> bool:
    return False


def fit_many(estimator: Any, train: Any, included: Any, seeds: Any) -> list[Any]:
    raise NotImplementedError
