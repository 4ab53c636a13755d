"""The Fisher matrix of a model, layer by layer: its eigenbases and its eigenvalues in them; saved, reused, merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proponent.capture.blocks import Block
from proponent.curvature import diagonal
from proponent.curvature.kronecker import Basis, Covariance
from proponent.errors import InputError

Squares = Mapping[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Covariances:
    """What the first pass over the training examples sums. Shards add up.

    Args:
        sums: of every layer that has a weight and inputs: what its eigenbasis is made of.
        squares: Σ G² of every other block.
        examples: that were summed.
    """

    sums: Mapping[str, Covariance] = field(default_factory=dict)
    squares: Squares = field(default_factory=dict)
    examples: int = 0

    def merge(self, other: Covariances) -> Covariances:
        """Over both shards."""
        sums = dict(self.sums)
        for name, covariance in other.sums.items():
            sums[name] = sums[name].merge(covariance) if name in sums else covariance
        return Covariances(sums, added(self.squares, other.squares), self.examples + other.examples)

    def means(self) -> dict[str, tuple[Tensor, ...]]:
        """E[G²] of every other block."""
        return {name: tuple(t / max(1, self.examples) for t in parts) for name, parts in self.squares.items()}

    def bases(self) -> dict[str, Basis]:
        """The eigenbasis of each layer."""
        return {name: Basis.of(covariance, self.examples) for name, covariance in self.sums.items()}

    def parts(self) -> list[Tensor]:
        """Everything summed, over the number of examples."""
        held = [t for c in self.sums.values() for t in (c.inputs, c.outputs)]
        return [t / max(1, self.examples) for t in [*held, *(t for parts in self.squares.values() for t in parts)]]


def added(one: Squares, other: Squares) -> dict[str, tuple[Tensor, ...]]:
    """Sums of two stretches, name by name."""
    made = dict(one)
    for name, new in other.items():
        made[name] = tuple(x + y for x, y in zip(made[name], new, strict=True)) if name in made else tuple(new)
    return made


@dataclass(frozen=True)
class Spectrum:
    """The mean square of every gradient, in the eigenbasis of its layer where it has one. Shards in the same bases add up.

    Args:
        bases: by block name.
        others: E[G²] of the blocks without a basis, (P,) for each part, where they come from the first pass.
        squares: Σ over examples of the second pass: of (Q_Sᵀ G Q_A)², (O, I′), and of G² for blocks without a basis.
        examples: that were summed.
        made_from: what it was made of; reuse for another model is refused.
        separable: eigenvalues are σ_j α_k, as in K-FAC, not measured.
    """

    bases: Mapping[str, Basis]
    others: Squares = field(default_factory=dict)
    squares: Squares = field(default_factory=dict)
    examples: int = 0
    made_from: Mapping[str, Any] = field(default_factory=dict)
    separable: bool = False

    def merge(self, other: Spectrum) -> Spectrum:
        """Over both shards.

        Raises:
            InputError: the shards were measured in different bases.
        """
        if any(not torch.equal(self.bases[n].inputs, other.bases[n].inputs) for n in self.bases):
            raise InputError(
                "eigenvalues measured in different bases",
                "shards that share their bases",
                "merge the shards' covariances first, and measure every shard in the bases of the whole",
            )
        return replace(self, squares=added(self.squares, other.squares), examples=self.examples + other.examples)

    def eigenvalues(self, name: str) -> tuple[Tensor, ...]:
        """Of one block: E[G²] in its basis, or by parameter."""
        if name in self.others:
            return tuple(self.others[name])
        if self.separable and name in self.bases:
            return (self.bases[name].products,)
        return tuple(s / max(1, self.examples) for s in self.squares[name])

    def save(self, path: str | Path) -> Path:
        """Write as one safetensors file."""
        from safetensors.torch import save_file

        held: dict[str, Tensor] = {}
        for name, basis in self.bases.items():
            held |= {f"basis/{key}/{name}": torch.as_tensor(v).contiguous() for key, v in vars(basis).items()}
        for kind, blocks in (("others", self.others), ("squares", self.squares)):
            held |= {
                f"{kind}/{k}/{n}": part.contiguous() for n, parts in blocks.items() for k, part in enumerate(parts)
            }
        facts = {"examples": self.examples, "separable": self.separable, "made_from": dict(self.made_from)}
        save_file(held, path, metadata={"proponent": json.dumps(facts)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Spectrum:
        """Read what `save` wrote."""
        from safetensors import safe_open

        if not Path(path).exists():
            raise InputError(f"nothing at {path}", "a saved spectrum", "check the path")
        bases: dict[str, dict[str, Any]] = {}
        held: dict[str, dict[str, dict[int, Tensor]]] = {"others": {}, "squares": {}}
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("proponent", "{}"))
            for key in file.keys():  # noqa: SIM118  (a file, not a mapping)
                kind, which, name = key.split("/", 2)
                if kind == "basis":
                    bases.setdefault(name, {})[which] = file.get_tensor(key)
                else:
                    held[kind].setdefault(name, {})[int(which)] = file.get_tensor(key)
        if "examples" not in facts:
            raise InputError(f"{path} without the facts of a spectrum", "what Spectrum.save wrote", "check the path")
        others, squares = (
            {n: tuple(p[k] for k in sorted(p)) for n, p in held[kind].items()} for kind in ("others", "squares")
        )
        return cls(
            {name: Basis(**{**parts, "transposed": bool(parts["transposed"])}) for name, parts in bases.items()},
            others,
            squares,
            int(facts["examples"]),
            facts["made_from"],
            bool(facts["separable"]),
        )

    def names(self) -> list[str]:
        """Of all blocks."""
        return [*self.bases, *(n for n in {**self.others, **self.squares} if n not in self.bases)]

    def squares_of(self, name: str, block: Block) -> tuple[Tensor, ...]:
        """Σ over a batch: what `squares` adds up."""
        return (self.bases[name].squares(block),) if name in self.bases else diagonal.squares(block)

    def parts(self) -> list[Tensor]:
        """Every measured eigenvalue."""
        return [t for name in self.squares for t in self.eigenvalues(name)]
