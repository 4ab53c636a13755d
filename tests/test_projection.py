"""Random projections of gradients: unbiased inner products, the same P in every batch and for every kind of block."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import proponent as pp
from proponent.capture.blocks import Dense
from proponent.capture.gradients import Capture
from proponent.curvature import projection
from proponent.curvature.projection import PROJECTIONS, SJLT, projection_of
from proponent.rows import Rows
from truth.gradients import gradients

torch.set_num_threads(1)
N, WORDS = 5, 7


class Text(nn.Module):
    """An embedding, a linear layer at every token, a norm, and a head without bias."""

    def __init__(self):
        super().__init__()
        self.table, self.wide = nn.Embedding(WORDS, 3, padding_idx=0), nn.Linear(3, 5)
        self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, 3, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(torch.tanh(self.wide(self.table(tokens)))).mean(1))


MODELS = {
    "perceptron": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)),
    "text": Text,
}


@cache
def case(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    x = {
        "perceptron": lambda: torch.randn(N, 4).double(),
        "convolutions": lambda: torch.randn(N, 2, 3, 3).double(),
        "text": lambda: torch.randint(WORDS, (N, 4)),
    }[name]()
    y = torch.arange(N) % 3
    truth = gradients(
        model, [lambda i=i: nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in range(N)]
    )
    return blocks_of(pp.Task(model), (x, y)), truth


def blocks_of(task, data):
    rows = Rows.of(data)
    with task.watching():
        return Capture.of(task, rows).gradients(task.batch(rows, slice(0, N)), task.losses)[1]


def features(blocks, kind, dimension, seed, batch=N):
    """(N, k)."""
    sketch = projection_of(kind).sketch(dimension, seed, {name: block[:1] for name, block in blocks.items()})
    out = torch.zeros(N, sketch.dimension, dtype=torch.float64)
    for name, block in blocks.items():
        for at in range(0, N, batch):
            sketch.add(name, block[at : at + batch], out[at : at + batch])
    return out


KINDS = (*PROJECTIONS, SJLT(nonzeros=3))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_inner_products_are_kept_in_expectation(name, kind):
    blocks, truth = case(name)
    want = truth @ truth.T
    seeds = [features(blocks, kind, 40, seed) for seed in range(300)]
    got = torch.stack([f @ f.T for f in seeds])
    deviation = got.std(0) / len(seeds) ** 0.5
    assert ((got.mean(0) - want).abs() <= 4.5 * deviation + 1e-12).all()
    assert deviation.max() > 0  # or it would be no projection


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_same_whatever_the_batch_and_the_pieces(name, kind, monkeypatch):
    blocks, _ = case(name)
    want = features(blocks, kind, 12, seed=3)
    assert torch.equal(want, features(blocks, kind, 12, seed=3))
    assert (want - features(blocks, kind, 12, seed=4)).abs().max() > 1e-3
    for batch in (1, 2):
        assert torch.allclose(features(blocks, kind, 12, 3, batch), want, rtol=1e-12, atol=1e-14)
    monkeypatch.setattr(projection, "TOGETHER", 2)
    assert torch.allclose(features(blocks, kind, 12, 3), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ("gaussian", "rademacher", "sjlt", "fjlt"))
def test_the_error_of_inner_products_falls_as_one_over_k(kind):
    blocks, truth = case("perceptron")
    want = truth @ truth.T
    lengths = want.diagonal()
    scale = lengths[:, None] * lengths + want.square()  # of a Gaussian: variance (‖g‖²‖g′‖² + ⟨g, g′⟩²)/k
    for k in (50, 400):
        made = torch.stack([features(blocks, kind, k, seed) for seed in range(150)])
        variance = ((made @ made.mT - want).square().mean(0) / scale * k).mean()
        assert 0.3 < float(variance) < (6 if kind == "fjlt" else 2)  # few frequencies of few parameters are not flat


def test_a_sketch_is_linear_and_follows_the_parameters_own_layout():
    """The bins of a layer with factors are those of its gradient as it is, and so are those of an embedding."""
    blocks, _ = case("text")
    for kind in ("rademacher", "sjlt", "fjlt", SJLT(2)):
        sketch = projection_of(kind).sketch(16, 0, blocks)
        for name, block in blocks.items():
            got, want = torch.zeros(2, N, 16, dtype=torch.float64)
            sketch.add(name, block, got)
            sketch.add(name, Dense(block.names, block.rows()), want)
            assert torch.allclose(got, want, rtol=1e-12, atol=1e-14), (kind, name)
            assert got.abs().max() > 0


def test_wide_pieces_and_narrow_ones_agree(monkeypatch):
    blocks, _ = case("perceptron")
    want = features(blocks, "sjlt", 8, 0)
    monkeypatch.setattr(projection, "PIECE", 64 * 5)  # a row of the weight at a time
    got = features(blocks, "sjlt", 8, 0)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-14)
    large = features(blocks, "sjlt", 1000, 0)  # more bins than parameters: added up one by one
    assert ((large != 0).sum(1) <= 6 * 5 + 3 * 7).all() and (large != 0).any()


def test_kronecker_keeps_short_sides_as_they_are():
    blocks, truth = case("perceptron")
    made = features(blocks, "kronecker", 10_000, 0)
    assert made.shape == (N, 5 * 6 + 7 * 3)
    assert torch.allclose(made @ made.T, truth @ truth.T, rtol=1e-12)


def test_kronecker_stays_within_its_dimension():
    blocks, _ = case("text")
    for k in (5, 9, 30, 60):
        assert 0 < features(blocks, "kronecker", k, 0).shape[1] <= k
    with pytest.raises(pp.InputError, match="2 numbers for 4 layers"):
        features(blocks, "kronecker", 2, 0)


def test_an_unknown_projection_is_refused_with_the_known_ones():
    for wrong in ("sjtl", 3):
        with pytest.raises(pp.InputError, match="gaussian, rademacher, sjlt, fjlt, kronecker"):
            pp.TRAK(projection=wrong)
    with pytest.raises(pp.InputError, match="at least one bin"):
        SJLT(0)
    assert np.isclose(projection_of("sjlt").nonzeros, 1)
