"""What a task asks of the user's world, what it refuses in words, and that it leaves everything as it was."""

import copy
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import proponent as pp
from proponent.capture.gradients import Capture
from proponent.rows import Rows
from truth.gradients import gradients, products

torch.set_num_threads(1)
N = 9


def small(*between, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *between, nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def data(n=N, seed=1, dtype=torch.float64):
    torch.manual_seed(seed)
    return torch.randn(n, 4, dtype=dtype), torch.randint(3, (n,))


def scored(task, train, query, method=None):
    return (method or pp.GradDot()).fit(task, train).score(query).dataset.score.values


def want(model, train, query, loss=nn.functional.cross_entropy):
    """Products of gradients taken one by one."""
    rows = [
        gradients(model, [lambda i=i, x=x, y=y: loss(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))])
        for x, y in (query, train)
    ]
    return products(*rows)


def close(got, truth, tolerance=1e-10):
    return np.abs(got - truth).max() <= tolerance * np.abs(truth).max()


# Which parameters


def names(model, chosen):
    return list(pp.Task(model, parameters=chosen).selected())


def test_parameters_are_chosen_by_name_by_pattern_by_type_and_by_lists_of_them():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Sequential(nn.Linear(6, 6), nn.PReLU()))
    every = ["0.weight", "0.bias", "1.weight", "1.bias", "2.0.weight", "2.0.bias", "2.1.weight"]
    assert names(model, None) == every
    assert names(model, "1.bias") == ["1.bias"]
    assert names(model, "*.weight") == ["0.weight", "1.weight", "2.0.weight", "2.1.weight"]
    assert names(model, nn.Linear) == ["0.weight", "0.bias", "2.0.weight", "2.0.bias"]
    assert names(model, [nn.PReLU, "1.*"]) == ["1.weight", "1.bias", "2.1.weight"]
    assert names(model, (nn.LayerNorm, nn.PReLU)) == ["1.weight", "1.bias", "2.1.weight"]
    assert names(model, nn.Sequential) == every
    attention = nn.TransformerEncoderLayer(8, 2, 16)
    assert names(attention, nn.MultiheadAttention) == [
        k for k, _ in attention.named_parameters() if k.startswith("self_attn.")
    ]


def test_a_tied_parameter_goes_by_any_of_its_names():
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["table"].weight
    assert names(model, "head.*") == names(model, nn.Linear) == names(model, "table.weight") == ["table.weight"]


def test_chosen_parameters_are_the_ones_that_are_differentiated():
    model, train = small(nn.LayerNorm(6, dtype=torch.float64)), data()
    parts = [
        scored(pp.Task(model, parameters=chosen), train, train) for chosen in (nn.Linear, nn.LayerNorm, ["0.*", "3.*"])
    ]
    assert close(parts[0] + parts[1], want(model, train, train))
    assert close(parts[2], parts[0])
    assert pp.Task(model, parameters=[nn.Linear, "1.*"]).settings()["parameters"] == ["Linear", "1.*"]
    assert pp.Task(model, parameters=nn.Linear).settings()["parameters"] == ["Linear"]
    assert pp.Task(model, parameters="1.*").settings()["parameters"] == "1.*"
    one, other = (pp.Task(model, loss=lambda model, b: model(b[0]).sum(1)).settings()["loss"] for _ in range(2))
    assert one == other and "lambda" in one  # of another process too: a killed run goes on


@pytest.mark.parametrize(
    "chosen, words",
    [
        ("0.wieght", "did you mean '0.weight'"),
        (nn.Conv2d, "no parameter matches Conv2d"),
        (nn.Tanh, "no parameter matches Tanh"),
        ([nn.Linear, 3], "parameters chosen by 3"),
        (["0.*", "nothing*"], "no parameter matches 'nothing"),
    ],
)
def test_a_choice_of_nothing_is_refused(chosen, words):
    with pytest.raises(pp.InputError, match=words):
        pp.Task(small(), parameters=chosen)


# Models and losses that are refused in words


