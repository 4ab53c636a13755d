"""Examples as tensors, on a model's device and in its precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from proponent.errors import InputError
from proponent.examples import Examples


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs (n, …), targets (n, …) or None, and weights (n,) or None."""

    inputs: Tensor
    targets: Tensor | None
    weights: Tensor | None = None

    @classmethod
    def of(cls, examples: Examples, device: torch.device, dtype: torch.dtype) -> Data:
        """Of examples; floating numbers in the model's precision, whole ones as they are.

        Raises:
            InputError: inputs or labels that are not numbers.
        """

        def tensor(column: Any, what: str) -> Tensor:
            if sparse.issparse(column):
                column = column.toarray()
            array = np.asarray(column)
            if array.dtype.kind not in "fiub":
                raise InputError(
                    f"{what} of dtype {array.dtype}",
                    "numbers (classes as 0, 1, …)",
                    "encode them, for example with np.unique(labels, return_inverse=True)[1]",
                )
            writable = array if array.flags.writeable else array.copy()  # torch has no read-only tensors
            made = torch.as_tensor(np.ascontiguousarray(writable))
            return made.to(device, dtype if made.is_floating_point() else None)

        labels = None if examples.labels is None else tensor(examples.labels, "labels")
        weights = None if examples.weights is None else tensor(examples.weights, "weights")
        return cls(tensor(examples.inputs, "inputs"), labels, weights)

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, rows: Tensor | slice) -> tuple[Tensor, Any]:
        """Some examples as a loss takes them."""
        return self.inputs[rows], None if self.targets is None else self.targets[rows]
