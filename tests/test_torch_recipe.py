"""TorchRecipe: one by one as torch trains, stacked as one by one, and measurements by hand."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import proponent as pp
from proponent import losses
from proponent.draws import mixed
from proponent.errors import InputError, NotConverged, ProponentWarning
from proponent.examples import Examples
from proponent.retrain.recipe import Failure, subset_of
from proponent.retrain.run import retrain
from proponent.retrain.stacked import products
from proponent.retrain.stacked.layers import dense_layers
from proponent.retrain.stacked.optimizers import SGD, Adam, AdamW
from proponent.retrain.stacked.schedule import Schedule
from proponent.retrain.subsets import halves
from proponent.retrain.torch_recipe import TorchRecipe
from truth.training import train as truth

N, D, C = 37, 6, 4
RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(N, D)), RNG.integers(0, C, N)
TRAIN = Examples.of((INPUTS, LABELS))
QUERY = Examples.of((RNG.normal(size=(9, D)), RNG.integers(0, C, 9)))
HALVES = np.stack([RNG.permutation(np.arange(N) < N // 2) for _ in range(5)]).astype(np.uint8)
COUNTS = np.concatenate([RNG.integers(0, 3, (4, N)), np.eye(1, N, 3), np.ones((1, N))]).astype(np.uint8)
"""Bootstrap-like subsets of unequal sizes, one of a single example, and the whole."""


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker; small products on several threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def perceptron(activation=nn.ReLU, *first, bias=True, outputs=C):
    return nn.Sequential(
        *first,
        nn.Linear(D, 8, bias=bias),
        activation(),
        nn.Dropout(0.0),
        nn.Linear(8, 5),
        activation(),
        nn.Linear(5, outputs),
    ).double()


class Residual(nn.Module):
    """Not a Sequential, and with a layer used twice, tied weights, a frozen parameter and a buffer drawn at random."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm, self.out = nn.Linear(D, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, C)
        self.again, self.tied = self.b, nn.Linear(8, 8)
        self.tied.weight = self.b.weight
        self.scale = nn.Parameter(torch.full((1,), 2.0), requires_grad=False)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x):
        h = self.a(x).tanh() + self.shift
        return self.out(self.norm(h + self.scale * self.again(self.tied(self.b(h).relu()))))


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(1, 3, 3), nn.Linear(12, C)

    def forward(self, x):
        return self.out(self.conv(x[:, None]).relu().flatten(1))


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(D, C)

    def forward(self, x):
        return self.out(x) if x.sum() > 0 else self.out(-x)


class Counting(nn.Module):
    """Changes a buffer whenever it is called."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(D, C)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.out(x)


class Averaging(nn.Module):
    """Each example's output depends on its batch."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(D, C)

    def forward(self, x):
        return self.out(x - x.mean(0))


def arrays_of(model):
    return model.arrays if not isinstance(model, Failure) else pytest.fail(model.reason)


def worst(one, other):
    """The largest difference of two models' numbers."""
    a, b = arrays_of(one), arrays_of(other)
    assert a.keys() == b.keys()
    return max(np.abs(a[name] - b[name]).max() for name in a)


def require_same(recipe, train, included, seeds=None, tolerance=1e-10):
    """fit_many gives what fit gives for each subset, and moved from where it began."""
    seeds = np.arange(len(included)) * 7 if seeds is None else seeds
    together = recipe.fit_many(train, included, seeds)
    for row, seed, model in zip(included, seeds, together, strict=True):
        alone = recipe.fit(subset_of(train, row), int(seed))
        assert worst(model, alone) < tolerance
        start = recipe.fit(subset_of(train, np.zeros_like(row)), int(seed))
        assert worst(model, start) > 1e-4 or row.sum() <= 1
    return together


