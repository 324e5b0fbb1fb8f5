"""Lanczos vectors that settle: unrounded while the recurrence needs them, then kept as rows that no step kernel writes.

The newest two vectors of a stream stand unrounded in a window on the device. When a further one comes, those before it
are final: they are written as rows, rounded or in 8 bits, to wherever these are (memory of the device or the host, a
file). :class:`SettlingBasis` is all of that but the place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.kernels.scaled_rows import in_fp64, parts_of, row_length, scaled_rows
from hvp_engine.kernels.streams import Projection
from hvp_engine.krylov.basis import Basis, Layout, Orthogonalized, Slot, Target, copy_exactly, still_wanted
from hvp_engine.krylov.storage import WINDOW, WindowBasis, applied, beside_window, plain_rule
from hvp_engine.krylov.streamed import reorthogonalize_streamed

Shape = tuple[int, int, int]  # streams, capacity, elements of a row

_COLUMNS = 1 << 16  # widened to fp64 at a time; whole blocks of rows with scales


class SettlingBasis(Basis):
    """All vectors as rows, and the newest two unrounded beside them."""

    def __init__(self, layout: Layout) -> None:
        """Allocate."""
        assert layout.store_dtype is not None  # where none is kept, the window stands alone
        dtype = layout.store_dtype
        self._window = WindowBasis(layout)
        self._numel = {block: shape.numel for block, shape in layout.shapes.items()}
        shapes = {block: (s, capacity, row_length(dtype, n)) for block, (s, capacity, n) in layout.shapes.items()}
        self._rows = self._allocate(shapes, dtype, layout.device)
        self._reached = {(block, row): 0 for block, shape in layout.shapes.items() for row in range(shape.streams)}
        self._settled = dict(self._reached)  # leading vectors of each stream that are rows, of those it has reached
        self._released: set[str] = set()

    @classmethod
    @abstractmethod
    def _allocate(cls, shapes: Mapping[str, Shape], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Find a place for the rows of all blocks."""

    @classmethod
    def bytes_per_stream(cls, capacity: int, numel: int, dtype: torch.dtype, store_dtype: torch.dtype | None) -> int:
        """Return the bytes that one stream takes on the device."""
        assert store_dtype is not None
        window = WindowBasis.bytes_per_stream(capacity, numel, dtype, store_dtype)
        return window + (0 if cls.elsewhere else _bytes_of_rows(capacity, numel, store_dtype))

    @classmethod
    def bytes_elsewhere(cls, capacity: int, numel: int, store_dtype: torch.dtype) -> int:
        """Return the bytes that one stream takes in host memory or on the disk."""
        return _bytes_of_rows(capacity, numel, store_dtype) if cls.elsewhere else 0

    def targets(self, position: int, slots: Sequence[Slot]) -> list[Target]:
        """Settle the vectors before this one, and return the place in the window."""
        for slot in slots:
            self._settle(slot, position)
            self._reached[slot] = position + 1
        return self._window.targets(position, slots)

    def newest(self, position: int, block: str) -> Tensor:
        """Return the newest or second newest vectors of a block, unrounded."""
        return self._window.newest(position, block)

    def project(
        self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor], thorough: bool = False
    ) -> Orthogonalized:
        """Make vectors orthogonal to the newest two unrounded ones, then to the settled older ones."""
        # In this order for the reason that RoundedBasis has: rounding is then multiplied by something small.
        recent = self._window.project(position, slots, vectors)
        rows = [self._rows[block][row] for block, row in slots]
        older = _project(rows, vectors, max(0, position + 1 - WINDOW), thorough)
        return beside_window(recent, older, thorough)

    def project_newest(self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor]) -> Orthogonalized:
        """Make vectors orthogonal to the newest two, unrounded, in two passes."""
        return self._window.project(position, slots, vectors)

    def deflate(self, slot: Slot, count: int, vectors: Sequence[Tensor]) -> None:
        """Make further vectors orthogonal to the first of a stream."""
        self._settle(slot, count)
        block, row = slot
        _project([self._rows[block][row]] * len(vectors), vectors, count)

    def release(self, block: str) -> None:
        """Free the vectors of a block."""
        del self._rows[block]
        self._window.release(block)
        self._released.add(block)

    def orthogonality(self, slot: Slot, count: int) -> float:
        """Return the spectral norm of Q'Q - I over the first ``count`` vectors of a stream, as they are kept."""
        self._settle(slot, count)
        block, row = slot
        gram = torch.zeros(count, count, dtype=torch.float64, device=self._rows[block].device)
        for wide in _widened(self._rows[block][row, :count], self._numel[block]):
            gram += wide @ wide.T
        identity = torch.eye(count, dtype=torch.float64, device=gram.device)
        return float(torch.linalg.matrix_norm(gram - identity, 2))

    def export(self, first: int, last: int) -> dict[str, Tensor]:
        """Return copies of the rows, by block."""
        for slot, reached in self._reached.items():
            if slot[0] not in self._released:
                self._settle(slot, min(last, reached))
        return {
            block: rows.clone(memory_format=torch.contiguous_format).cpu()
            for block, rows in self._between(first, last).items()
        }

    def restore(self, first: int, last: int, exported: Mapping[str, Tensor]) -> None:
        """Take the rows back."""
        copy_exactly(self._between(first, last), still_wanted(exported, self._released))
        for slot in self._reached:
            if slot[0] not in self._released:
                capacity = self._rows[slot[0]].shape[1]
                self._reached[slot] = self._settled[slot] = max(self._reached[slot], min(last, capacity))

    def export_window(self) -> dict[str, Tensor]:
        """Return the window: (streams, 2, numel) by block."""
        return self._window.export_window()

    def restore_window(self, exported: Mapping[str, Tensor]) -> None:
        """Take back the window."""
        self._window.restore_window(exported)

    def _settle(self, slot: Slot, count: int) -> None:
        """Write the first ``count`` vectors of a stream that are not rows yet: they are final, and in the window."""
        block, row = slot
        for position in range(self._settled[slot], count):
            _write(self._window.newest(position, block)[row], self._rows[block][row, position])
        self._settled[slot] = max(self._settled[slot], count)

    def _between(self, first: int, last: int) -> dict[str, Tensor]:
        return {block: rows[:, first:last] for block, rows in self._rows.items() if first < min(last, rows.shape[1])}


