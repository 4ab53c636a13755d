"""Some held-out predictions with the training rows for and against them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from proponent.attribution import Attribution
from proponent.audit.influence import certified
from proponent.audit.prepare import Data
from proponent.audit.result import Explained, Neighbour
from proponent.examples import Examples
from proponent.methods.leave_one_out import FittedLeaveOneOut

Array = np.ndarray[Any, np.dtype[Any]]

NEIGHBOURS = 5
WORST, CLOSE = 4, 2


def choose_predictions(loss: Array, doubt: Array) -> Array:
    """Positions of the predictions worth explaining: the most wrong ones, then the most doubtful ones."""
    worst = np.argsort(-loss, kind="stable")[:WORST]
    close = [int(i) for i in np.argsort(-doubt, kind="stable") if i not in worst][:CLOSE]
    return np.concatenate([worst, np.array(close, dtype=int)])


def neighbours_of(scores: Attribution, fitted: FittedLeaveOneOut | None, queries: Examples) -> pd.DataFrame:
    """The strongest training rows for and against each query, with bounds where the model has them.

    Returns:
        A DataFrame: query, row, score, lower, upper; strongest first within each query and side.
    """
    tables = []
    for query in queries.ids:
        for table in (scores.proponents(query, NEIGHBOURS), scores.opponents(query, NEIGHBOURS)):
            tables.append(table.assign(query=query))
    found = pd.concat(tables, ignore_index=True).rename(columns={"id": "row"})
    found = found.assign(lower=np.nan, upper=np.nan)[["query", "row", "score", "lower", "upper"]]
    if fitted is None or found.empty:
        return found
    rows = list(dict.fromkeys(found["row"]))
    exact = certified(fitted).score(queries, rows=rows).dataset
    at_query = pd.Index(exact["query"].to_numpy()).get_indexer(found["query"])
    at_row = pd.Index(exact["train"].to_numpy()).get_indexer(found["row"])
    for name in ("score", "lower", "upper"):
        found[name] = exact[name].to_numpy()[at_query, at_row]
    return found


def explained(data: Data, neighbours: pd.DataFrame, predictions: pd.DataFrame) -> tuple[Explained, ...]:
    """The predictions as the report shows them.

    Args:
        data: the audit's rows.
        neighbours: what `neighbours_of` gave.
        predictions: query, predicted, probability.
    """
    train, heldout = data.train.shown, data.heldout.shown
    labels = dict(zip(train.ids, map(str, data.train.labels), strict=True))
    out = []
    for query, predicted, probability in predictions.itertuples(index=False):
        own = neighbours[neighbours["query"] == query]
        sides = [own[own["score"] > 0], own[own["score"] <= 0]]
        shown = [
            tuple(
                Neighbour(
                    str(n.row), labels[n.row], float(n.score), float(n.lower), float(n.upper), train.describe(n.row)
                )
                for n in side.itertuples(index=False)
            )
            for side in sides
        ]
        label = str(data.heldout.labels[int(heldout.positions([query])[0])])
        known = None if np.isnan(probability) else float(probability)
        out.append(Explained(str(query), label, str(predicted), known, heldout.describe(query), shown[0], shown[1]))
    return tuple(out)
