"""(F + λ)⁻¹ between two gradients, F in its eigenbases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from proponent.capture.blocks import Block, Factors
from proponent.curvature import diagonal
from proponent.curvature.damping import Damping
from proponent.curvature.expansion import Expansion
from proponent.curvature.preconditioned import LowRank, PreparedRows, Terms
from proponent.curvature.queries import Blockwise, Prepared, by_parameter
from proponent.curvature.spectrum import Spectrum


@dataclass(frozen=True)
class InverseFisher(Blockwise):
    """gᵀ (F + wd + λ)⁻¹ g′, block by block.

    Args:
        spectrum: F.
        inverse: 1/(Λ + wd + λ) by block, in the shape of the eigenvalues.
        expansions: of the inverses of layers with one position; the others are multiplied as they are.
        rank: preconditioned query gradients of layers with several positions are cut to this rank; None keeps them whole.
    """

    spectrum: Spectrum
    inverse: Mapping[str, tuple[Tensor, ...]]
    expansions: Mapping[str, Expansion] = field(default_factory=dict)
    rank: int | None = None
    vectors: int = 1

    @classmethod
    def of(
        cls,
        spectrum: Spectrum,
        damping: Damping,
        weight_decay: float,
        one_position: frozenset[str],
        tolerance: float,
        rank: int | None,
    ) -> InverseFisher:
        """With its short sums, where these are exact to the tolerance.

        Raises:
            InputError: a damping of zero, and an eigenvalue of zero.
        """
        inverse: dict[str, tuple[Tensor, ...]] = {}
        expansions: dict[str, Expansion] = {}
        for name in spectrum.names():
            values = spectrum.eigenvalues(name)
            regular = weight_decay + damping.of(torch.cat([v.flatten() for v in values]) + weight_decay)
            inverse[name] = tuple(1 / (v + regular) for v in values)
            if name in one_position and name in spectrum.bases and tolerance > 0:
                basis = spectrum.bases[name]
                found = Expansion.of(inverse[name][0], values[0], basis.sigma, basis.alpha, tolerance)
                expansions |= {} if found is None else {name: found}
        return cls(spectrum, inverse, expansions, rank)

    def exact(self) -> InverseFisher:
        """Without any shortcut."""
        return InverseFisher(self.spectrum, self.inverse)

    def prepare(self, name: str, query: Block) -> Prepared:
        basis = self.spectrum.bases.get(name)
        if basis is None:
            return PreparedRows(self._rows(name, query))
        one_position = isinstance(query, Factors) and query.positions == 1
        if name in self.expansions and isinstance(query, Factors) and one_position:
            return Terms.of(query, basis, self.expansions[name])
        if self.rank is not None and self.rank < min(basis.products.shape) and not one_position:
            return LowRank.of(basis.matrices(self._rows(name, query)), self.rank)
        return PreparedRows(self._rows(name, query))

    def directions(self, blocks: Mapping[str, Block]) -> tuple[dict[str, Tensor], None]:
        return by_parameter(blocks, self._rows), None

    def _rows(self, name: str, query: Block) -> tuple[Tensor, ...]:
        """(q, P) for each part of the block, without any shortcut."""
        if name not in self.spectrum.bases:
            return tuple(r * w for r, w in zip(query.rows(), self._inverse(name, query), strict=True))
        basis, bias = self.spectrum.bases[name], len(query.sizes) > 1
        made = tuple(basis.sigma.new_empty(len(query), size) for size in query.sizes)
        for at, turned in basis.rotated(query):
            for rows, own in zip(made, basis.rows(basis.back(turned.mul_(self.inverse[name][0])), bias), strict=True):
                rows[at] = own
        return made

    def norm2(self, name: str, block: Block) -> Tensor:
        if name in self.spectrum.bases:
            return self.spectrum.bases[name].weighted_norms(block, self.inverse[name][0])
        return diagonal.weighted_norms(block, self._inverse(name, block))

    def _inverse(self, name: str, block: Block) -> tuple[Tensor, ...]:
        """A block that no training example has had a gradient in has only what damps it; it meets none either."""
        if name in self.inverse:
            return self.inverse[name]
        return tuple(torch.zeros(size) for size in block.sizes)


def shortcut_errors(metric: InverseFisher, blocks: Mapping[str, Block], queries: slice, train: slice) -> dict[str, Any]:
    """The scores of a few examples among each other, with the shortcuts against without: what the shortcuts cost."""
    fast, slow = (_among(m, blocks, queries, train) for m in (metric, metric.exact()))
    centred = [s.flatten().double() - s.double().mean() for s in (fast, slow)]
    norms = float(centred[0].norm() * centred[1].norm())
    return {
        "relative_error": round(float((fast - slow).norm() / slow.norm().clamp(min=1e-30)), 6),
        "correlation": round(float(centred[0] @ centred[1]) / norms, 6) if norms else 1.0,
        "expected_relative_error": {n: round(e.error, 4) for n, e in metric.expansions.items()},
    }


def _among(metric: InverseFisher, blocks: Mapping[str, Block], queries: slice, train: slice) -> Tensor:
    first = next(iter(blocks.values()))
    one = len(first[queries])
    out: Tensor = first.rows()[0].new_zeros(one, len(first[train]))
    for name, block in blocks.items():
        metric.prepare(name, block[queries]).add(block[train], out)
    return out
