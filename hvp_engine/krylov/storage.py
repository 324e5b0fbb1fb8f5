"""The plain storages of Lanczos vectors: all of them exactly, all of them rounded, or the newest two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.kernels.streams import Projection, Rule
from hvp_engine.krylov.basis import Basis, Layout, Orthogonalized, Slot, Target, copy_exactly, still_wanted

WINDOW = 2  # the three-term recurrence goes back to the last two vectors
_COLUMNS = 1 << 16  # widened to fp64 at a time
# Norm of a vector's cosines with the kept ones that may stay: ||Q'Q - I|| of m vectors is then at most sqrt(2 m) times
# that. What a kept vector is rounded by stays in any case.
_TOLERANCES = {torch.float64: 1e-13, torch.float32: 5e-7, torch.bfloat16: 7e-6, torch.int8: 5e-4}


def lanczos_rule(dtype: torch.dtype) -> Rule:
    """Say how vectors are projected that are kept as they are, in their own dtype.

    A vector is multiplied while its cosines are below the square root of the rounding: T is right to the rounding then
    (Simon, Linear Algebra and its Applications 61 (1984)). It is kept when they are below the tolerance.
    """
    return Rule(WINDOW, _TOLERANCES[dtype], 0.5 * math.sqrt(torch.finfo(dtype).eps))


def restarted_rule(dtype: torch.dtype) -> Rule:
    """Say how vectors are projected in a space that is restarted, whose last rows are the newest two and those waiting.

    Nothing is postponed: the newest one need not be the last. After a restart a product has large components along all
    rows; what the first pass leaves of them is then taken out as anything else above the tolerance.
    """
    return Rule(2 * WINDOW, _TOLERANCES[dtype])


def applied(rule: Rule, thorough: bool) -> Rule:
    """Return the rule, or the same with nothing left where it is."""
    return Rule(rule.near, 0.0, None if rule.postponed is None else 0.0) if thorough else rule


def plain_rule(store_dtype: torch.dtype) -> Rule:
    """Say how vectors are projected whose components along the kept ones, of any dtype, are none of them large."""
    return Rule(0, _TOLERANCES[store_dtype])


def beside_window(recent: Orthogonalized, older: Projection, thorough: bool) -> Orthogonalized:
    """Put together what the newest two vectors took out, and then the rounded older ones."""
    lost = older.lost
    if thorough and older.coefficients.shape[1]:  # by rounded vectors, and so no more of it stays than was found
        lost = torch.where(older.norms == 0.0, 0.0, older.coefficients.abs().amax(dim=1) / older.norms)
    return Orthogonalized(recent.alphas, older.norms, torch.maximum(recent.loss, lost))


class WindowBasis(Basis):
    """The newest two vectors, unrounded, and no others."""

    keeps_all = False

    def __init__(self, layout: Layout) -> None:
        """Allocate."""
        self._window = {
            block: torch.empty(streams, min(WINDOW, capacity), numel, dtype=layout.dtype, device=layout.device)
            for block, (streams, capacity, numel) in layout.shapes.items()
        }
        self._released: set[str] = set()

    @staticmethod
    def bytes_per_stream(capacity: int, numel: int, dtype: torch.dtype, store_dtype: torch.dtype | None) -> int:
        """Return the bytes that one stream takes."""
        return min(WINDOW, capacity) * numel * dtype.itemsize

    def targets(self, position: int, slots: Sequence[Slot]) -> list[Target]:
        """Return the rows of the vectors that are two positions older."""
        return [(None, self._window[block][row, position % WINDOW]) for block, row in slots]

    def newest(self, position: int, block: str) -> Tensor:
        """Return the newest or second newest vectors of a block."""
        return self._window[block][:, position % WINDOW]

    def project(
        self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor], thorough: bool = False
    ) -> Orthogonalized:
        """Make vectors orthogonal to the newest two, in two passes."""
        return self.project_newest(position, slots, vectors)

    def project_newest(self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor]) -> Orthogonalized:
        """Make vectors orthogonal to the newest two, in two passes."""
        windows = [self._window[block][row] for block, row in slots]
        done = reorthogonalize(windows, vectors, [min(position + 1, WINDOW)] * len(vectors))
        return Orthogonalized(done.coefficients[:, position % WINDOW], done.norms, done.lost)

    def deflate(self, slot: Slot, count: int, vectors: Sequence[Tensor]) -> None:
        """Refuse: the older vectors are gone."""
        raise ConfigurationError("Vectors that are not kept cannot be taken out; use reorthogonalize='full'.")

    def release(self, block: str) -> None:
        """Free the vectors of a block."""
        del self._window[block]
        self._released.add(block)

    def orthogonality(self, slot: Slot, count: int) -> float:
        """Refuse: without the older vectors there is nothing to check."""
        raise ConfigurationError(
            "The orthogonality of a basis that is not kept cannot be measured; use reorthogonalize='full'."
        )

    def export(self, first: int, last: int) -> dict[str, Tensor]:
        """Return nothing: no vector stays."""
        return {}

    def restore(self, first: int, last: int, exported: Mapping[str, Tensor]) -> None:
        """Take back nothing."""
        copy_exactly({}, exported)

    def export_window(self) -> dict[str, Tensor]:
        """Return the window: (streams, 2, numel) by block."""
        return {block: window.cpu() for block, window in self._window.items()}

    def restore_window(self, exported: Mapping[str, Tensor]) -> None:
        """Take back the window."""
        copy_exactly(self._window, still_wanted(exported, self._released))


class FullBasis(Basis):
    """All vectors in the working dtype."""

    corrects_newest = True

    def __init__(self, layout: Layout) -> None:
        """Allocate."""
        self._store = {
            block: torch.empty(shape, dtype=layout.store_dtype, device=layout.device)
            for block, shape in layout.shapes.items()
        }
        self._released: set[str] = set()

    @staticmethod
    def bytes_per_stream(capacity: int, numel: int, dtype: torch.dtype, store_dtype: torch.dtype | None) -> int:
        """Return the bytes that one stream takes."""
        return capacity * numel * dtype.itemsize

    def targets(self, position: int, slots: Sequence[Slot]) -> list[Target]:
        """Return the vectors' rows."""
        return [(self._store[block][row, position], None) for block, row in slots]

    def newest(self, position: int, block: str) -> Tensor:
        """Return the vectors of a block at a position."""
        return self._store[block][:, position]

    def project(
        self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor], thorough: bool = False
    ) -> Orthogonalized:
        """Make vectors orthogonal to all that are kept, in one kernel call."""
        stores = [self._store[block][row] for block, row in slots]
        rule = applied(lanczos_rule(stores[0].dtype), thorough)
        done = reorthogonalize(stores, vectors, [position + 1] * len(vectors), rule)
        return Orthogonalized(done.coefficients[:, position], done.norms, done.lost)

    def project_newest(self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor]) -> Orthogonalized:
        """Make vectors orthogonal to the newest two, in two passes."""
        first = max(0, position + 1 - WINDOW)
        stores = [self._store[block][row, first : position + 1] for block, row in slots]
        done = reorthogonalize(stores, vectors, [position + 1 - first] * len(vectors))
        return Orthogonalized(done.coefficients[:, -1], done.norms, done.lost)

    def deflate(self, slot: Slot, count: int, vectors: Sequence[Tensor]) -> None:
        """Make further vectors orthogonal to the first of a stream, all in one kernel call."""
        block, row = slot
        store = self._store[block][row]
        reorthogonalize([store] * len(vectors), vectors, [count] * len(vectors), plain_rule(store.dtype))

    def release(self, block: str) -> None:
        """Free the vectors of a block."""
        del self._store[block]
        self._released.add(block)

    def orthogonality(self, slot: Slot, count: int) -> float:
        """Return the spectral norm of Q'Q - I over the first ``count`` vectors of a stream, accumulated in fp64."""
        block, row = slot
        store = self._store[block]
        gram = torch.zeros(count, count, dtype=torch.float64, device=store.device)
        for piece in torch.split(store[row, :count], _COLUMNS, dim=1):
            wide = piece.double()
            gram += wide @ wide.T
        identity = torch.eye(count, dtype=torch.float64, device=gram.device)
        return float(torch.linalg.matrix_norm(gram - identity, 2))

    def export(self, first: int, last: int) -> dict[str, Tensor]:
        """Return copies of the vectors, by block."""
        return {block: rows.contiguous().cpu() for block, rows in self._between(first, last).items()}

    def restore(self, first: int, last: int, exported: Mapping[str, Tensor]) -> None:
        """Take the vectors back."""
        copy_exactly(self._between(first, last), still_wanted(exported, self._released))

    def _between(self, first: int, last: int) -> dict[str, Tensor]:
        return {
            block: store[:, first:last] for block, store in self._store.items() if first < min(last, store.shape[1])
        }


