"""An MLP on scikit-learn's digits, trained in a second with 30 of 1,200 labels flipped.

    proponent attribute examples/digits_mlp.py --self-influence
    proponent attribute examples/digits_mlp.py --method tracin --out runs/digits-tracin
    proponent attribute examples/digits_mlp.py --checkpoints 'runs/digits-checkpoints/*.safetensors' --method tracin

Most of the flipped labels are among the first 30 of self_influence.csv: their ids are multiples of 40.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

import proponent as pp

CHECKPOINTS = Path("runs/digits-checkpoints")
FLIPPED, QUERIES, EPOCHS, RATE = 30, 30, 15, 0.1


@cache
def data():
    """Training images with 30 labels flipped, and test images as they are."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    images, labels = images[order], labels[order].copy()
    flipped = np.arange(0, 1200, 1200 // FLIPPED)
    true = labels.copy()
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, len(flipped))) % 10
    return images, labels, true


def train():
    images, labels, _ = data()
    return images[:1200], labels[:1200]


def query():
    """The test images that the model is least sure of."""
    images, labels, _ = data()
    images, labels = torch.as_tensor(images[1200:]), torch.as_tensor(labels[1200:])
    with torch.no_grad():
        losses = nn.functional.cross_entropy(trained()(images), labels, reduction="none")
    hardest = losses.argsort(descending=True)[:QUERIES]
    return images[hardest], labels[hardest]


def task():
    return pp.Task(trained(), loss="cross_entropy")


@cache
def trained():
    """SGD without momentum, a checkpoint every five epochs with its learning rate in the metadata."""
    torch.manual_seed(0)
    images, labels = map(torch.as_tensor, train())
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, EPOCHS + 1):
        for at in torch.randperm(len(labels)).split(32):
            loss = nn.functional.cross_entropy(model(images[at]), labels[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 5 == 0:
            save_file(model.state_dict(), CHECKPOINTS / f"epoch-{epoch:02}.safetensors", {"learning_rate": str(RATE)})
    return model


def checkpoints():
    return sorted(CHECKPOINTS.glob("*.safetensors"))


def image_shape():
    return 8, 8
