"""Thick-restarted Lanczos on all blocks of a wave in lock step: one sweep multiplies what every block asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hvp_engine.errors import NotFiniteError, not_finite
from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.krylov.basis import copy_exactly
from hvp_engine.krylov.eigen_stream import EigenStream
from hvp_engine.krylov.lanczos import Matmat
from hvp_engine.krylov.storage import restarted_rule
from hvp_engine.krylov.wanted import FloatArray


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
        taken = sum(map(len, products.values()))
        growing = {block: stream for block, stream in live.items() if stream.grows}
        vectors = {block: products.pop(block)[0] for block in growing}
        self._refuse_nonfinite({block: bool(product.isfinite().all()) for block, product in products.items()})
        found = self._orthogonalized(growing, vectors)
        self.consistent = False
        for (block, stream), (coefficients, norm) in zip(growing.items(), found, strict=True):
            stream.grow(vectors[block], coefficients, norm)
        for block, product in products.items():
            live[block].measure(product)
        self.position += 1
        self.consistent = True
        return taken

    def _orthogonalized(
        self, growing: Mapping[str, EigenStream], vectors: Mapping[str, Tensor]
    ) -> list[tuple[FloatArray, float]]:
        """Make products orthogonal, in place and in one call, to what there is; return components and norms."""
        if not growing:
            return []
        counts = [stream.space.held for stream in growing.values()]
        stores = [stream.space.store for stream in growing.values()]
        rule = restarted_rule(stores[0].dtype)
        found = reorthogonalize(stores, list(vectors.values()), counts, rule)
        coefficients, norms = found.coefficients.numpy(force=True), found.norms.numpy(force=True)
        finite = np.isfinite(coefficients).all(1) & np.isfinite(norms)  # a product that is not makes its dots so
        self._refuse_nonfinite(dict(zip(growing, finite.tolist(), strict=True)))
        return [(row[:count], float(norm)) for row, count, norm in zip(coefficients, counts, norms, strict=True)]

    def _refuse_nonfinite(self, finite: Mapping[str, bool]) -> None:
        for block, is_finite in finite.items():
            if not is_finite:
                raise NotFiniteError(not_finite(f"of block {block!r}", f" in sweep {self.position + 1}"))


class MovingVectors:
    """The vectors of restarted streams as a checkpoint sees them: a restart changes them all, so none is written once.

    The wanted ones that outlive the wave are not among them, see :attr:`RestartedLanczos.scalars`.
    """

    keeps_all: ClassVar[bool] = False
    corrects_newest: ClassVar[bool] = False

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