OPTIMIZERS = (
    (SGD(lr=0.1, momentum=0.0), lambda p: torch.optim.SGD(p, lr=0.1)),
    (SGD(0.1, 0.9, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
    (SGD(0.1, 0.8, nesterov=True), lambda p: torch.optim.SGD(p, 0.1, 0.8, nesterov=True)),
    (Adam(0.01, betas=(0.8, 0.9), weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.9), weight_decay=0.1)),
    (AdamW(0.02, eps=1e-6), lambda p: torch.optim.AdamW(p, 0.02, eps=1e-6, weight_decay=0.01)),
)


def orders(n, seed, epochs):
    """The recipe's batch orders: torch's permutations from a generator apart from that of the first weights."""
    generator = torch.Generator().manual_seed(int(mixed(seed)))
    return [torch.randperm(n, generator=generator) for _ in range(epochs)]


@pytest.mark.parametrize(("spec", "make"), OPTIMIZERS, ids=lambda v: getattr(type(v), "__name__", "")[:5])
@pytest.mark.parametrize("weighted", (False, True))
def test_one_by_one_is_what_torch_trains(spec, make, weighted):
    weights = RNG.random(N) if weighted else None
    train = Examples.of((INPUTS, LABELS), weights=weights)
    recipe = TorchRecipe(perceptron, optimizer=spec, schedule=lambda step: 0.9**step, epochs=3, batch_size=8)
    x, y, w = torch.tensor(INPUTS), torch.tensor(LABELS), torch.ones(N) if weights is None else torch.tensor(weights)
    batches = [(x[b], y[b], w[b]) for order in orders(N, 5, 3) for b in order.split(8)]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = perceptron()
    want = truth(
        model, lambda m, a, b: F.cross_entropy(m(a), b, reduction="none"), batches, make, lambda step: 0.9**step
    )
    got = recipe.fit(train, seed=5).module()
    assert all(
        torch.allclose(p, q, rtol=0, atol=1e-12) for p, q in zip(got.parameters(), want.parameters(), strict=True)
    )


@pytest.mark.parametrize("spec", [o for o, _ in OPTIMIZERS], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("schedule", ("constant", Schedule("cosine", warmup=0.2), lambda step, steps: 1 - step / steps))
@pytest.mark.parametrize("make", (perceptron, lambda: Residual().double()), ids=("written out", "vmap"))
@pytest.mark.parametrize("included", (HALVES, COUNTS), ids=("equal sizes", "unequal sizes"))
def test_a_stack_is_its_models_one_by_one(spec, schedule, make, included):
    require_same(TorchRecipe(make, optimizer=spec, schedule=schedule, epochs=3, batch_size=8), TRAIN, included)


SHARED = nn.ReLU()
MODELS = {
    "tanh": lambda: perceptron(nn.Tanh),
    "sigmoid": lambda: perceptron(nn.Sigmoid),
    "gelu": lambda: perceptron(nn.GELU),
    "gelu tanh": lambda: perceptron(lambda: nn.GELU("tanh")),
    "silu": lambda: perceptron(nn.SiLU),
    "leaky relu": lambda: perceptron(lambda: nn.LeakyReLU(0.2)),
    "identity": lambda: perceptron(nn.Identity),
    "one activation used twice": lambda: perceptron(lambda: SHARED),
    "no bias": lambda: perceptron(bias=False),
    "nested": lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(D, 3), nn.ReLU()), nn.Linear(3, C)).double(),
    "linear": lambda: nn.Linear(D, C).double(),
    "convolution": lambda: Convolution().double(),
}


@pytest.mark.parametrize("name", MODELS)
def test_architectures(name):
    written_out = dense_layers(MODELS[name](), torch.Size([D])) is not None
    assert written_out == (name != "convolution")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_same(TorchRecipe(MODELS[name], optimizer=SGD(0.1), epochs=4, batch_size=8), TRAIN, COUNTS)


@pytest.mark.parametrize(
    "change",
    (
        lambda m: m[1].register_forward_hook(lambda module, args, output: 2 * output),
        lambda m: m[0].weight.requires_grad_(False),
        lambda m: m.append(nn.Softmax(dim=1)),
        lambda m: parametrize.register_parametrization(m[0], "weight", nn.Softplus()),
        lambda m: setattr(m[3], "forward", lambda x: x[:, :5] + 1),
    ),
    ids=("hook", "frozen", "other layer", "parametrised", "patched"),
)
def test_what_is_more_than_a_plain_perceptron_is_not_taken_for_one(change):
    def make():
        model = perceptron()
        change(model)
        return model

    assert dense_layers(make(), torch.Size([D])) is None
    require_same(TorchRecipe(make, optimizer=SGD(0.1), epochs=2, batch_size=8), TRAIN, HALVES)


TARGETS = {
    "cross_entropy": LABELS,
    losses.CrossEntropy(label_smoothing=0.2): LABELS,
    losses.CrossEntropy(ignore_index=2): LABELS,
    "squared_error": RNG.normal(size=N),
    "binary_cross_entropy": (LABELS > 1).astype(float),
    "poisson": LABELS.astype(float),
}