def _bytes_of_rows(capacity: int, numel: int, dtype: torch.dtype) -> int:
    return capacity * row_length(dtype, numel) * dtype.itemsize


def _write(vector: Tensor, row: Tensor) -> None:
    """Round a vector where it is, then bring it to where its row is."""
    if row.dtype != torch.int8:
        row.copy_(vector.to(row.dtype))
    elif row.device == vector.device:
        scaled_rows(vector, row)
    else:
        rounded = torch.empty(row.shape, dtype=row.dtype, device=vector.device)
        scaled_rows(vector, rounded)
        row.copy_(rounded)


def _project(rows: list[Tensor], vectors: Sequence[Tensor], count: int, thorough: bool = False) -> Projection:
    """Make vectors orthogonal to leading rows: in one kernel call, or where rows are elsewhere, as they come in."""
    counts = [count] * len(vectors)
    if rows[0].device != vectors[0].device:
        return reorthogonalize_streamed(rows, vectors, counts)
    return reorthogonalize(rows, vectors, counts, applied(plain_rule(rows[0].dtype), thorough))


def _widened(rows: Tensor, numel: int) -> Iterator[Tensor]:
    """Yield rows in fp64, some columns at a time."""
    for first in range(0, numel, _COLUMNS):
        columns = slice(first, min(numel, first + _COLUMNS))
        yield in_fp64(parts_of(rows, numel, columns), columns)
