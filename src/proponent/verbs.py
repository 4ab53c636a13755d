"""Rooms of the house that are also verbs: `proponent.retrain(...)` beside `proponent.retrain.subsets`."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """A package that does, when it is called, what the function of its own name does.

    Importing any module of a package sets the package as an attribute of its parent, over a function of the same name.
    """

    HOME: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, name = self.HOME.rsplit(".", 1)
        return getattr(import_module(module), name)(*args, **kwargs)


def also_a_verb(package: str, home: str) -> None:
    """Make a package callable.

    Args:
        package: its name.
        home: module and name of the function that it stands for.
    """
    module = sys.modules[package]
    module.__class__ = Verb
    module.HOME = home  # type: ignore[attr-defined]
