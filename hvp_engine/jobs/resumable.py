"""What a job's work has to offer so that it can be saved as it goes, and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor


class SavedVectors(Protocol):
    """What a checkpoint asks of vectors; every :class:`hvp_engine.krylov.basis.Basis` has it."""

    @property
    def keeps_all(self) -> bool:
        """Whether vectors stay as they are at their positions: these are written once, others every time."""

    @property
    def corrects_newest(self) -> bool:
        """Whether the newest of them may change once more, so that it is written again."""

    def export(self, first: int, last: int) -> dict[str, Tensor]:
        """Return the vectors at some positions."""

    def restore(self, first: int, last: int, exported: Mapping[str, Tensor]) -> None:
        """Take them back."""

    def export_window(self) -> dict[str, Tensor]:
        """Return what changes."""

    def restore_window(self, exported: Mapping[str, Tensor]) -> None:
        """Take it back."""


class Resumable(Protocol):
    """What a checkpoint keeps of a wave: scalars, rewritten every time, and Lanczos vectors, written once."""

    @property
    def position(self) -> int:
        """Steps done by the live streams."""

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """(streams,): steps done by each."""

    @property
    def finished(self) -> bool:
        """Whether no stream has a step left."""

    @property
    def scalars(self) -> Mapping[str, Tensor]:
        """A few numbers per stream by name, to be copied from and to."""

    @property
    def basis(self) -> SavedVectors | None:
        """The vectors; None for streams that keep none."""

    def resume(self, position: int) -> None:
        """Go on from restored scalars and vectors."""
