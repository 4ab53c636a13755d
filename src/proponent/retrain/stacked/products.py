"""The three matrix products of a stacked linear layer: its output, its weights' gradient, its inputs' gradient.

Activations are (models, features, examples): so the classes of an output lie far apart and the examples side by side,
which makes a softmax over ten classes about twenty times faster on a CPU than over ten neighbours.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from torch import Tensor

WIDE = 4_000_000
"""Floating-point operations of one model's product from which a call for each model costs less than it gains."""

FREED = 2**24
"""Bytes that are taken and given back once; see `_keep_freed_memory`."""


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
            z.copy_(_rows_by_rows(w, x.t()))

    def weight_gradient(self, gradient: Tensor, inputs: Tensor, out: Tensor) -> None:
        for d, x, g in zip(gradient, inputs, out, strict=True):
            g.copy_(_rows_by_rows(d, x))

    def input_gradient(self, weight: Tensor, gradient: Tensor, out: Tensor) -> None:
        for w, d, z in zip(weight, gradient, out, strict=True):
            z.copy_(_rows_by_rows(d.t(), w.t()).t())


def products(outputs: int, inputs: int, examples: int, like: Tensor) -> Products:
    """The faster of the two for a layer's shape; the choice depends on the machine alone, never on a clock."""
    wide = 2 * outputs * inputs * examples >= WIDE
    plain = like.dtype == torch.float32 and like.device.type == "cpu"
    if not (wide and plain and torch.get_num_threads() == 1 and _onednn_is_faster()):
        return Batched()
    _keep_freed_memory()
    return OneDNN()


def _rows_by_rows(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ by oneDNN; the operator is the one that torch.compile emits for linear layers."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


@functools.cache
def _onednn_is_faster() -> bool:
    """On AMD's CPUs with AVX-512, for which MKL has AVX2 code only; and where the operator does what it should."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (known.get("avx512_f") and "AMD" in str(known.get("cpu_name")) and torch.backends.mkl.is_available()):
        return False
    a, b = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(5, 4)
    try:
        return bool(torch.allclose(_rows_by_rows(a, b), a @ b.T))
    except (AttributeError, RuntimeError, TypeError):
        return False


@functools.cache
def _keep_freed_memory() -> Any:
    """Let the C library keep blocks of megabytes that are freed, as it does once one of them was.

    Otherwise each product of oneDNN, which cannot write to a given place, gets fresh pages from the system, and fetching
    these takes longer than the product.
    """
    return len(torch.empty(FREED, dtype=torch.uint8))
