"""The three matrix products of a stacked linear layer: its output, its weights' gradient, its inputs' gradient.

Activations are (models, features, examples): so the classes of an output lie far apart and the examples side by side,
which makes a softmax over ten classes about twenty times faster on a CPU than over ten neighbours.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from proponent.capture.products import available, keep_freed_memory, rows_by_rows

WIDE = 4_000_000
"""Floating-point operations of one model's product from which a call for each model costs less than it gains."""


class Products(Protocol):
    """How a layer multiplies; weights are (k, o, i), inputs (k, i, b), outputs and their gradient (k, o, b)."""

    def outputs(self, weight: Tensor, inputs: Tensor, out: Tensor) -> None: ...

    def weight_gradient(self, gradient: Tensor, inputs: Tensor, out: Tensor) -> None: ...

    def input_gradient(self, weight: Tensor, gradient: Tensor, out: Tensor) -> None: ...


class Batched:
    """All models in one call of the batched product."""

    def outputs(self, weight: Tensor, inputs: Tensor, out: Tensor) -> None:
        torch.bmm(weight, inputs, out=out)

    def weight_gradient(self, gradient: Tensor, inputs: Tensor, out: Tensor) -> None:
        torch.bmm(gradient, inputs.mT, out=out)

    def input_gradient(self, weight: Tensor, gradient: Tensor, out: Tensor) -> None:
        torch.bmm(weight.mT, gradient, out=out)


class OneDNN:
    """A call of oneDNN for each model: twice as fast for wide layers where MKL leaves half of AVX-512 unused.

    Its operator multiplies rows by the transposed rows of a second matrix, and copies a first matrix that is not
    contiguous: so that is always the one that is, or is small.
    """

    def outputs(self, weight: Tensor, inputs: Tensor, out: Tensor) -> None:
        for w, x, z in zip(weight, inputs, out, strict=True):
            z.copy_(rows_by_rows(w, x.t()))

    def weight_gradient(self, gradient: Tensor, inputs: Tensor, out: Tensor) -> None:
        for d, x, g in zip(gradient, inputs, out, strict=True):
            g.copy_(rows_by_rows(d, x))

    def input_gradient(self, weight: Tensor, gradient: Tensor, out: Tensor) -> None:
        for w, d, z in zip(weight, gradient, out, strict=True):
            z.copy_(rows_by_rows(d.t(), w.t()).t())


def products(outputs: int, inputs: int, examples: int, like: Tensor) -> Products:
    """The faster of the two for a layer's shape; the choice depends on the machine alone, never on a clock."""
    wide = 2 * outputs * inputs * examples >= WIDE
    plain = like.dtype == torch.float32 and like.device.type == "cpu"
    if not (wide and plain and torch.get_num_threads() == 1 and available()):
        return Batched()
    keep_freed_memory()
    return OneDNN()
