"""Which rows each model of a stack sees at each step: its own subset, in its own order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.draws import mixed


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's rows of the models that still train: the first k of the stack.

    Args:
        step: how many steps were before it.
        rows: (k, b) positions in the training data; where a model's batch is smaller, row 0 with weight 0.
        weights: of the losses, in a shape that broadcasts to (k, b); a model's sum to its mean over its own batch.
    """

    step: int
    rows: Tensor
    weights: Tensor


class Order:
    """A model's rows, in an order drawn anew every epoch from its own seed.

    Args:
        rows: (n,) positions in the training data; one that counts twice is there twice.
        seed: two seeds give two orders, whatever else is trained.
        size: of a batch; the last of an epoch holds what is left.
    """

    def __init__(self, rows: Tensor, seed: int, size: int) -> None:
        n = len(rows)
        self.rows, self.size, self.steps = rows, size, -(-n // size)
        self.generator = torch.Generator().manual_seed(int(mixed(seed)))
        self.epoch = rows.new_zeros(self.steps, size)
        self.drawn, self.shuffled, self.used = rows.new_empty(n), self.epoch.view(-1)[:n], self.steps

    def write(self, out: Tensor) -> None:
        """The rows of the next steps, (steps, b); 0 after the end of a smaller batch."""
        at = 0
        while at < len(out):
            if self.used == self.steps:
                torch.randperm(len(self.rows), generator=self.generator, out=self.drawn)
                torch.index_select(self.rows, 0, self.drawn, out=self.shuffled)
                self.used = 0
            some = min(self.steps - self.used, len(out) - at)
            out[at : at + some] = self.epoch[self.used : self.used + some]
            at, self.used = at + some, self.used + some

    def counts(self, first: int, last: int) -> Tensor:
        """(steps,) how many rows the steps from `first` to before `last` have."""
        within = torch.arange(first, last) % self.steps
        left = len(self.rows) - self.size * (self.steps - 1)
        return torch.where(within == self.steps - 1, left, self.size)


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a stack of models, largest subsets first, so that those that still train are always the first.

    Args:
        orders: of each model, in falling order of their steps.
        epochs: passes of each model over its own subset.
        weights: (n,) of the training examples, or None for ones.
        dtype, device: of the batches' weights, and where the batches go.
    """

    orders: Sequence[Order]
    epochs: int
    weights: Tensor | None
    dtype: torch.dtype
    device: torch.device

    @property
    def totals(self) -> list[int]:
        """Steps of each model."""
        return [order.steps * self.epochs for order in self.orders]

    @property
    def alike(self) -> bool:
        """Whether all models take the same number of steps."""
        return len(set(self.totals)) == 1

    def __iter__(self) -> Iterator[Batch]:
        totals = self.totals
        window = self.orders[0].steps
        for first in range(0, totals[0], max(window, 1)):
            last = min(first + window, totals[0])
            live = [m for m, total in enumerate(totals) if total > first]
            rows = self.orders[0].rows.new_zeros(last - first, len(live), self.orders[0].size)
            counts = torch.zeros(last - first, len(live), dtype=torch.long)
            for m in live:
                end = min(last, totals[m])
                self.orders[m].write(rows[: end - first, m])
                counts[: end - first, m] = self.orders[m].counts(first, end)
            yield from self._steps(first, rows.to(self.device), counts)

    def _steps(self, first: int, rows: Tensor, counts: Tensor) -> Iterator[Batch]:
        widths, least = counts.amax(1).tolist(), counts.amin(1).tolist()
        for at, (width, smallest) in enumerate(zip(widths, least, strict=True)):
            k = counts.shape[1] if smallest else int((counts[at] > 0).sum())
            own = rows[at, :k, :width]
            yield Batch(first + at, own, self._weights(own, counts[at, :k], smallest == width))

    def _weights(self, rows: Tensor, counts: Tensor, alike: bool) -> Tensor:
        """1/b of each model's own batch times the examples' weights, and 0 after its end."""
        if alike and self.weights is None:
            return torch.full((1, 1), 1 / rows.shape[1], dtype=self.dtype, device=rows.device)
        counts = counts.to(rows.device)[:, None]
        places = torch.arange(rows.shape[1], device=rows.device)
        share = (places < counts).to(self.dtype) / counts
        return share if self.weights is None else share * self.weights[rows]
