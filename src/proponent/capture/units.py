"""Which modules are watched, and for which parameters: every selected parameter belongs to at least one unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from proponent.capture.layers import rule_for

Rule = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Unit:
    """A module whose calls are recorded.

    Args:
        name: its path in the model.
        module: the module.
        wanted: its parameters' local names → their names in the task's selection.
        rule: gradients from a call; None for the generic path through torch.func.
    """

    name: str
    module: nn.Module
    wanted: Mapping[str, str]
    rule: Rule | None


def units(net: nn.Module, selected: Mapping[str, nn.Parameter]) -> list[Unit]:
    """The units of a model, in the order of its modules.

    A module with a rule, or without children, stands for itself. Modules that use their children's weights without
    calling them (MultiheadAttention, parametrised layers) stand for their children too. A container's loose parameters
    are differentiated through the container.
    """
    names = {id(p): name for name, p in selected.items()}
    made: list[Unit] = []
    covered: set[nn.Module] = set()
    for path, module in net.named_modules():
        if module in covered:
            continue
        whole = isinstance(module, nn.MultiheadAttention | nn.RNNBase) or parametrize.is_parametrized(module)
        if whole:
            covered.update(module.modules())
        own = module.named_parameters(recurse=whole, remove_duplicate=False)
        wanted = {local: names[id(p)] for local, p in own if id(p) in names}
        if wanted:
            made.append(Unit(path, module, wanted, None if whole else rule_for(module)))
    return made


def tied(made: list[Unit]) -> set[str]:
    """Parameters that more than one unit, or one unit twice, makes use of."""
    seen: set[str] = set()
    twice: set[str] = set()
    for unit in made:
        for name in unit.wanted.values():
            (twice if name in seen else seen).add(name)
    return twice
