"""How well gradient methods predict retraining of the digits MLP, and whether they find its 30 flipped labels.

proponent evaluate examples/evaluate_digits.py
proponent evaluate examples/evaluate_digits.py --subsets 100 --repeats 5 --out runs/digits-evaluation-5
"""

import numpy as np
from digits_mlp import EPOCHS, FLIPPED, RATE, checkpoints, query, task, train
from torch import nn

from proponent.retrain.torch_recipe import SGD, TorchRecipe

__all__ = ["bad", "checkpoints", "query", "recipe", "task", "train"]


def recipe():
    """The training of `digits_mlp.trained`, from scratch on whatever subset is asked for."""
    return TorchRecipe(
        lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        optimizer=SGD(lr=RATE),
        schedule="constant",
        epochs=EPOCHS,
        batch_size=32,
    )


def bad():
    return np.isin(np.arange(1200), np.arange(0, 1200, 1200 // FLIPPED))
