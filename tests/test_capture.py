"""Captured gradients against autograd one by one, in float64, for every kind of layer."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import proponent as pp
from proponent.capture.forward_mode import along
from proponent.capture.one_by_one import one_by_one
from proponent.rows import Rows

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def energy(model, batch):
    """A smooth loss of whatever comes out, different for each output number."""
    out = model(*batch[:-1])
    out = out[0] if isinstance(out, tuple) else out
    flat = out.flatten(1)
    weights = torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)
    return (flat.tanh() * weights).sum(1) + flat.square().mean(1) * (1 + batch[-1])


class TimeFirst(nn.Module):
    """A module that wants the batch second."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.transpose(0, 1))[0].transpose(0, 1)


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


IMAGE, LINE, BOX = (4, 7, 7), (4, 9), (4, 5, 5, 5)
LAYERS = {
    "linear": (nn.Linear(6, 3), (6,)),
    "linear without bias": (nn.Linear(6, 3, bias=False), (6,)),
    "linear at positions": (nn.Linear(6, 3), (5, 6)),
    "linear on a grid": (nn.Linear(6, 3), (2, 3, 6)),
    "bilinear": (nn.Bilinear(4, 5, 3), (4,), (5,)),
    "bilinear at positions": (nn.Bilinear(4, 5, 3, bias=False), (2, 4), (2, 5)),
    "transformers Conv1D": (Conv1D(3, 6), (5, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3), LINE),
    "conv1d same, even kernel, dilated": (nn.Conv1d(4, 6, 4, padding="same", dilation=3), LINE),
    "conv1d groups": (nn.Conv1d(4, 6, 3, groups=2, stride=2), LINE),
    "conv1d depthwise, circular": (nn.Conv1d(4, 4, 3, groups=4, padding=2, padding_mode="circular"), LINE),
    "conv2d": (nn.Conv2d(4, 6, 3), IMAGE),
    "conv2d one position": (nn.Conv2d(4, 6, 7), IMAGE),
    "conv2d uneven": (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1)), IMAGE),
    "conv2d same": (nn.Conv2d(4, 6, (2, 4), padding="same", bias=False), IMAGE),
    "conv2d valid, groups": (nn.Conv2d(4, 6, 3, padding="valid", groups=2), IMAGE),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4, stride=2, padding=1), IMAGE),
    "conv2d reflect": (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), IMAGE),
    "conv2d replicate": (nn.Conv2d(4, 6, 3, padding="same", padding_mode="replicate"), IMAGE),
    "conv1d, many channels": (nn.Conv1d(9, 6, 3, padding=1, dilation=2), (9, 9)),
    "conv2d, many channels": (nn.Conv2d(8, 6, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1)), (8, 7, 7)),
    "conv3d, many channels": (nn.Conv3d(8, 2, 3, padding=1, stride=2), (8, 5, 5, 5)),
    "conv3d": (nn.Conv3d(4, 2, 3, padding=1, stride=2), BOX),
    "conv3d groups": (nn.Conv3d(4, 2, (1, 2, 3), groups=2), BOX),
    "transposed conv1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2), LINE),
    "transposed conv2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, dilation=2), IMAGE),
    "transposed conv2d depthwise": (nn.ConvTranspose2d(4, 4, 3, groups=4, bias=False), IMAGE),
    "transposed conv3d": (nn.ConvTranspose3d(4, 2, 2, stride=2), BOX),
    "embedding": (nn.Embedding(5, 3), (8, "tokens")),
    "embedding, padding": (nn.Embedding(5, 3, padding_idx=2), (8, "tokens")),
    "embedding, frequency": (nn.Embedding(5, 3, scale_grad_by_freq=True), (8, "tokens")),
    "embedding bag": (nn.EmbeddingBag(5, 3, mode="mean"), (8, "tokens")),
    "layer norm": (nn.LayerNorm(6), (5, 6)),
    "layer norm, one position": (nn.LayerNorm(6, bias=False), (6,)),
    "layer norm, two dimensions": (nn.LayerNorm((5, 6)), (3, 5, 6)),
    "rms norm": (nn.RMSNorm(6), (5, 6)),
    "group norm": (nn.GroupNorm(2, 4), IMAGE),
    "batch norm": (nn.BatchNorm2d(4), IMAGE),
    "batch norm of vectors": (nn.BatchNorm1d(6), (6,)),
    "batch norm of lines": (nn.BatchNorm1d(4), LINE),
    "batch norm of boxes": (nn.BatchNorm3d(4), BOX),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), IMAGE),
    "instance norm, running": (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), LINE),
    "prelu": (nn.PReLU(4), IMAGE),
    "prelu, one": (nn.PReLU(), (6,)),
    "attention": (SelfAttention(), (5, 8)),
    "attention without bias": (SelfAttention(bias=False), (5, 8)),
    "attention of other widths": (
        nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True),
        (5, 8),
        (5, 6),
        (5, 4),
    ),
    "attention, time first": (TimeFirst(nn.LSTM(6, 4)), (5, 6)),
    "encoder": (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), (5, 8)),
    "decoder": (nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), (5, 8), (3, 8)),
    "lstm": (nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True), (5, 6)),
    "gru, time first": (TimeFirst(nn.GRU(6, 4)), (5, 6)),
    "rnn cell": (nn.RNNCell(6, 4), (6,)),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), (6,)),
    "orthogonal": (nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), (4,)),
}


