"""How vectors go through a micro-batch's graph: several in one second backward where that is right, else one by one.

PyTorch pushes several vectors through a backward pass by its older vmap. Some backward formulas fail under it, others
take a wrong shape for a right one and broadcast. A graph of operations known to be right goes batched at once; any
other has its first batched pass compared with single passes, for every micro-batch and block.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from hvp_engine.blocks import ResolvedBlock
from hvp_engine.problem.objective import Objective
from hvp_engine.problem.precision import Precision, rounding
from hvp_engine.system.failures import is_device_failure, is_out_of_memory
from hvp_engine.system.formatting import first_line

Key = tuple[int, int]

# So few vectors gain less by one pass than its comparison with two single ones costs: a graph that would have to be
# compared takes them one by one. The number must not depend on what happened before, or a resumed job had other bits.
FEW = 4
_NOISE = 100.0  # times the rounding that is seen between single passes


class ProductGraph(Protocol):
    """What a sweep needs of a micro-batch: its weight, and products with a block.

    A graph whose attribute ``batchable`` is true is known to be right in batched passes; one without it is compared.
    One whose attribute ``enters_arithmetic`` is true needs no more than :meth:`Objective.quick_arithmetic` around it.
    """

    weight: float

    def product(self, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
        """Add products with (k, numel) vectors to ``out``; where it raises, nothing was added."""


def arithmetic_around(graphs: Collection[ProductGraph], objective: Objective) -> AbstractContextManager[None]:
    """Return the context of products with all graphs of a sweep; none where some are yet to be built."""
    quick = bool(graphs) and all(getattr(graph, "enters_arithmetic", False) for graph in graphs)
    return objective.quick_arithmetic() if quick else objective.arithmetic()


def zeros_like(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous zeros of the shapes of some vectors, to which products are added."""
    return {name: torch.zeros_like(v, memory_format=torch.contiguous_format) for name, v in vectors.items()}


class Scaling(Protocol):
    """A diagonal D: the sweeps multiply by D A D in place of A."""

    def scaled(self, block: ResolvedBlock, vectors: Tensor) -> Tensor:
        """Return D times vectors (k, numel) of a block."""

    def scale(self, block: str, products: Tensor) -> None:
        """Multiply products (k, numel) of a block by D, in place."""


class Passes:
    """Chooses between batched and single passes, the same way in every run of a job.

    Attributes:
        note: Why vectors of some block go one by one, in words; None while none do.
    """

    def __init__(self, precision: Precision) -> None:
        """Begin without experience.

        Args:
            precision: Arithmetic of the products.
        """
        self.note: str | None = None
        self._eps = rounding(precision)
        self._chosen: dict[tuple[Key, str], bool] = {}  # whether batched, where that was tried
        self._known: dict[Key, bool] = {}
        self._refused: set[str] = set()

    def multiply(self, key: Key, graph: ProductGraph, block: ResolvedBlock, vectors: Tensor, out: Tensor) -> None:
        """Add the products of a block with the vectors of one pass to ``out``.

        Args:
            key: The micro-batch.
            graph: Its graph.
            block: The block.
            vectors: (k, numel), all of which one pass may carry.
            out: (k, numel).
        """
        pair = (key, block.name)
        chosen = self._chosen.get(pair)
        if chosen is None and block.name in self._refused:
            chosen = self._chosen[pair] = False
        if chosen is False or len(vectors) == 1 or (len(vectors) <= FEW and not self._is_known(key, graph)):
            graph.product(block, vectors, out, batched=False)
        elif chosen:
            graph.product(block, vectors, out, batched=True)
        else:
            why = self._try(graph, block, vectors, out, known=self._is_known(key, graph))
            self._chosen[pair] = why is None
            if why is not None:
                graph.product(block, vectors, out, batched=False)
                self._refuse(block.name, why)  # not before: what fails for one vector too is no matter of batching

    def _is_known(self, key: Key, graph: ProductGraph) -> bool:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = bool(getattr(graph, "batchable", False))
        return known

    def _try(
        self, graph: ProductGraph, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, known: bool
    ) -> str | None:
        """Add the products of a first batched pass; return why nothing was added where it fails or is wrong."""
        target = out if known else torch.zeros_like(out)
        try:
            graph.product(block, vectors, target, batched=True)
        except Exception as error:
            if is_out_of_memory(error) or is_device_failure(error):
                raise
            return f"several together fail ({first_line(error.__cause__ or error)})"
        if known:
            return None
        why = self._difference(graph, block, vectors, target)
        if why is None:
            out.add_(target)
        return why

    def _refuse(self, block: str, why: str) -> None:
        self._refused.add(block)
        if self.note is None:
            self.note = f"vectors of block {block!r} go one by one, {why}"

    def _difference(self, graph: ProductGraph, block: ResolvedBlock, vectors: Tensor, batched: Tensor) -> str | None:
        """Compare the first and the last product of a batched pass with those of single passes; None where they agree.

        A sum of n terms taken in another order differs by about sqrt(n) roundings, so up to sqrt(eps) for the longest
        that are of use (n = 1 / eps); a wrong shape or a lost term shows in the leading digits. Where a product cancels
        to less than its terms, its rounding is seen in how far single passes are from linear.
        """
        pair = torch.stack([vectors[0], vectors[-1]])
        found = torch.stack([batched[0], batched[-1]])
        single = torch.zeros_like(pair)
        graph.product(block, pair, single, batched=False)
        difference = (found - single).masked_fill_(~found.isfinite() & ~single.isfinite(), 0.0)
        single.masked_fill_(~single.isfinite(), 0.0)  # said of the whole product, not of how it was formed
        errors, sizes = _part_norms(block, difference), _part_norms(block, single)
        allowed = self._eps**0.5 * sizes + self._eps * sizes.sum(dim=1, keepdim=True)
        if bool((errors <= allowed).all()):
            return None
        of_sum = torch.zeros_like(pair[:1])
        graph.product(block, pair.sum(dim=0, keepdim=True), of_sum, batched=False)
        noise = _part_norms(block, of_sum - single.sum(dim=0, keepdim=True))
        if bool((errors <= _NOISE * noise).all()):
            return None
        worst = float((errors / sizes).nan_to_num(nan=float("inf")).max())
        return f"several together give other products than alone (relative difference {worst:.1g})"


def _part_norms(block: ResolvedBlock, vectors: Tensor) -> Tensor:
    """Norm of every part of (k, numel) vectors, (k, parts) in float64."""
    parts = [piece.reshape(len(vectors), -1).double().norm(dim=1) for piece in block.split(vectors)]
    return torch.stack(parts, dim=1)
