"""How much of a matrix lies between its blocks, as a job: products with the whole and with the block diagonal.

The operator has the blocks and, last, all of them together as one. A random vector over the latter is multiplied by it
and, cut into its pieces, by every block, on the same gradient graphs. A round is a few vectors, and can be resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.errors import NotFiniteError, not_finite
from hvp_engine.jobs.runner import Job
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.results.off_diagonal import SUMS, OffDiagonal
from hvp_engine.scheduling.waves import StreamSizes

_AT_ONCE = 4  # vectors of a round: what building a graph costs is little beside so many products
_DECIDES = ("probes", "seed", "precision", "head_curvature", "head_curvature_tolerance")


class OffDiagonalJob(Job["Comparison", OffDiagonal]):
    """Norms of what random vectors see between blocks; a step is one vector, with two products."""

    name = "off diagonal"

    def config(self) -> dict[str, Any]:
        """Return what decides the job's numbers."""
        return {key: value for key, value in super().config().items() if key in _DECIDES}

    def products(self, operator: CurvatureOperator) -> dict[str, int]:
        """Return the products of each block, and of all together."""
        return dict.fromkeys(operator.numel, self.settings.probes)

    def streams(self, operator: CurvatureOperator) -> StreamSizes:
        """Return the sizes of the first round's vectors."""
        return self._round(operator, 0)

    def more(self, operator: CurvatureOperator, states: Sequence[Comparison]) -> StreamSizes | None:
        """Return the sizes of the next round's vectors; None when all were multiplied."""
        done = sum(len(state.streams) for state in states)
        return self._round(operator, done) if done < self.settings.probes else None

    def start(self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[Comparison]) -> Comparison:
        """Take the vectors of a wave."""
        done = sum(len(state.streams) for state in finished)
        end_of_round = min(self.settings.probes, (done // _AT_ONCE + 1) * _AT_ONCE)
        return Comparison(operator, wave, self.settings, later=self.settings.probes - end_of_round)

    def collect(self, operator: CurvatureOperator, states: list[Comparison], manifest: dict[str, Any]) -> OffDiagonal:
        """Put the vectors' numbers together."""
        *blocks, union = operator.blocks
        numel = {block: operator.numel[block] for block in blocks}
        parameters = operator.objective.parameters.values()
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        sums = torch.cat([state.sums for state in states]).numpy()
        return OffDiagonal(numel, sums, trainable - operator.numel[union], self.noise, manifest)

    def load(self, run: Path) -> OffDiagonal:
        """Read the result of a finished run."""
        return OffDiagonal.load(run)

    def _round(self, operator: CurvatureOperator, first: int) -> StreamSizes:
        """Return the sizes of the vectors from one on; each has a vector, two products, and what compares them."""
        union = operator.blocks[-1]
        last = min(self.settings.probes, first + _AT_ONCE)
        return StreamSizes(
            {union: operator.numel[union]}, 1, {union: range(first, last)}, operator.dtype, None, savings=""
        )


class Comparison:
    """The products of one wave's vectors, compared.

    Attributes:
        streams: The (all blocks, number) pairs of the wave.
        sums: (vectors, blocks, 4) float64, see :data:`hvp_engine.results.off_diagonal.SUMS`.
        position: 1 when they were multiplied, 0 before.
        consistent: True: nothing is half done between steps.
        basis: None: no vector is kept.
    """

    consistent = True
    basis = None

    def __init__(self, operator: CurvatureOperator, wave: list[Stream], settings: JobSettings, later: int) -> None:
        """Begin without products.

        Args:
            operator: What it multiplies with.
            wave: The wave.
            settings: What was asked for.
            later: Vectors of the rounds after this one.
        """
        self.streams, self._operator, self._seed, self._later = wave, operator, settings.seed, later
        self.sums = torch.zeros(len(wave), len(operator.blocks) - 1, SUMS, dtype=torch.float64, device="cpu")
        self.position = 0

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """(vectors,): 1 for each that was multiplied."""
        return np.full(len(self.streams), self.position)

    @property
    def left(self) -> int:
        """Vectors that are left, those of later rounds too."""
        return len(self.streams) * (1 - self.position) + self._later

    @property
    def finished(self) -> bool:
        """Whether the vectors were multiplied."""
        return self.position == 1

    @property
    def scalars(self) -> Mapping[str, Tensor]:
        """What was found."""
        return {"sums": self.sums}

    def resume(self, position: int) -> None:
        """Go on from restored numbers."""
        self.position = position

    def release(self) -> None:
        """Free what is held; what was found stays."""
        del self._operator

    def step(self) -> int:
        """Multiply the vectors; return how many there are.

        Raises:
            NotFiniteError: A product is not finite.
        """
        operator = self._operator
        *blocks, union = operator.blocks
        sizes = [operator.numel[block] for block in blocks]
        drawn = [
            probe(self._seed, union, k, operator.numel[union], "gaussian", operator.dtype) for _, k in self.streams
        ]
        vectors = torch.stack(drawn).to(operator.device)
        del drawn
        pieces = dict(zip(blocks, torch.split(vectors, sizes, dim=1), strict=True))
        products = operator.sweep({union: vectors, **pieces})
        whole = torch.split(products[union], sizes, dim=1)
        for b, block in enumerate(blocks):
            for row, (h, d) in enumerate(zip(whole[b], products[block], strict=True)):
                self.sums[row, b] = _compared(h.double(), d.double()).cpu()
            if not bool(self.sums[:, b].isfinite().all()):
                raise NotFiniteError(not_finite(f"of block {block!r}, or of all blocks in its rows,"))
        self.position = 1
        return len(self.streams)


def _compared(h: Tensor, d: Tensor) -> Tensor:
    """Return |h|^2, |d|^2, |h - d|^2 and h'd."""
    both, difference = torch.stack((h @ h, d @ d, h @ d)), h - d
    return torch.stack((both[0], both[1], difference @ difference, both[2]))
