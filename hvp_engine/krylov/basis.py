"""The interface of the Lanczos vectors of a wave: what every way of storing them must do.

A basis holds the vectors of all streams of a wave, of every block, so that one kernel call serves them all. Vectors are
numbered by position from 0 on and appended in order; those at the newest position and the one before are unrounded,
because the recurrence's coefficients alpha and beta come from them. :mod:`hvp_engine.krylov.storage` has the plain
storages, :mod:`hvp_engine.krylov.registry` says which one serves which dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError

Slot = tuple[str, int]  # a stream in a basis: its block, and its row among the block's streams
Elsewhere = Literal["host memory", "disk"]
Target = tuple[Tensor | None, Tensor | None]  # (numel,) each: where a new vector is written, rounded and unrounded


class BlockShape(NamedTuple):
    """Size of one block's share of a basis.

    Attributes:
        streams: Number of the block's streams.
        capacity: Largest number of vectors per stream.
        numel: Length of a vector.
    """

    streams: int
    capacity: int
    numel: int


class Layout(NamedTuple):
    """What a basis is made for.

    Attributes:
        shapes: Sizes by block.
        dtype: Working dtype.
        store_dtype: Dtype of the kept vectors; None where the newest two are kept.
        device: Where the vectors are worked with.
    """

    shapes: Mapping[str, BlockShape]
    dtype: torch.dtype
    store_dtype: torch.dtype | None
    device: torch.device


class Orthogonalized(NamedTuple):
    """What orthogonalisation found, per stream.

    Attributes:
        alphas: (k,) fp64, of any stride: component along the newest vector.
        betas: (k,) fp64, contiguous: norm of what is left.
        loss: (k,) fp64, contiguous: largest cosine between a vector and its basis that stays, or where all components
            were taken out twice, that the second pass still found. Of a thorough projection by rounded vectors: the
            largest that it took out, for no more is known to be left.
    """

    alphas: Tensor
    betas: Tensor
    loss: Tensor


class Basis(ABC):
    """The Lanczos vectors of all streams of a wave.

    Attributes:
        keeps_all: Whether every vector is kept, or only the newest two.
        elsewhere: What keeps them, where that is not the device's own memory: ``"host memory"`` or ``"disk"``.
        corrects_newest: Whether projection may still correct the newest vector itself: what was exported of it before
            is then out of date.
    """

    keeps_all: ClassVar[bool] = True
    elsewhere: ClassVar[Elsewhere | None] = None
    corrects_newest: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, layout: Layout) -> None:
        """Allocate."""

    @staticmethod
    @abstractmethod
    def bytes_per_stream(capacity: int, numel: int, dtype: torch.dtype, store_dtype: torch.dtype | None) -> int:
        """Return the bytes that one stream takes on the device."""

    @staticmethod
    def bytes_elsewhere(capacity: int, numel: int, store_dtype: torch.dtype) -> int:
        """Return the bytes that one stream takes where ``elsewhere`` says."""
        return 0

    @abstractmethod
    def targets(self, position: int, slots: Sequence[Slot]) -> list[Target]:
        """Make room for vector number ``position`` of some streams, and return where it is to be written.

        The kernel that normalises a new vector writes it there at once, both targets in one pass. A storage that the
        kernel cannot write (8 bits with scales, a file) gives the unrounded target only: here it moves the vector that
        is about to be overwritten, number ``position - 2``, to where it stays.

        Returns:
            Per stream a row of the store and a row of the window of unrounded vectors; one of them may be None.
        """

    @abstractmethod
    def newest(self, position: int, block: str) -> Tensor:
        """Return the newest or second newest vectors of a block, unrounded: (streams, numel)."""

    @abstractmethod
    def project(
        self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor], thorough: bool = False
    ) -> Orthogonalized:
        """Make vectors orthogonal, in place, to all kept vectors up to ``position``.

        Args:
            position: Number of the newest vector.
            slots: The vectors' streams.
            vectors: Per stream a contiguous (numel,) tensor of the working dtype.
            thorough: Whether every component is taken out that is found, at once, and of the newest vector as well
                where :attr:`corrects_newest` says so. Else those stay that are too small to matter.
        """

    @abstractmethod
    def project_newest(self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor]) -> Orthogonalized:
        """Make vectors orthogonal, in place, to the newest two alone; the arguments are those of :meth:`project`."""

    @abstractmethod
    def deflate(self, slot: Slot, count: int, vectors: Sequence[Tensor]) -> None:
        """Make further vectors orthogonal, in place, to the first ``count`` vectors of a stream.

        Args:
            slot: The stream.
            count: How many of its vectors, at least 1.
            vectors: Contiguous (numel,) tensors of the working dtype.

        Raises:
            ConfigurationError: The storage keeps the newest vectors only.
        """

    @abstractmethod
    def release(self, block: str) -> None:
        """Free the vectors of a block, for good: neither export nor restore know of them any more."""

    @abstractmethod
    def orthogonality(self, slot: Slot, count: int) -> float:
        """Return the spectral norm of Q'Q - I over the first ``count`` vectors of a stream, accumulated in fp64.

        Raises:
            ConfigurationError: The storage keeps the newest vectors only.
        """

    @abstractmethod
    def export(self, first: int, last: int) -> dict[str, Tensor]:
        """Return the vectors at positions ``first`` to ``last - 1`` on the CPU, as they are stored.

        They do not change any more, but for the newest where :attr:`corrects_newest` says so: a checkpoint writes them
        once, piece by piece up to the newest position, and that one again in the next piece.

        Returns:
            (streams, positions, numel) by block, for the blocks that have capacity for any of them; rows with scales
            are as long as these make them. A storage may add tensors of its own under further names.
        """

    @abstractmethod
    def restore(self, first: int, last: int, exported: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`export` gave for the same positions, but for blocks that were released since.

        Raises:
            ConfigurationError: It does not fit this basis.
        """

    def export_window(self) -> dict[str, Tensor]:
        """Return what changes with every step, by block, on the CPU: a checkpoint writes it every time."""
        return {}

    def restore_window(self, exported: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`export_window` gave, but for blocks that were released since.

        Raises:
            ConfigurationError: It does not fit this basis.
        """
        copy_exactly({}, exported)

    def append(self, position: int, slot: Slot, vector: Tensor) -> None:
        """Store vector number ``position`` of one stream: (numel,), on any device."""
        (rows,) = self.targets(position, [slot])
        for row in rows:
            if row is not None:
                row.copy_(vector)


def copy_exactly(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy tensors of the same names and shapes.

    Raises:
        ConfigurationError: Names or shapes differ; nothing is copied then.
    """
    wanted, found = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (targets, values))
    if wanted != found:
        raise ConfigurationError(f"Lanczos vectors of shapes {found} do not fit a basis of shapes {wanted}.")
    for name, target in targets.items():
        target.copy_(values[name])


def still_wanted(exported: Mapping[str, Tensor], released: Collection[str]) -> dict[str, Tensor]:
    """Leave out the blocks whose vectors were freed after they had been exported."""
    return {block: vectors for block, vectors in exported.items() if block not in released}