@pytest.mark.parametrize("loss", TARGETS, ids=str)
@pytest.mark.parametrize("weighted", (False, True))
def test_losses(loss, weighted):
    outputs = C if "cross_entropy" in str(loss) or "CrossEntropy" in str(loss) else 1
    outputs = 1 if loss == "binary_cross_entropy" else outputs
    weights = RNG.random(N) if weighted else None
    train = Examples.of((INPUTS, TARGETS[loss]), weights=weights)
    for make in (
        lambda: perceptron(outputs=outputs),
        lambda: nn.Sequential(nn.LayerNorm(D), perceptron(outputs=outputs)).double(),
    ):
        require_same(TorchRecipe(make, loss=loss, optimizer=SGD(0.02), epochs=3, batch_size=8), train, COUNTS)


def test_a_loss_may_be_a_function_of_model_and_batch():
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none") + model(batch[0]).square().mean(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = TorchRecipe(perceptron, loss=loss, optimizer=SGD(0.1), epochs=3, batch_size=8)
        models = require_same(recipe, TRAIN, COUNTS)
    module = models[0].module()
    want = -loss(module, (torch.tensor(QUERY.inputs), torch.tensor(QUERY.labels)))
    assert np.allclose(recipe.measure(models[0], QUERY), want.detach(), rtol=1e-12)


ONE_BY_ONE = {
    "BatchNorm": lambda: nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, C)),
    "vectorise": lambda: nn.Sequential(nn.Linear(D, 8), nn.Dropout(0.5), nn.Linear(8, C)),
    "vectorise it": Branching,
    "buffers": Counting,
    "not those of one model": Averaging,
}


@pytest.mark.parametrize("reason", ONE_BY_ONE)
def test_what_cannot_be_stacked_is_trained_one_by_one_and_said(reason):
    recipe = TorchRecipe(lambda: ONE_BY_ONE[reason]().double(), optimizer=SGD(0.05), epochs=2, batch_size=8)
    with pytest.warns(ProponentWarning, match=f"one by one.*{reason}"):
        models = require_same(recipe, TRAIN, HALVES, tolerance=1e-15)
    want = np.stack([recipe.measure(m, QUERY) for m in models])
    assert np.allclose(recipe.measure_many(models, QUERY), want, rtol=1e-12, atol=1e-12)


def test_a_loss_that_asks_the_model_for_more_is_trained_one_by_one():
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none") + sum(
            p.square().sum() for p in model.parameters()
        )

    recipe = TorchRecipe(perceptron, loss=loss, optimizer=SGD(0.02), epochs=2, batch_size=8)
    with pytest.warns(ProponentWarning, match="one by one"):
        require_same(recipe, TRAIN, HALVES, tolerance=1e-15)


def test_single_precision_agrees_to_its_rounding():
    recipe = TorchRecipe(lambda: perceptron().float(), optimizer=SGD(0.05), epochs=3, batch_size=8)
    require_same(recipe, TRAIN, COUNTS, tolerance=2e-5)
    assert all(a.dtype == np.float32 for a in recipe.fit(TRAIN, 0).arrays.values())


def test_a_model_does_not_depend_on_what_else_is_trained():
    recipe = TorchRecipe(lambda: perceptron().float(), optimizer=SGD(0.1), epochs=3, batch_size=8)
    seeds = np.arange(len(COUNTS))
    together = recipe.fit_many(TRAIN, COUNTS, seeds)
    for some in ([3], [5, 0, 3], [3, 3]):
        again = recipe.fit_many(TRAIN, COUNTS[some], seeds[some])
        assert worst(again[some.index(3)], together[3]) < 1e-6
    small = TorchRecipe(lambda: perceptron().float(), optimizer=SGD(0.1), epochs=3, batch_size=8, at_once=2)
    for one, other in zip(small.fit_many(TRAIN, COUNTS, seeds), together, strict=True):
        assert worst(one, other) < 1e-6


def test_the_seed_decides_first_weights_and_order_and_nothing_outside_changes():
    recipe = TorchRecipe(perceptron, optimizer=SGD(0.1), epochs=2, batch_size=8)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, again = (recipe.fit_many(TRAIN, HALVES[:1], np.array([s]))[0] for s in (1, 2, 1))
    recipe.fit(TRAIN, 1), recipe.measure_many([a, b], QUERY), recipe.fingerprint(), recipe.batch
    assert torch.equal(before, torch.get_rng_state())
    assert worst(a, again) == 0 and worst(a, b) > 0.01
    same_start = TorchRecipe(lambda: _same(), optimizer=SGD(0.1), epochs=2, batch_size=8)
    c, d = same_start.fit_many(TRAIN, HALVES[[0, 0]], np.array([1, 2]))
    assert worst(c, d) > 1e-4, "the order of batches does not follow the seed"


