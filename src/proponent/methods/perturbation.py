"""How scores change as a training example's input is moved: Koh & Liang's second influence function.

perturbation[q, i] = −scale · Σ_members w · ∂⟨u_q, ∇ℓ_i⟩/∂x_i,   u_q = P ∇m_q
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from proponent.capture.mixed import mixed
from proponent.curvature.queries import Directed
from proponent.errors import InputError
from proponent.methods.score import directions
from proponent.rows import Rows

if TYPE_CHECKING:
    from proponent.methods.fitted_gradients import FittedGradients, Member

Array = np.ndarray[Any, np.dtype[Any]]

AXES = {1: ("feature",), 3: ("channel", "height", "width")}
"""Names of an input's axes, where their number tells."""

AXES_OF_LAYER = {1: ("channel",), 2: ("position", "channel")}


def directions_of(member: Member, queries: Rows) -> Directed:
    """u_q = P ∇m_q in the parameters' own layout; with the member looked at."""
    return directions(member.capture, member.metric, queries, member.sizes.batch())


def perturbation(fitted: FittedGradients, queries: Rows, ids: Sequence[Any], of: str | None) -> xr.DataArray:
    """`FittedGradients.perturbation`."""
    runs = _runs(fitted.train.positions(ids), fitted.batch or fitted.members[0].sizes.batch())
    moved = sum(_of_member(fitted, member, queries, runs, of) for member in fitted.members)
    assert isinstance(moved, np.ndarray)
    names = (AXES if of is None else AXES_OF_LAYER).get(moved.ndim - 2)
    axes = names or tuple(f"axis_{k}" for k in range(moved.ndim - 2))
    return xr.DataArray(
        moved,
        dims=("query", "train", *axes),
        coords={"query": queries.ids, "train": np.asarray(ids)},
        attrs={
            "method": fitted.method,
            "unit": f"{fitted.unit}, per unit of the {'input' if of is None else f'output of {of}'}",
        },
    )


def _of_member(fitted: FittedGradients, member: Member, queries: Rows, runs: list[slice], of: str | None) -> Array:
    """(q, m, *shape): one model's part of the sum."""
    scale = -fitted.scale * member.weight
    made = []
    with member.looked_at():
        for chunk in queries.parts(member.sizes.queries(max(1, member.metric.vectors))):
            along = directions_of(member, queries[chunk])
            task = member.capture.task
            parts = [mixed(task, along.rows, task.batch(fitted.train, at), of) for at in runs]
            part = _joined(parts).mul_(scale)
            part[~along.finite] = torch.nan
            made.append(part.numpy(force=True))
    return np.concatenate(made)


def _joined(parts: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(p.shape[2:]) for p in parts})
    if len(shapes) > 1:
        raise InputError(
            f"examples of shapes {', '.join(map(str, shapes[:3]))}",
            "one shape",
            "ask for one training example at a time",
        )
    return torch.cat(parts, 1)


def _runs(positions: Sequence[int], size: int) -> list[slice]:
    """Positions in their order as slices of at most `size`, neighbours together.

    >>> _runs([4, 5, 6, 2, 3], 2)
    [slice(4, 6, None), slice(6, 7, None), slice(2, 4, None)]
    """
    runs: list[slice] = []
    for at in positions:
        if runs and runs[-1].stop == at and at - runs[-1].start < size:
            runs[-1] = slice(runs[-1].start, at + 1)
        else:
            runs.append(slice(at, at + 1))
    return runs
