"""A wave of streams in lock step, and what goes along in their sweeps: columns of blocks that are multiplied out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.krylov.basis import Basis
from hvp_engine.krylov.companions import BlockMatrix
from hvp_engine.krylov.lanczos import BatchedLanczos, Matmat
from hvp_engine.krylov.settings import LanczosSettings


class WavePlan(NamedTuple):
    """What a wave is asked to find.

    Attributes:
        starts: Unit start vectors (numel,) by block and probe number.
        small: Lengths of the blocks whose whole matrix is multiplied out.
        limits: Steps of blocks that take fewer than the others.
    """

    starts: Mapping[str, Mapping[int, Tensor]]
    small: Mapping[str, int]
    limits: Mapping[str, int]


class Where(NamedTuple):
    """What vectors are, and where.

    Attributes:
        dtype: Working dtype.
        device: Where they live.
        sync_every: As for :class:`BatchedLanczos`.
    """

    dtype: torch.dtype
    device: torch.device
    sync_every: int | None = None


class Wave:
    """Streams and whole matrices, whose products come from the same sweeps.

    Attributes:
        lanczos: The streams; None where there are none.
        matrices: Of the blocks that are multiplied out, by name.
    """

    def __init__(self, matmat: Matmat, plan: WavePlan, settings: LanczosSettings, where: Where) -> None:
        """Take the start vectors.

        Args:
            matmat: Multiplies (k, numel) vectors per block.
            plan: What to find.
            settings: How to run; its steps are the most that a stream takes.
            where: What vectors are.
        """
        self._matmat = matmat
        self.lanczos: BatchedLanczos | None = None
        if plan.starts:
            self.lanczos = BatchedLanczos(self._multiply, plan.starts, settings, *where, limits=plan.limits)
        self.matrices = {block: BlockMatrix(n, where.dtype, where.device) for block, n in plan.small.items()}
        self._company: dict[str, Tensor] = {}  # vectors that go along with the streams, in this sweep
        self._brought: dict[str, Tensor] = {}  # their products
        self._whole = True
        self._sweeps = 0

    @property
    def consistent(self) -> bool:
        """False while a step is being recorded and until the host has checked it."""
        return self._whole and (self.lanczos is None or self.lanczos.consistent)

    @property
    def position(self) -> int:
        """Steps done by the live streams; sweeps where there are none."""
        return self._sweeps if self.lanczos is None else self.lanczos.position

    @property
    def basis(self) -> Basis | None:
        """The Lanczos vectors."""
        return None if self.lanczos is None else self.lanczos.basis

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """int64: products done with each stream, then with each block that is multiplied out."""
        streams = np.zeros(0, dtype=np.int64) if self.lanczos is None else self.lanczos.steps
        return np.concatenate([streams, [int(matrix.done) for matrix in self.matrices.values()]]).astype(np.int64)

    @property
    def left(self) -> int:
        """Products that are left at most, as far as it is decided."""
        columns = sum(matrix.left for matrix in self.matrices.values())
        return columns if self.lanczos is None else columns + self.lanczos.left

    @property
    def finished(self) -> bool:
        """Whether there is no product left."""
        return self.left == 0

    @property
    def scalars(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the vectors: written to where one is restored."""
        kept = {} if self.lanczos is None else self.lanczos.scalars
        for number, matrix in enumerate(self.matrices.values()):
            kept |= {f"matrix_{number}": matrix.rows, f"columns_{number}": matrix.done}
        return kept

    def resume(self, position: int) -> None:
        """Go on from restored scalars, where the live streams have done ``position`` steps."""
        self._sweeps = position
        if self.lanczos is not None:
            self.lanczos.resume(position)

    def release(self) -> None:
        """Free the vectors of a finished wave; what was found stays."""
        if self.lanczos is not None:
            self.lanczos.release()

    def step(self) -> int:
        """Take one sweep; return how many products it gave.

        Raises:
            NotFiniteError: A product is not finite; said when the host synchronises, or in the end.
        """
        self._company = self._next_company()
        taken = 0
        if self.lanczos is None or self.lanczos.finished:
            self._multiply({})
        else:
            taken = self.lanczos.step()
        for block, products in self._brought.items():
            taken += len(products)
            self._take(block, products)
        self._sweeps += 1
        self._decide()
        self._company, self._brought, self._whole = {}, {}, True
        return taken

    def _multiply(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply the streams' newest vectors, and those that go along, in one sweep."""
        products = self._matmat({**vectors, **self._company})
        self._whole = False  # from here on the streams and their company are apart
        self._brought = {block: products.pop(block) for block in self._company}
        return products

    def _next_company(self) -> dict[str, Tensor]:
        """Make the vectors that go along in the next sweep."""
        return {block: matrix.vectors() for block, matrix in self.matrices.items() if matrix.left}

    def _take(self, block: str, products: Tensor) -> None:
        """Record the products of vectors that went along."""
        self.matrices[block].take(products)

    def _decide(self) -> None:
        """Decide, once a sweep is recorded, how the blocks go on."""