def _same():
    torch.manual_seed(0)
    return perceptron()


def test_make_model_is_given_the_seed_where_it_asks():
    asked = []

    def make(seed):
        asked.append(seed)
        return perceptron()

    recipe = TorchRecipe(make, epochs=1, optimizer=SGD(0.1))
    recipe.fit_many(TRAIN, HALVES[:2], np.array([11, 12]))
    assert {11, 12} <= set(asked)


@pytest.mark.parametrize("make", (perceptron, lambda: Residual().double()), ids=("written out", "vmap"))
def test_one_model_that_diverges_fails_alone(make):
    inputs = INPUTS.copy()
    inputs[5] = np.inf
    train = Examples.of((inputs, LABELS))
    included = HALVES.copy()
    included[:, 5] = 0
    included[2, 5] = 1
    recipe = TorchRecipe(make, optimizer=SGD(0.1), epochs=3, batch_size=8)
    models = recipe.fit_many(train, included, np.arange(5))
    assert [isinstance(m, Failure) for m in models] == [False, False, True, False, False]
    assert "not finite" in models[2].reason
    for s in (0, 1, 3, 4):
        assert worst(models[s], recipe.fit(subset_of(train, included[s]), s)) < 1e-10
    with pytest.raises(NotConverged, match="learning rate"):
        recipe.fit(subset_of(train, included[2]), 2)


def test_an_empty_subset_leaves_the_model_as_it_was_made():
    recipe = TorchRecipe(perceptron, epochs=2, optimizer=SGD(0.1))
    included = np.stack([np.zeros(N), np.ones(N)]).astype(np.uint8)
    empty, _ = require_same(recipe, TRAIN, included)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        want = perceptron()
    assert all(torch.equal(p, q) for p, q in zip(empty.module().parameters(), want.parameters(), strict=True))
    assert len(recipe.fit_many(TRAIN, included[:1], np.array([4]))) == 1
    assert recipe.fit_many(TRAIN, included[:0], np.array([], dtype=np.int64)) == []


def test_measurements_by_hand():
    model = TorchRecipe(perceptron, optimizer=SGD(0.1), epochs=3).fit(TRAIN, 0)
    logits = model.module()(torch.tensor(QUERY.inputs)).tolist()
    for what in ("loss", "margin", "probability", "correct", "prediction"):
        got = TorchRecipe(perceptron, measurement=what).measure(model, QUERY)
        for i, row in enumerate(logits):
            total = sum(map(math.exp, row))
            p = [math.exp(f) / total for f in row]
            own = p[QUERY.labels[i]]
            want = {
                "loss": math.log(own),
                "margin": math.log(own / (1 - own)),
                "probability": own,
                "correct": float(max(p) == own),
                "prediction": math.log(max(p) / (1 - max(p))),
            }[what]
            assert math.isclose(got[i], want, rel_tol=1e-9, abs_tol=1e-12), what


@pytest.mark.parametrize("what", ("loss", "margin", "probability", "correct", "prediction"))
@pytest.mark.parametrize("make", (perceptron, lambda: Residual().double(), lambda: perceptron().float()))
def test_a_stack_is_measured_as_its_models_are(make, what):
    recipe = TorchRecipe(make, optimizer=SGD(0.1), epochs=2, measurement=what)
    models = recipe.fit_many(TRAIN, HALVES, np.arange(5))
    want = np.stack([recipe.measure(m, QUERY) for m in models])
    got = recipe.measure_many(models, QUERY)
    assert got.shape == (5, len(QUERY)) and got.dtype == np.float64
    assert np.allclose(got, want, rtol=1e-5, atol=1e-6) and np.ptp(want) > 0


