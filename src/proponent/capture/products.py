"""Matrix products in single precision on a CPU, by the faster of the two libraries that PyTorch brings.

PyTorch takes MKL, which on processors with 512-bit vectors that are not Intel's runs at half the speed of oneDNN. Both compute
in full single precision; sums are taken in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WORTHWHILE = 2**20
"""Multiplications below which the way to the other library costs more than it saves."""


def fast_products() -> AbstractContextManager[object]:
    """Inside it, large products in single precision go to oneDNN, the model's own too; nothing changes where it is absent.

    >>> a = torch.arange(6.0).reshape(2, 3)
    >>> with fast_products():
    ...     product = a @ a.T
    >>> product.tolist()
    [[5.0, 14.0], [14.0, 50.0]]
    """
    return _Fast() if available() else nullcontext()


@cache
def available() -> bool:
    """Whether oneDNN's product is there, and this processor is of the kind on which it is faster."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def times(a: Tensor, b: Tensor) -> Tensor:
    """a b, for a step of our own: without the mode's cost for every other operation.

    >>> times(torch.ones(2, 3), torch.ones(3, 1)).tolist()
    [[3.0], [3.0]]
    """
    return _times(a, b) if available() and _suits(a, b) else a @ b


class _Fast(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operation of this thread below autograd, and answers the products itself."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = ANSWERS.get(func)
        if answer is not None and not kwargs:
            product = answer(*args)
            if product is not None:
                return product
        return func(*args, **(kwargs or {}))


def _times(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(_dense(a), _dense(b.mT), bias, "none", [], "")
    return product


def _dense(a: Tensor) -> Tensor:
    """The matrix without gaps between its rows or columns, with which oneDNN is slower than the copy by far."""
    return a if a.is_contiguous() or a.mT.is_contiguous() else a.contiguous()


def _suits(a: Tensor, b: Tensor) -> bool:
    """Whether the product of these matrices is worth the way."""
    if a.dtype is not torch.float32 or b.dtype is not torch.float32 or a.device.type != "cpu":
        return False
    return a.shape[-2] * a.shape[-1] * b.shape[-1] >= WORTHWHILE


def _mm(a: Tensor, b: Tensor) -> Tensor | None:
    return _times(a, b) if _suits(a, b) else None


def _addmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    if not _suits(a, b) or c.dtype is not torch.float32:
        return None
    return _times(a, b, c) if c.ndim == 1 and len(c) == b.shape[1] else _times(a, b).add_(c)


def _addmm_(c: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    return c.add_(_times(a, b)) if _suits(a, b) and c.dtype is torch.float32 else None


ANSWERS: dict[Any, Callable[..., Tensor | None]] = {
    torch.ops.aten.mm.default: _mm,
    torch.ops.aten.addmm.default: _addmm,
    torch.ops.aten.addmm_.default: _addmm_,
}