class RoundedBasis(FullBasis):
    """All vectors in a narrower dtype that the kernels read and write, and the newest two unrounded beside them."""

    corrects_newest = False

    def __init__(self, layout: Layout) -> None:
        """Allocate."""
        super().__init__(layout)
        self._window = WindowBasis(layout)

    @staticmethod
    def bytes_per_stream(capacity: int, numel: int, dtype: torch.dtype, store_dtype: torch.dtype | None) -> int:
        """Return the bytes that one stream takes."""
        assert store_dtype is not None  # where none is kept, the window stands alone
        window = WindowBasis.bytes_per_stream(capacity, numel, dtype, store_dtype)
        return capacity * numel * store_dtype.itemsize + window

    def targets(self, position: int, slots: Sequence[Slot]) -> list[Target]:
        """Return the vectors' rows, rounded and unrounded."""
        unrounded = self._window.targets(position, slots)
        return [
            (self._store[block][row, position], window)
            for (block, row), (_, window) in zip(slots, unrounded, strict=True)
        ]

    def newest(self, position: int, block: str) -> Tensor:
        """Return the newest or second newest vectors of a block, unrounded."""
        return self._window.newest(position, block)

    def project(
        self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor], thorough: bool = False
    ) -> Orthogonalized:
        """Make vectors orthogonal to the newest two unrounded ones, then to the rounded older ones."""
        # The unrounded window first: it takes out the large components alpha and beta. What the rounded older vectors
        # take out afterwards is small, so that their rounding is multiplied by something small.
        recent = self._window.project(position, slots, vectors)
        stores = [self._store[block][row] for block, row in slots]
        counts = [max(0, position + 1 - WINDOW)] * len(vectors)
        older = reorthogonalize(stores, vectors, counts, applied(plain_rule(stores[0].dtype), thorough))
        return beside_window(recent, older, thorough)

    def project_newest(self, position: int, slots: Sequence[Slot], vectors: Sequence[Tensor]) -> Orthogonalized:
        """Make vectors orthogonal to the newest two, unrounded, in two passes."""
        return self._window.project(position, slots, vectors)

    def release(self, block: str) -> None:
        """Free the vectors of a block."""
        super().release(block)
        self._window.release(block)

    def export_window(self) -> dict[str, Tensor]:
        """Return the window: (streams, 2, numel) by block."""
        return self._window.export_window()

    def restore_window(self, exported: Mapping[str, Tensor]) -> None:
        """Take back the window."""
        self._window.restore_window(exported)