def test_measurements_of_regression_and_binary_models():
    binary = TorchRecipe(lambda: perceptron(outputs=1), loss="binary_cross_entropy", optimizer=SGD(0.1), epochs=2)
    train = Examples.of((INPUTS, (LABELS > 1).astype(float)))
    model = binary.fit(train, 0)
    f = model.module()(torch.tensor(INPUTS)).detach().numpy()[:, 0]
    sign = 2 * train.labels - 1
    for what, want in {"correct": sign * f > 0, "prediction": np.abs(f), "margin": sign * f}.items():
        got = TorchRecipe(lambda: perceptron(outputs=1), loss="binary_cross_entropy", measurement=what).measure(
            model, train
        )
        assert np.allclose(got, want), what
    squared = TorchRecipe(lambda: perceptron(outputs=1), loss="squared_error", measurement="prediction")
    assert np.allclose(squared.measure(model, Examples.of(INPUTS)), f), "a prediction needs no labels"
    with pytest.raises(InputError, match="labels"):
        binary.measure(model, Examples.of(INPUTS))
    with pytest.raises(InputError, match="predicts no classes"):
        TorchRecipe(lambda: perceptron(outputs=1), loss="squared_error", measurement="margin").measure(model, train)
    doubled = TorchRecipe(lambda: perceptron(outputs=1), measurement=lambda m, batch: 2 * m(batch[0])[:, 0])
    assert np.allclose(doubled.measure(model, train), 2 * f)
    assert np.allclose(doubled.measure_many([model, model], train), 2 * f)


def test_models_are_plain_arrays_and_come_back(tmp_path):
    recipe = TorchRecipe(lambda: Residual().double(), optimizer=SGD(0.1), epochs=2)
    model = recipe.fit(TRAIN, 0)
    np.savez(tmp_path / "m.npz", **recipe.pack(model))
    with np.load(tmp_path / "m.npz", allow_pickle=False) as arrays:
        again = recipe.unpack(arrays)
    assert np.array_equal(recipe.measure(again, QUERY), recipe.measure(model, QUERY))
    with pytest.raises(InputError, match="another architecture"):
        TorchRecipe(perceptron).unpack(model.arrays).module()


def test_fingerprints_name_what_determines_the_models():
    base = {"make_model": perceptron, "optimizer": SGD(0.1), "epochs": 2}
    own = TorchRecipe(**base).fingerprint()
    assert own == TorchRecipe(**base, at_once=3, schedule=Schedule("cosine")).fingerprint()
    others = (
        {"optimizer": SGD(0.2)},
        {"epochs": 3},
        {"batch_size": 9},
        {"schedule": "constant"},
        {"schedule": lambda step: 0.5},
        {"schedule": lambda step: 0.25},
        {"loss": losses.CrossEntropy(label_smoothing=0.1)},
        {"measurement": "margin"},
        {"make_model": lambda: perceptron(nn.Tanh)},
        {"make_model": lambda: perceptron().float()},
    )
    made = [TorchRecipe(**(base | other)).fingerprint() for other in others]
    assert len({own, *made}) == 1 + len(others)


def test_fingerprints_are_those_of_another_process():
    code = (
        "import torch\nfrom torch import nn\nfrom proponent.retrain.torch_recipe import TorchRecipe\n"
        "def make():\n    return nn.Sequential(*[(lambda k: nn.Linear(k, 2))(k) for k in (2, 2)])\n"
        "print(TorchRecipe(make, measurement=lambda m, b: m(b[0])[:, 0]).fingerprint())"
    )
    printed = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(printed) == 1


def test_retrain_gives_the_same_bits_with_any_number_of_workers(tmp_path):
    make = lambda: nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, C))  # noqa: E731 - workers get it by value
    recipe = TorchRecipe(make, optimizer=SGD(0.1), epochs=2, batch_size=8, at_once=4)
    one = retrain(recipe, TRAIN, QUERY, halves(10))
    two = retrain(recipe, TRAIN, QUERY, halves(10), ledger=tmp_path / "ledger", keep_models=True, workers=2)
    assert np.array_equal(one.measured, two.measured) and np.isfinite(one.measured).all()
    again = retrain(recipe, TRAIN, TRAIN, halves(10), ledger=tmp_path / "ledger", keep_models=True)
    for model, row in zip(two.models, again.measured, strict=True):
        assert np.allclose(recipe.measure(model, TRAIN), row, atol=1e-6)
    alone = TorchRecipe(make, optimizer=SGD(0.1), epochs=2, batch_size=8, at_once=1)
    assert np.allclose(retrain(alone, TRAIN, QUERY, halves(10)).measured, one.measured, atol=1e-5)


