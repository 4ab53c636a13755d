"""The cases of the benchmark of gradient methods: models, data and the floor that all times are compared with.

It is imported by two interpreters, ours and the peers', so it needs torch, numpy and Pillow only. Trained weights are kept
under PROPONENT_BENCH_CACHE (default: proponent-bench in the user's cache folder): both interpreters score the same model.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 0
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that the ResNet was trained on."""


@dataclass(frozen=True)
class Case:
    """A trained model with training examples and queries.

    Args:
        make: the model with its trained weights, in eval mode.
        train: (inputs, targets); of a language model the tokens, twice.
        query: as `train`.
        loss: "cross_entropy" or "causal_lm", the sum over an example's positions.
        batches: batch sizes that the floor chooses from.
    """

    name: str
    make: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]
    loss: str = "cross_entropy"
    batches: Sequence[int] = (64, 256, 1024)


def losses(loss: str, output: Tensor, target: Tensor) -> Tensor:
    """(b,) losses of a batch of outputs."""
    if loss == "causal_lm":
        output, target = output[:, :-1], target[:, 1:]
    flat = F.cross_entropy(output.reshape(-1, output.shape[-1]), target.reshape(-1), reduction="none")
    return flat.reshape(len(output), -1).sum(1)


def floor(case: Case, model: nn.Module, batch: int, count: int | None = None) -> float:
    """Seconds of one forward and backward pass over the training examples: a training step without its optimiser."""
    inputs, targets = (t[:count] for t in case.train)
    start = time.perf_counter()
    for at in range(0, len(inputs), batch):
        model.zero_grad(set_to_none=True)
        part = slice(at, at + batch)
        losses(case.loss, model(inputs[part]), targets[part]).sum().backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def floor_batch(case: Case, model: nn.Module) -> int:
    """The batch size at which the floor is lowest."""
    count = 4 * max(case.batches)
    return min(case.batches, key=lambda batch: min(floor(case, model, batch, count) for _ in range(3)))


def other_layers(model: nn.Module) -> list[str]:
    """Names of the layers with parameters that are neither Linear nor Conv2d: most peers leave them out."""
    return [
        name
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) and not isinstance(module, nn.Linear | nn.Conv2d)
    ]


def matrix_layers(model: nn.Module) -> list[str]:
    """Names of the Linear and Conv2d layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def root() -> Path:
    """Where the data sets are."""
    return Path(os.environ.get("PROPONENT_DATA", Path(__file__).parents[2] / "shared" / "data"))


def cache() -> Path:
    """Where trained weights are kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("PROPONENT_BENCH_CACHE", home / "proponent-bench"))


def fashion(part: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images (count, 784) of Fashion-MNIST in [0, 1], and their classes."""
    return digits("fashion-mnist", part, count)


def digits(name: str, part: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images (count, 784) of "mnist" or "fashion-mnist" in [0, 1], and their classes."""
    folder = root() / "images" / name
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784)[:count]
    y = np.frombuffer(labels, np.uint8, offset=8)[:count]
    return torch.from_numpy(np.float32(x) / 255), torch.from_numpy(y.astype(np.int64))


