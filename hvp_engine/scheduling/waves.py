"""Which streams run together when the Lanczos vectors of all of them do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.registry import Storage, bytes_per_stream

WORK_VECTORS = 3  # per stream: the newest vector gathered, its product, and a temporary


@dataclass(frozen=True)
class StreamSizes:
    """Sizes of a job's streams.

    Attributes:
        numel: Length of each block's vectors.
        steps: Lanczos steps asked for; a stream takes at most as many as its vectors are long.
        probes: Streams per block.
        dtype: Working dtype.
        kept: How vectors are kept; None where two are.
    """

    numel: Mapping[str, int]
    steps: int
    probes: int
    dtype: torch.dtype
    kept: Storage | None

    @property
    def largest(self) -> int:
        """What the largest stream takes."""
        return max(self.bytes_of(block) for block in self.numel)

    def bytes_of(self, block: str) -> int:
        """Return what one stream of a block takes: its basis and its work vectors."""
        numel = self.numel[block]
        kept = bytes_per_stream(self.steps, numel, self.dtype, self.kept)
        return kept + WORK_VECTORS * numel * self.dtype.itemsize


def group_streams(
    needs: Mapping[str, int], probes: int, room: int, refuse: Callable[[str, int], Exception]
) -> tuple[list[list[Stream]], int]:
    """Group (block, probe) pairs, in order, so that each group fits.

    Args:
        needs: Bytes of one stream by block.
        probes: Streams per block.
        room: Bytes that a group may take.
        refuse: Makes the error for a block, and its need, of which not even one stream fits.

    Returns:
        The groups, and the bytes of the largest one.
    """
    waves: list[list[Stream]] = [[]]
    used = most = 0
    for block, need in needs.items():
        if need > room:
            raise refuse(block, need)
        for k in range(probes):
            if used + need > room:
                waves.append([])
                used = 0
            waves[-1].append((block, k))
            used += need
            most = max(most, used)
    return waves, most