def averaged(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def averaged_and_expanded(model, batch):
    return averaged(model, batch).expand(len(batch[1]))


def divided_by_the_batch(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none") / len(batch[1])


@pytest.mark.parametrize(
    "loss, error, words",
    [
        (averaged, pp.InputError, r"a loss of shape \(\) for"),
        (lambda model, batch: None, pp.InputError, "a loss of shape NoneType"),
        (averaged_and_expanded, pp.UnsupportedModel, "with the other examples of the batch"),
        (divided_by_the_batch, pp.UnsupportedModel, "with the other examples of the batch"),
    ],
)
def test_a_loss_that_is_no_examples_own_is_refused(loss, error, words):
    with pytest.raises(error, match=words):
        pp.GradDot().fit(pp.Task(small(), loss=loss), data())


class Mixing(nn.Module):
    """Centres its inputs over the batch."""

    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x):
        return self.inner(x - x.mean(0))


REFUSED = {
    "batch norm without statistics": (
        lambda: small(nn.BatchNorm1d(6, track_running_stats=False)),
        pp.UnsupportedModel,
        r"BatchNorm without running statistics \(1\)",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), pp.UnsupportedModel, r"not initialised yet \(0.weight, 0.bias\)"),
    "meta": (lambda: nn.Linear(4, 3, device="meta"), pp.UnsupportedModel, "on the meta device"),
    "no parameters": (nn.Tanh, pp.UnsupportedModel, "a model without parameters"),
    "no module": (lambda: lambda x: x, pp.InputError, "a model of type function"),
    "whole numbers": (
        lambda: nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)]),
        pp.UnsupportedModel,
        r"0 of torch.int8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_are_refused_in_words(name):
    made, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        pp.Task(made())


def test_a_model_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        model = small()
    with pytest.raises(pp.UnsupportedModel, match="inference_mode"):
        pp.Task(model)


def test_a_model_that_mixes_examples_is_refused():
    with pytest.raises(pp.UnsupportedModel, match="with the other examples of the batch"):
        pp.GradDot().fit(pp.Task(Mixing()), data())


@pytest.mark.parametrize(
    "target, words",
    [
        (torch.full((N,), 3), "labels out of range, such as 3"),
        (torch.zeros(N), "targets of dtype torch.float64"),
        (torch.zeros(N, 2).long(), r"targets of shape \(1, 2\)"),
    ],
)
def test_wrong_labels_are_refused_before_the_long_loop(target, words):
    with pytest.raises(pp.InputError, match=words):
        pp.GradDot().fit(pp.Task(small()), (data()[0], target))


@pytest.mark.parametrize("measurement", ("margn", None, 3))
def test_an_unknown_measurement_is_refused(measurement):
    with pytest.raises(pp.InputError, match="measurement"):
        pp.Task(small(), measurement=measurement)


def test_a_measurement_over_classes_of_a_function_is_refused():
    task = pp.Task(small(), loss=lambda m, b: m(b[0]).sum(1), measurement="margin")
    with pytest.raises(pp.InputError, match="loss that is a function"):
        pp.GradDot().fit(task, data()).score(data())


# Modes


def test_layers_in_training_mode_are_looked_at_in_eval_mode_and_put_back():
    model, train = small(nn.BatchNorm1d(6, dtype=torch.float64), nn.Dropout(0.5)), data()
    model(train[0])  # running statistics that are not those of the batch
    truth = want(model.eval(), train, train)
    model.train()
    model[2].eval()
    assert close(scored(pp.Task(model), train, train), truth)
    assert [m.training for m in model.modules()] == [True, True, True, False, True, True]


def test_frozen_parameters_are_differentiated_all_the_same():
    model, train = small(), data()
    truth = want(model, train, train)
    model.requires_grad_(False)
    assert close(scored(pp.Task(model), train, train), truth)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_modes_without_gradients_around_the_call_do_not_matter(mode):
    model, train = small(), data()
    truth = want(model, train, train)
    with mode():
        assert close(scored(pp.Task(model), train, train), truth)


@pytest.mark.parametrize("how", ("whole", "in place", "a part", "the loss"))
def test_compiled_models(how):
    plain, train, loss = small(), data(), "cross_entropy"
    model = copy.deepcopy(plain)
    if how == "whole":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    elif how == "a part":
        model[0] = torch.compile(model[0], backend="eager")
    else:
        loss = torch.compile(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), backend="eager")
    model(train[0])  # compiled before any hook is there
    task = pp.Task(model, loss=loss)
    assert close(scored(task, train, train), want(plain, train, train))
    assert not pp.check_capture(task, train).table["by"].str.contains("whole model").any()
    torch._dynamo.reset()


