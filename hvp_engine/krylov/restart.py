"""Thick-restarted Lanczos on all blocks of a wave in lock step: one sweep multiplies what every block asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.errors import NotFiniteError, not_finite
from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.krylov.basis import copy_exactly
from hvp_engine.krylov.eigen_stream import EigenStream
from hvp_engine.krylov.lanczos import Matmat


class RestartedLanczos:
    """The streams of one wave, one per block.

    Attributes:
        streams: By block.
        consistent: False while a step is being recorded; such a state must not be saved.
        position: Sweeps so far.
    """

    def __init__(self, matmat: Matmat, streams: Mapping[str, EigenStream]) -> None:
        """Take the streams.

        Args:
            matmat: Multiplies (k, numel) vectors per block.
            streams: By block.
        """
        self._matmat = matmat
        self.streams = dict(streams)
        self.consistent = True
        self.position = 0

    @property
    def basis(self) -> MovingVectors | None:
        """The vectors that a checkpoint keeps beside the scalars."""
        return MovingVectors(self.streams)

    @property
    def scalars(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of every stream, the wanted vectors with it: they outlive the wave."""
        kept: dict[str, Tensor] = {}
        for number, stream in enumerate(self.streams.values()):
            kept |= {f"{name}_{number}": value for name, value in stream.scalars.items()}
            if stream.wanted.vectors:
                kept[f"vectors_{number}"] = stream.space.store[: stream.k]
        return kept

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """(streams,) int64: products of each."""
        return np.array([stream.spent for stream in self.streams.values()], dtype=np.int64)

    @property
    def left(self) -> int:
        """Products that are left, as far as can be said."""
        return sum(stream.left for stream in self.streams.values())

    @property
    def finished(self) -> bool:
        """Whether every stream is done."""
        return all(stream.is_done for stream in self.streams.values())

    def resume(self, position: int) -> None:
        """Go on from restored scalars and vectors."""
        self.position = position

    def release(self) -> None:
        """Free all vectors but the wanted ones."""
        for stream in self.streams.values():
            stream.release()

    def step(self) -> int:
        """Take one sweep; return how many products it gave.

        Raises:
            NotFiniteError: A product is not finite.
        """
        live = {block: stream for block, stream in self.streams.items() if not stream.is_done}
        products = self._matmat({block: stream.asked() for block, stream in live.items()})
        self._refuse_nonfinite(products)
        self.consistent = False
        taken = sum(map(len, products.values()))
        self._grow({block: stream for block, stream in live.items() if stream.grows}, products)
        for block, product in products.items():
            live[block].measure(product)
        self.position += 1
        self.consistent = True
        return taken

    def _grow(self, growing: Mapping[str, EigenStream], products: dict[str, Tensor]) -> None:
        """Make the products of new vectors orthogonal to what there is, in one call, and hand them out."""
        if not growing:
            return
        vectors = [products.pop(block)[0] for block in growing]
        counts = [stream.space.held for stream in growing.values()]
        found = reorthogonalize([stream.space.store for stream in growing.values()], vectors, counts)
        coefficients, norms = found.coefficients.numpy(force=True), found.norms.numpy(force=True)
        for row, (stream, vector, count) in enumerate(zip(growing.values(), vectors, counts, strict=True)):
            stream.grow(vector, coefficients[row, :count], float(norms[row]))

    def _refuse_nonfinite(self, products: Mapping[str, Tensor]) -> None:
        finite = torch.stack([product.isfinite().all() for product in products.values()]).tolist()
        if not all(finite):
            block = list(products)[finite.index(False)]
            raise NotFiniteError(not_finite(f"of block {block!r}", f" in sweep {self.position + 1}"))


class MovingVectors:
    """The vectors of restarted streams as a checkpoint sees them: a restart changes them all, so none is written once.

    The wanted ones that outlive the wave are not among them, see :attr:`RestartedLanczos.scalars`.
    """

    keeps_all: ClassVar[bool] = False

    def __init__(self, streams: Mapping[str, EigenStream]) -> None:
        """Take the streams."""
        self._streams = streams

    def export(self, first: int, last: int) -> dict[str, Tensor]:
        """Return nothing: no vector stays."""
        return {}

    def restore(self, first: int, last: int, exported: Mapping[str, Tensor]) -> None:
        """Take back nothing."""
        copy_exactly({}, exported)

    def export_window(self) -> dict[str, Tensor]:
        """Return all vectors of the streams that go on, (vectors, numel) by block, on the CPU."""
        return {block: rows.cpu() for block, rows in self._rows().items()}

    def restore_window(self, exported: Mapping[str, Tensor]) -> None:
        """Take them back.

        Raises:
            ConfigurationError: They do not fit the scalars, which are restored before.
        """
        copy_exactly(self._rows(), exported)

    def _rows(self) -> dict[str, Tensor]:
        return {
            block: stream.space.store[stream.k if stream.wanted.vectors else 0 : stream.space.held]
            for block, stream in self._streams.items()
            if not stream.is_done and stream.space.held > (stream.k if stream.wanted.vectors else 0)
        }
