"""Two-pass Gram-Schmidt against rows that lie elsewhere: brought to the device piece by piece, none of which stays.

While the device works with one piece the host brings the next one, by way of pinned memory, which the copy engine reads
by itself, and of which there is as much as a few pieces take, however large the basis. The passes are those of
:mod:`hvp_engine.kernels.reorthogonalize`, in as many reads of the rows: three.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hvp_engine.kernels.scaled_rows import BLOCK, Parts, in_fp64, parts_of
from hvp_engine.kernels.streams import Projection

_PIECE_BYTES = 16 << 20  # widened to fp64 on the device, it takes up to eight times as much there
_WAITING = 2  # pieces at most that wait for the device


def reorthogonalize_streamed(rows: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int]) -> Projection:
    """Do what :func:`hvp_engine.kernels.reorthogonalize.reorthogonalize` does, for rows on another device.

    Args:
        rows: Per stream a (capacity, row) tensor in host memory, as a basis keeps them.
        vectors: Per stream a contiguous (n,) tensor of fp32 or fp64 on one device; updated in place.
        counts: Per stream the number of leading rows in use; may be 0.

    Returns:
        Coefficients, norms and loss of orthogonality on the vectors' device. Equal inputs give equal bits.
    """
    device = vectors[0].device
    first, second = torch.zeros((2, len(vectors), max(counts)), dtype=torch.float64, device=device)

    def pieces() -> Iterator[tuple[int, slice, Tensor]]:
        yield from _pieces(rows, vectors, counts, device)

    for s, columns, wide in pieces():
        first[s, : counts[s]] += wide @ vectors[s][columns].double()
    for s, columns, wide in pieces():
        part = vectors[s][columns]
        part.copy_(part.double() - first[s, : counts[s]] @ wide)
        second[s, : counts[s]] += wide @ part.double()
    between = _norms(vectors)
    for s, columns, wide in pieces():
        part = vectors[s][columns]
        part.copy_(part.double() - second[s, : counts[s]] @ wide)
    largest = second.abs().amax(dim=1) if max(counts) else torch.zeros_like(between)
    return Projection(first.add_(second), _norms(vectors), torch.where(between == 0, 0.0, largest / between))


def _norms(vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(vector, dtype=torch.float64) for vector in vectors])


def _pieces(
    rows: Sequence[Tensor], vectors: Sequence[Tensor], counts: Sequence[int], device: torch.device
) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield all rows in use: number of the stream, columns, and their contents in fp64 on the device."""
    stage = _Stage(device) if device.type == "cuda" else None
    for s, (basis, vector, count) in enumerate(zip(rows, vectors, counts, strict=True)):
        numel = vector.shape[0]
        width = max(1, _PIECE_BYTES // (max(1, count) * basis.itemsize) // BLOCK) * BLOCK
        for begin in range(0, numel if count else 0, width):
            columns = slice(begin, min(numel, begin + width))
            parts = parts_of(basis[:count], numel, columns)
            yield s, columns, in_fp64(parts if stage is None else stage.bring(parts), columns)


class _Stage:
    """Brings pieces to a CUDA device, of which no more than two wait there or in the host's pinned memory."""

    def __init__(self, device: torch.device) -> None:
        """Take the device."""
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._used: deque[torch.cuda.Event] = deque()

    def bring(self, parts: Parts) -> Parts:
        """Copy a piece beside the work of the current stream, which waits for it."""
        now = torch.cuda.current_stream(self._device)
        self._used.append(now.record_event())  # behind all work with the pieces before this one
        if len(self._used) > _WAITING:
            self._used.popleft().synchronize()
        # The allocator of pinned memory gives a buffer away again only when the copy from it is done.
        staged = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part) for part in parts]
        with torch.cuda.stream(self._copies):
            here = tuple(part.to(self._device, non_blocking=True) for part in staged)
        now.wait_stream(self._copies)
        for part in here:
            part.record_stream(now)
        return here