DISTRIBUTED = """
import os, sys
import torch
from torch import nn
sys.path.insert(0, sys.argv[1])
import proponent as pp
from test_task import close, data, scored, small, want

model, train = small(), data()
truth = want(model, train, train)
store = torch.distributed.FileStore(sys.argv[2], 1)
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
wrapped = nn.parallel.DistributedDataParallel(model)
wrapped.train()
assert pp.Task(wrapped).net is pp.Task(nn.DataParallel(model)).net is model
assert close(scored(pp.Task(wrapped), train, train), truth)
assert all(m.training for m in wrapped.modules())
wrapped(train[0]).sum().backward()  # it can still be trained
assert all(p.grad is not None for p in model.parameters())
print("done", flush=True)
os._exit(0)
"""


def test_distributed_data_parallel(tmp_path):
    """In a process of its own that never takes the group apart: gloo's threads and the main one may then wait for each
    other, with the interpreter's lock held, so that no time limit inside the process helps."""
    here = str(Path(__file__).parent)
    args = [sys.executable, "-c", DISTRIBUTED, here, str(tmp_path / "store")]
    done = subprocess.run(args, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_is_close_to_single(dtype):
    model = small(nn.LayerNorm(6)).to(dtype)
    train = data(40, dtype=dtype)
    single = copy.deepcopy(model).float()
    truth = scored(pp.Task(single), (train[0].float(), train[1]), (train[0].float(), train[1]))
    got = scored(pp.Task(model), train, train)
    assert got.dtype == np.float32
    assert np.linalg.norm(got - truth) < 0.02 * np.linalg.norm(truth)
    assert not pp.check_capture(pp.Task(model), train, dtype=None).table["by"].str.contains("whole model").any()


# Everything as it was


class Odd(nn.Module):
    """Draws from every global generator, counts its calls in two ways, and can fail half-way."""

    def __init__(self):
        super().__init__()
        self.inner = small(nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3, dtype=torch.float64))
        self.fail_after = None

    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        self.calls += 1
        out = self.inner(x)
        self.last = out.detach()[0]
        if self.fail_after is not None and self.calls > self.fail_after:
            raise RuntimeError("the model broke")
        return out


def state(model):
    """All that a user could notice."""
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "buffers are the same objects": [id(b) for b in model.buffers()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._state_dict_hooks))
            for m in model.modules()
        ],
        "tensor hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def odd():
    model, train = Odd(), data()
    model(train[0]).sum().backward()
    model.inner[1].eval()
    model.inner[0].weight.requires_grad_(False)
    model.inner[4].register_forward_hook(lambda *a: None)
    return model, train


@pytest.mark.parametrize("fast", (True, False))
def test_the_users_model_and_generators_are_as_they_were(fast):
    model, train = odd()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        before = state(model)
        fitted = pp.GradDot(batch_size=4).fit(pp.Task(model), train)
        fitted.score(train), fitted.top(train, 2), fitted.self_influence(), pp.check_capture(pp.Task(model), train)
        after = state(model)
        assert [k for k in before if not same(before[k], after[k])] == []
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("passes", (0, 1, 2, 4, 6))
def test_also_after_an_error_half_way(passes):
    model, train = odd()
    before = state(model)
    model.fail_after = float(model.calls) + passes
    with pytest.raises(RuntimeError, match="the model broke"):
        pp.GradDot(batch_size=2).fit(pp.Task(model), train).score(train)
    after = state(model)
    assert [k for k in before if not same(before[k], after[k])] == []


def test_a_loss_that_raises_leaves_the_model_as_it_was():
    model, train = odd()
    before = state(model)

    def loss(net, batch):
        out = net(batch[0])
        raise ZeroDivisionError(f"after {out.shape}")

    with pytest.raises(ZeroDivisionError):
        pp.GradDot().fit(pp.Task(model, loss=loss), train)
    after = state(model)
    assert [k for k in before if not same(before[k], after[k])] == []


# Examples that are not finite


