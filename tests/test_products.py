"""Products in single precision by the faster library: as exact as PyTorch's own, whatever the layout."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from proponent.capture.products import WORTHWHILE, available, fast_products, times

LAYOUTS = {
    "rows": lambda r, c: torch.randn(r, c),
    "columns": lambda r, c: torch.randn(c, r).T,
    "rows with gaps": lambda r, c: torch.randn(r, c + 3)[:, :c],
    "columns with gaps": lambda r, c: torch.randn(c + 2, r)[:c].T,
}


@pytest.mark.parametrize(("left", "right"), list(itertools.product(LAYOUTS, LAYOUTS)))
@pytest.mark.parametrize("shape", [(1, 5, 2), (40, 700, 60)])
def test_single_precision_whatever_the_layout(shape, left, right):
    torch.manual_seed(0)
    m, k, n = shape
    a, b, bias = LAYOUTS[left](m, k), LAYOUTS[right](k, n), torch.randn(n)
    truth = a.double() @ b.double()
    size = truth.abs().max()
    with fast_products():
        inside = {
            "mm": a @ b,
            "addmm": torch.addmm(bias, a, b) - bias,
            "matrix": torch.addmm(truth.float(), a, b) - truth,
            "in place": torch.zeros(m, n).addmm_(a, b),
            "scaled": torch.addmm(bias, a, b, alpha=2.0) / 2 - bias / 2,
        }
    for product in (times(a, b), *inside.values()):
        assert float((product.double() - truth).abs().max() / size) < 2e-6


@pytest.mark.skipif(not available(), reason="PyTorch's own products are taken on this processor")
def test_large_products_go_the_other_way_and_gradients_agree():
    torch.manual_seed(0)
    m = int(WORTHWHILE ** (1 / 3)) + 2
    x, w = torch.randn(m, m), torch.randn(m, m, requires_grad=True)
    with torch.profiler.profile() as seen, fast_products():
        (grad,) = torch.autograd.grad((x @ w).square().sum(), w)
    assert any(event.key == "mkldnn::_linear_pointwise" for event in seen.key_averages())
    truth = 2 * x.double().T @ (x.double() @ w.detach().double())
    assert float((grad - truth).abs().max() / truth.abs().max()) < 2e-6


def test_the_mode_ends_with_the_block():
    with pytest.raises(RuntimeError, match="inner"), fast_products():
        raise RuntimeError("inner")
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_alone(dtype):
    a = torch.ones(200, 200, dtype=dtype)
    with fast_products():
        assert torch.equal(a @ a, torch.full_like(a, 200))
    assert torch.equal(times(a, a), torch.full_like(a, 200))


def test_no_compiler_is_imported_for_the_faster_products():
    script = (
        "import sys, torch, proponent as pp\n"
        "data = torch.randn(600, 300), torch.randint(10, (600,))\n"
        "pp.GradDot().fit(pp.Task(torch.nn.Linear(300, 10)), data).score(data)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
