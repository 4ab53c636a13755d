"""Models kept beside a ledger as plain arrays, so that new queries cost predictions and loading runs no code."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from proponent.errors import InputError
from proponent.examples import Examples
from proponent.retrain.recipe import Failure
from proponent.store.stages import write_atomically


@dataclass(frozen=True)
class ModelShelf:
    """A directory of models, one .npz each, written and read by the recipe's `pack` and `unpack`.

    Args:
        directory: created with the first model.
        recipe: turns a model into arrays, and back.
    """

    directory: Path
    recipe: Any

    def put(self, key: bytes, model: Any) -> None:
        """Keep a model; a Failure has nothing to keep."""
        if isinstance(model, Failure):
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self.recipe.pack(model))
        write_atomically(self._path(key), buffer.getvalue())

    def take(self, key: bytes) -> Any:
        """The model of this key; None where it was not kept."""
        if not self._path(key).exists():
            return None
        with np.load(self._path(key), allow_pickle=False) as arrays:
            return self.recipe.unpack({name: arrays[name] for name in arrays.files})

    def _path(self, key: bytes) -> Path:
        return self.directory / f"{key.hex()}.npz"


def require_packable(recipe: Any, train: Examples) -> None:
    """Refuse to keep models on disk that only a pickle could hold: reading one runs code.

    Raises:
        InputError: the recipe has no `pack` and `unpack`, or says that they do not take its models.
    """
    if not (recipe.packs(train) if hasattr(recipe, "packs") else hasattr(recipe, "pack")):
        raise InputError(
            f"keep_models=True in a directory, for a {type(recipe).__name__} whose models are not plain arrays",
            "a recipe with pack and unpack, such as TorchRecipe, or a linear model of scikit-learn",
            "keep the models in memory (ledger=None), or measure all queries in one run",
        )