class Root(nn.Module):
    """√max(0, Wx): its gradient is infinite, or not a number, where an output is zero, and its value is finite."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Linear(4, 3, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.w.weight.abs_()
            self.w.weight[0] = torch.tensor([1.0, 1.0, 1.0, -3.0])

    def forward(self, x):
        return self.w(x.clamp(-1, 1) + 1.5).clamp(min=0).sqrt()


BAD = {"nan": torch.nan, "inf": torch.inf, "infinite gradient": 0.0, "infinite loss": 0.0}


def infinite_at_zero(model, batch):
    """A loss that is infinite where its gradient is finite."""
    losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return losses + torch.where(batch[0].abs().sum(1) == 0, torch.inf, 0.0)


KINDS = ["nan", "inf", "infinite loss", "infinite gradient"]


def bad_case(kind, at, seed=1):
    """A task, examples of which one is bad, and which ones are good."""
    x, y = data(seed=seed)
    if kind == "infinite gradient":
        x = x.abs() * torch.tensor([1, 1, 1, -1])  # the first output is positive everywhere but at zero
    x[at] = BAD[kind]
    loss = infinite_at_zero if kind == "infinite loss" else "cross_entropy"
    task = pp.Task(Root() if kind == "infinite gradient" else small(), loss=loss)
    return task, (x, y), torch.arange(N) != at


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", (0, 5))
def test_an_example_that_is_not_finite_is_named_and_harms_no_other(kind, at):
    task, bad, good = bad_case(kind, at)
    query = bad[0][good], bad[1][good]
    truth = scored(task, query, query)
    with pytest.warns(pp.ProponentWarning, match=rf"set_aside_train\): \[{at}\]"):
        scores = pp.GradDot().fit(task, bad).score(query)
    assert json.loads(scores.dataset.attrs["set_aside_train"]) == [at]
    assert "set_aside_query" not in scores.dataset.attrs
    assert np.isnan(scores.dataset.score.values[:, at]).all()
    assert close(scores.dataset.score.values[:, good], truth)


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_that_is_not_finite_is_named_and_harms_no_other(kind):
    task, bad, good = bad_case(kind, 5)
    train = bad[0][good], bad[1][good]
    truth = scored(task, train, train)
    with pytest.warns(pp.ProponentWarning, match=r"set_aside_query\): \[5\]"):
        scores = pp.GradDot().fit(task, train).score(bad)
    assert "set_aside_train" not in scores.dataset.attrs
    assert np.isnan(scores.dataset.score.values[5]).all()
    assert close(scores.dataset.score.values[good], truth)


@pytest.mark.parametrize("kind", BAD)
def test_self_influence_names_an_example_that_is_not_finite(kind):
    task, bad, good = bad_case(kind, 5)
    kept = bad[0][good], bad[1][good]
    truth = scored(task, kept, kept).diagonal()
    with pytest.warns(pp.ProponentWarning, match=r"\[5\]"):
        selfs = pp.GradDot().fit(task, bad).self_influence()
    assert json.loads(selfs.dataset.attrs["set_aside_train"]) == [5]
    assert np.isnan(selfs.value[5]) and close(selfs.value[good], truth)


@pytest.mark.parametrize("kind", KINDS)
def test_the_strongest_examples_are_finite_ones(kind):
    task, bad, good = bad_case(kind, 5)
    query = bad[0][good], bad[1][good]
    scores, ids = scored(task, query, query), np.flatnonzero(good)
    top = pp.GradDot().fit(task, bad).top(query, k=2)
    for q in range(N - 1):
        order = ids[np.argsort(-scores[q], kind="stable")]
        mine = top[top["query"] == q]
        assert mine[mine["side"] == "proponent"]["id"].tolist() == order[:2].tolist()
        opponents = int((np.sort(scores[q])[:2] < 0).sum())
        assert mine[mine["side"] == "opponent"]["id"].tolist() == order[::-1][:opponents].tolist()


def test_an_example_that_is_not_finite_does_not_slow_the_others_down():
    task, bad, _ = bad_case("nan", 0)
    with task.watching():
        assert not Capture.of(task, Rows.of(bad)).whole


# Nothing there


@pytest.mark.parametrize("form", ("tuple", "mapping"))
def test_an_empty_training_set_is_refused_in_words(form):
    x, y = data(0)
    empty = (x, y) if form == "tuple" else {"input": x, "labels": y}
    with pytest.raises(pp.InputError, match="0 examples; wanted at least one"):
        pp.GradDot().fit(pp.Task(small()), empty)


def test_a_check_on_examples_that_are_not_finite_says_so():
    task, bad, _ = bad_case("nan", 2)
    with pytest.raises(pp.InputError, match=r"not finite \(examples \[2\]\)"):
        pp.check_capture(task, bad)
    assert pp.check_capture(task, bad, examples=2).passed
    assert pp.check_capture(task, tuple(x[:2] for x in bad), examples=4).passed


def test_whole_numbers_among_the_parameters_are_left_alone_where_others_are_chosen():
    model, train = nn.Sequential(small(dtype=torch.float32), nn.Identity()), data()
    model.register_parameter("codes", nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False))
    assert next(model.parameters()).dtype == torch.int8
    got, truth = scored(pp.Task(model, parameters="0.*"), train, train), scored(pp.Task(model[0]), train, train)
    assert close(got, truth, 1e-6)
