"""Matrix products in single precision on a CPU, by the faster of the two libraries that PyTorch brings.

PyTorch takes MKL, which on AMD's processors runs at half the speed of oneDNN where vectors have 512 bits, and on some shapes
at two thirds of it elsewhere. Both compute in full single precision; sums are taken in another order.
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

FREED = 2**25 - 2**16
"""Bytes that are taken and given back once; see `keep_freed_memory`."""


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
    """On AMD's CPUs, which MKL was not written for; and where oneDNN's operator does what it should."""
    known = processor()
    if not (known.get("avx2") and "AMD" in str(known.get("cpu_name")) and torch.backends.mkl.is_available()):
        return False
    a, b = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(5, 4)
    try:
        return bool(torch.allclose(rows_by_rows(a, b), a @ b.T))
    except (AttributeError, RuntimeError, TypeError):
        return False


@cache
def processor() -> Mapping[str, Any]:
    """What PyTorch says of this CPU: a name, and the kinds of instructions that it has."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


@cache
def keep_freed_memory() -> int:
    """Let the C library keep blocks of megabytes that are freed, as it does once one of them was.

    Otherwise every result of some megabytes gets fresh pages from the system, and fetching these can take longer than
    computing it.
    """
    return len(torch.empty(FREED, dtype=torch.uint8))


def times(a: Tensor, b: Tensor) -> Tensor:
    """a b, for a step of our own: without the mode's cost for every other operation.

    >>> times(torch.ones(2, 3), torch.ones(3, 1)).tolist()
    [[3.0], [3.0]]
    """
    return _times(a, b) if _suits(a, b) else a @ b


def add_times(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b, without a product beside it where PyTorch's own is taken.

    >>> out = torch.ones(1, 1)
    >>> add_times(out, torch.ones(1, 3), torch.ones(3, 1))
    >>> out.tolist()
    [[4.0]]
    """
    if _addmm_(out, a, b) is None:
        out.addmm_(a, b)


class _Fast(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operation of this thread below autograd, and answers the products itself."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch's default, True, imports its compiler at the first operation: a second, and some 80 MB."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = ANSWERS.get(func)
        if answer is not None and not kwargs:
            product = answer(*args)
            if product is not None:
                return product
        return func(*args, **(kwargs or {}))


def rows_by_rows(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a bᵀ + bias by oneDNN; the operator is the one that torch.compile emits for linear layers."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(a, b, bias, "none", [], "")
    return product


def _times(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias."""
    return rows_by_rows(_dense(a), _dense(b.mT), bias)


def _dense(a: Tensor) -> Tensor:
    """The matrix without gaps between its rows or columns, with which oneDNN is slower than the copy by far."""
    return a if a.is_contiguous() or a.mT.is_contiguous() else a.contiguous()


def _suits(a: Tensor, b: Tensor) -> bool:
    """Whether the product of these matrices is worth the way, and there is one."""
    if not available() or a.dtype is not torch.float32 or b.dtype is not torch.float32 or a.device.type != "cpu":
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