def cifar(part: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images (count, 3, 32, 32) of CIFAR-10, normalised, and their classes."""
    with np.load(root() / "images" / "cifar10-12k" / f"{part}.npz") as file:
        blob, offsets, labels = file["png"], file["offsets"], file["labels"][:count]
    pixels = [
        np.asarray(Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB"))
        for i in range(count)
    ]
    x = (np.stack(pixels) / 255 - MEAN) / DEVIATION
    return torch.from_numpy(np.float32(x)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


def shakespeare(context: int) -> tuple[Tensor, int]:
    """The plays as sequences of characters (n, context), and how many different ones there are."""
    text = (root() / "lm" / "tinyshakespeare" / "input.txt").read_text()
    code = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([code[c] for c in text])
    return tokens[: len(tokens) // context * context].reshape(-1, context), len(code)


def fit(model: nn.Module, loss: str, data: tuple[Tensor, Tensor], steps: int, batch: int, rate: float) -> None:
    """Train with Adam on seeded batches."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        rows = torch.randint(len(data[0]), (batch,), generator=generator)
        optimiser.zero_grad(set_to_none=True)
        losses(loss, model(data[0][rows]), data[1][rows]).mean().backward()
        optimiser.step()


def trained(name: str, build: Callable[[], nn.Module], **training: Any) -> nn.Module:
    """The model with weights from the cache; trained and put there where it is missing."""
    path = cache() / f"{name}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build()
        if not path.exists():
            fit(model, **training)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}")
            torch.save(model.state_dict(), unfinished)
            unfinished.replace(path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def perceptron(*widths: int, dropout: float = 0.0) -> nn.Module:
    """Linear layers of these widths, ReLU between them, each followed by dropout where there is any."""
    *hidden, last = (nn.Linear(*pair) for pair in itertools.pairwise(widths))
    drop = lambda: [nn.Dropout(dropout)] if dropout else []  # noqa: E731
    return nn.Sequential(*(m for layer in hidden for m in (layer, nn.ReLU(), *drop())), last)


def absolute(model: Any, batch: Any) -> Tensor:
    """Minus the absolute error."""
    inputs, targets = batch
    return -(model(inputs).squeeze(-1) - targets).abs()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def logistic() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 120),
        nn.ReLU(),
        nn.Linear(120, 10),
    )


class Residual(nn.Module):
    """Two convolutions, and a shortcut without parameters that subsamples and pads with zero channels (option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.padding = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + short)


class ResNet20(nn.Module):
    """The ResNet for CIFAR-10 of He et al., 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Residual(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Residual(16, 32, 2), Residual(32, 32, 1), Residual(32, 32, 1))
        self.layer3 = nn.Sequential(Residual(32, 64, 2), Residual(64, 64, 1), Residual(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def resnet20() -> nn.Module:
    path = root() / "models" / "resnet-cifar10" / "resnet20-12fca82f.th"
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = ResNet20()
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return model.eval()


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inwards, self.outwards = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inwards(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.outwards(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class GPT(nn.Module):
    """A character language model: tokens (b, t) in, logits (b, t, vocabulary) out."""

    def __init__(self, vocabulary: int, context: int = 128, width: int = 128, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.head(self.norm(self.layers(self.token(tokens) + self.position(places))))


def fashion_case(name: str, build: Callable[[], nn.Module], n: int, queries: int, shape: tuple[int, ...]) -> Case:
    (x, y), (qx, qy) = fashion("train", n), fashion("t10k", queries)
    train, query = (x.reshape(-1, *shape), y), (qx.reshape(-1, *shape), qy)
    training = {"loss": "cross_entropy", "data": train, "steps": 600, "batch": 128, "rate": 1e-3}
    return Case(name, lambda: trained(name, build, **training), train, query)


def resnet_case() -> Case:
    return Case("resnet20", resnet20, cifar("train", 2_000), cifar("test", 100), batches=(16, 64, 256))


def gpt_case() -> Case:
    sequences, vocabulary = shakespeare(128)
    train, query = sequences[:2_000], sequences[-50:]
    training = {"loss": "causal_lm", "data": (train, train), "steps": 300, "batch": 32, "rate": 1e-3}
    make = lambda: trained("gpt", lambda: GPT(vocabulary), **training)  # noqa: E731
    return Case("gpt", make, (train, train), (query, query), "causal_lm", batches=(16, 32, 64))


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: fashion_case("mlp", mlp, 5_000, 500, (784,)),
    "mlp-60k": lambda: fashion_case("mlp-60k", mlp, 60_000, 1_000, (784,)),
    "logistic": lambda: fashion_case("logistic", logistic, 5_000, 500, (784,)),
    "logistic-60k": lambda: fashion_case("logistic-60k", logistic, 60_000, 1_000, (784,)),
    "cnn": lambda: fashion_case("cnn", cnn, 5_000, 200, (1, 28, 28)),
    "resnet20": resnet_case,
    "gpt": gpt_case,
}