def inputs(shapes, b=5):
    torch.manual_seed(1)
    made = [
        torch.randint(5, (b, *shape[:-1])) if shape[-1] == "tokens" else torch.randn(b, *shape, dtype=torch.float64)
        for shape in shapes
    ]
    return (*made, torch.rand(b, dtype=torch.float64))


def prepared_layer(name):
    layer, *shapes = LAYERS[name]
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    for module in layer.modules():
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return layer, inputs(shapes)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_agrees_with_autograd_one_by_one(name):
    layer, batch = prepared_layer(name)
    check = pp.check_capture(pp.Task(layer, loss=energy), batch, examples=5)
    assert check.worst < 1e-10, check
    assert "the whole model, one by one" not in set(check.table["by"]), check


@pytest.mark.parametrize("name", LAYERS)
def test_products_from_factors_rows_forward_mode_and_one_by_one_are_the_same(name):
    layer, batch = prepared_layer(name)
    if name in ("embedding, frequency", "embedding bag", "weight norm"):
        pytest.skip("no forward derivative in PyTorch")
    task = pp.Task(layer, loss=energy)
    rows = Rows.of(batch)
    with task.watching():
        truth = one_by_one(task, task.selected(), batch, task.losses)
        flat = torch.cat(list(truth.values()), 1)
        direction = {k: v[0] for k, v in truth.items()}
        forward = along(task, direction, batch)
    scores = pp.GradDot().fit(task, rows).score(rows).dataset.score.values
    want = (flat @ flat.T).numpy()
    scale = np.abs(want).max()
    assert np.abs(scores - want).max() < 1e-10 * scale
    assert np.abs(forward.numpy() - want[0]).max() < 1e-10 * scale
    selfs = pp.GradDot().fit(task, rows).self_influence().value
    assert np.abs(selfs - want.diagonal()).max() < 1e-10 * scale


class Aliased(nn.Module):
    """The first layer's output is used twice, overwritten in between, and seen by a module that returns its input."""

    def __init__(self):
        super().__init__()
        self.first, self.shift, self.last = nn.Linear(3, 5), Shift(5), nn.Linear(10, 2)

    def forward(self, x):
        before = self.first(x)
        kept = before.clone()
        before.mul_(2)
        return self.last(torch.cat([self.shift(before), kept], 1))


class Shift(nn.Module):
    """Returns its input itself, overwritten."""

    def __init__(self, width):
        super().__init__()
        self.by = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x):
        return x.add_(self.by)


def test_an_output_that_is_overwritten_and_returned_again_is_right():
    torch.manual_seed(0)
    check = pp.check_capture(pp.Task(Aliased()), (torch.randn(6, 3), torch.randint(2, (6,))))
    assert check.passed, check


def test_windows_copied_a_few_examples_at_a_time_give_the_same(monkeypatch):
    layer, batch = prepared_layer("conv2d uneven")
    monkeypatch.setattr("proponent.capture.convolution.WINDOWS", 700)  # two of the five examples
    check = pp.check_capture(pp.Task(layer, loss=energy), batch, examples=5)
    assert check.worst < 1e-10, check