def test_the_stack_is_as_large_as_the_cache():
    assert TorchRecipe(lambda: nn.Linear(64, 10)).batch == 128
    wide = TorchRecipe(lambda: nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)))
    assert 2 <= wide.batch <= 16
    assert TorchRecipe(lambda: nn.Linear(2000, 2000)).batch == 1
    assert TorchRecipe(lambda: nn.Linear(64, 10), at_once=7).batch == 7


@pytest.mark.parametrize("kind", (products.Batched, products.OneDNN))
def test_products(kind):
    if kind is products.OneDNN and not products.available():
        pytest.skip("MKL is as fast here")
    torch.manual_seed(0)
    w, x, d = torch.randn(3, 7, 5), torch.randn(3, 6, 5).mT, torch.randn(3, 7, 6)
    own = kind()
    for inputs in (x, x.contiguous()):
        for got, want, write in (
            (torch.empty(3, 7, 6), w @ inputs, lambda out, inputs=inputs: own.outputs(w, inputs, out)),
            (torch.empty(3, 7, 5), d @ inputs.mT, lambda out, inputs=inputs: own.weight_gradient(d, inputs, out)),
            (torch.empty(3, 5, 6), w.mT @ d, lambda out: own.input_gradient(w, d, out)),
        ):
            write(got)
            assert torch.allclose(got, want, atol=1e-5)


def test_wide_layers_agree_with_one_by_one():
    rng = np.random.default_rng(0)
    train = Examples.of((rng.normal(size=(60, 600)), rng.integers(0, 3, 60)))

    def make():
        return nn.Sequential(nn.Linear(600, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3))

    included = np.stack([rng.permutation(np.arange(60) < 40) for _ in range(3)]).astype(np.uint8)
    require_same(TorchRecipe(make, optimizer=SGD(0.02), epochs=2, batch_size=40), train, included, tolerance=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"make_model": nn.Linear(2, 2)}, "make_model"),
        ({"make_model": perceptron, "epochs": 0}, "epochs=0"),
        ({"make_model": perceptron, "optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"make_model": perceptron, "optimizer": SGD(0.1), "lr": 0.2}, "one learning rate"),
        ({"make_model": perceptron, "schedule": "cosin"}, "did you mean 'cosine'"),
        ({"make_model": perceptron, "schedule": 3}, "schedule 3"),
        ({"make_model": perceptron, "measurement": "marging"}, "did you mean 'margin'"),
        ({"make_model": perceptron, "loss": "cross"}, "did you mean|choose one of"),
    ),
)
def test_wrong_arguments_are_refused_in_words(arguments, message):
    with pytest.raises(InputError, match=message):
        TorchRecipe(**arguments)


@pytest.mark.parametrize("arguments", ({"lr": 0}, {"momentum": 1.0}, {"weight_decay": -1}))
def test_wrong_optimisers_are_refused(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        SGD(**arguments)


@pytest.mark.parametrize(
    ("train", "message"),
    (
        (Examples.of((INPUTS, LABELS.astype(str))), "labels of dtype"),
        (Examples.of((INPUTS, LABELS + 1)), "labels out of range"),
        (Examples.of((INPUTS, LABELS.astype(float))), "integer classes"),
        (Examples.of(([["a"]] * N, LABELS)), "inputs of dtype"),
    ),
)
def test_wrong_data_is_refused_in_words(train, message):
    with pytest.raises(InputError, match=message):
        TorchRecipe(perceptron).fit_many(train, HALVES, np.arange(5))


def test_make_model_must_make_something_to_train():
    with pytest.raises(InputError, match="returns a int"):
        TorchRecipe(lambda: 3).fit(TRAIN, 0)
    with pytest.raises(InputError, match="nothing to train"):
        TorchRecipe(nn.ReLU).fit(TRAIN, 0)


def test_schedules():
    step = Schedule("step", at=(0.5, 0.75), drop=0.1)
    assert [round(step.factor(s, 8), 3) for s in range(8)] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    line = Schedule("linear", floor=0.2)
    assert [round(line.factor(s, 4), 3) for s in range(4)] == [1.0, 0.8, 0.6, 0.4]
    assert Schedule("constant", warmup=0.5).factor(0, 8) == 0.25
    with pytest.raises(InputError, match="warmup"):
        Schedule(warmup=1.5)


def test_public_names():
    assert {"TorchRecipe", "SGD", "Adam", "AdamW", "Schedule"} <= set(pp.__all__)
    assert pp.TorchRecipe is TorchRecipe and pp.SGD is SGD and pp.Schedule is Schedule
