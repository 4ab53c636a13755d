"""What an evaluation found: the one value that the terminal's table, the CSV file and the page are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Args:
        title: the experiment file's name.
        command: the exact shell command that repeats it.
        subject: the model, in words.
        n_train, n_query: how many.
        subsets: different subsets that were trained on.
        fraction: of the training examples in each.
        repeats: models per subset.
        models: that the methods are judged by, without those that failed.
        failed: how many trainings failed.
        trained: how many of the trainings this run had to do; the others lay in the ledger.
        noise_free: training gives the same under every seed.
        ceiling: the LDS to expect of a perfect predictor; NaN where unknown.
        bad: training examples known to be bad, where the experiment says which.
        table: a row per method, best first: method, baseline, lds, lds_lower, lds_upper, lds_of_ceiling, slope, slope_lower,
            slope_upper, versus_best with its bounds, auroc and others where bad examples are known, seconds, note.
        best: the method with the highest LDS; "" where none could be judged.
        cloud: predicted, actual: of the best method, a point per query and subset, in standard deviations of its query.
        seconds: by stage of the whole run.
        warnings: what should be known, in words.
        versions, fingerprints: of what made it.
    """

    title: str
    command: str
    subject: str
    n_train: int
    n_query: int
    subsets: int
    fraction: float
    repeats: int
    models: int
    failed: int
    trained: int
    noise_free: bool
    ceiling: float
    bad: int | None
    table: pd.DataFrame
    best: str
    cloud: pd.DataFrame
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
