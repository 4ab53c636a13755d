"""Products in 8-bit integers: exact where the inputs lie on a grid, and never used where they do not."""

import numpy as np
import pytest
import torch
from torch import nn

import proponent as pp
from proponent.capture import products
from proponent.capture.grid import Grid, exact_products

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _integers(monkeypatch):
    """As on a processor where they are fast."""
    monkeypatch.setattr(products, "processor", lambda: {"avx512_vnni": True})
    exact_products.cache_clear()
    if not exact_products():
        pytest.skip("8-bit products saturate on this processor")
    yield
    exact_products.cache_clear()


def test_products_that_the_processor_has_no_instructions_for_stay_in_single_precision(monkeypatch):
    monkeypatch.setattr(products, "processor", lambda: {"avx2": True})
    exact_products.cache_clear()
    assert Grid.of(images()) is None


def images(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 300), generator=generator).float() / 255


FORMS = {"0 to 1": lambda x: x, "normalised": lambda x: (x - 0.286) / 0.353, "−1 to 1": lambda x: 2 * x - 1}


@pytest.mark.parametrize("form", FORMS)
def test_products_on_a_grid_are_as_good_as_those_of_single_precision(form):
    a, b = (FORMS[form](images(seed=s)) for s in (0, 1))
    grid = Grid.of(a)
    want = a.double() @ b.double().T
    got = grid.levels(a).dot(grid.levels(b), 1.0) - 1.0
    plain = a @ b.T
    assert (got - want).abs().max() <= max(2 * (plain - want).abs().max(), 1e-6 * want.abs().max())


def test_numbers_off_the_grid_have_none():
    x = images()
    assert Grid.of(torch.randn(40, 300)) is None
    assert Grid.of(x.double()) is None
    assert Grid.of(torch.ones(40, 300)) is None
    grid = Grid.of(x)
    off = x.clone()
    off[7, 11] += 0.002
    assert grid.levels(off) is None and grid.levels(x * 2) is None
    late = x.clone()
    late[-1, -1] += 0.002  # beyond the numbers that the grid is found from
    assert Grid.of(late).levels(late) is None


def test_scores_are_the_same_with_and_without_a_grid_and_where_only_some_examples_lie_on_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 20), nn.ReLU(), nn.Linear(20, 4))
    x, y = images(60), torch.randint(4, (60,))
    wide = pp.Task(nn.Sequential(nn.Linear(300, 20), nn.ReLU(), nn.Linear(20, 4)).double())
    wide.model.load_state_dict(model.state_dict())
    mixed = x.clone()
    mixed[30:] += torch.rand(30, 300) * 1e-2
    for train in (x, mixed):
        want = pp.GradDot().fit(wide, (train.double(), y)).score((x.double(), y)).dataset.score.values
        got = pp.GradDot(batch_size=16).fit(pp.Task(model), (train, y)).score((x, y)).dataset.score.values
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
