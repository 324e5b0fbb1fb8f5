"""Which streams run together when the Lanczos vectors of all of them do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.registry import Storage, bytes_per_stream

WORK_VECTORS = 3  # per stream: the newest vector gathered, its product, and a temporary


@dataclass(frozen=True)
class StreamSizes:
    """Sizes of a job's streams, or of those of one round.

    Attributes:
        numel: Length of each block's vectors.
        steps: Lanczos steps asked for; a stream takes at most as many as its vectors are long.
        probes: Streams per block, as numbers of probes by block where they are not the same for all.
        dtype: Working dtype.
        kept: How vectors are kept; None where two are.
        limits: Steps of blocks that take fewer than the others.
        beside: Bytes that a block takes beside its streams' vectors.
        results: Bytes that stay taken when waves have ended, those of all of them.
        savings: What asked for less would need less, in words for an error message that go on with "smaller blocks".
    """

    numel: Mapping[str, int]
    steps: int
    probes: int | Mapping[str, range]
    dtype: torch.dtype
    kept: Storage | None
    limits: Mapping[str, int] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)
    results: int = 0
    savings: str = "basis='bf16', reorthogonalize='none', fewer steps, "

    @property
    def largest(self) -> int:
        """What the largest stream takes."""
        return max(self.bytes_of(block) for block in self.numel)

    def steps_of(self, block: str) -> int:
        """Return the most steps that a stream of a block takes."""
        return min(self.limits.get(block, self.steps), self.numel[block])

    def probes_of(self, block: str) -> range:
        """Return the numbers of a block's probes."""
        return range(self.probes) if isinstance(self.probes, int) else self.probes[block]

    def bytes_of(self, block: str) -> int:
        """Return what one stream of a block takes: its basis, its work vectors, and what is beside them."""
        numel = self.numel[block]
        kept = bytes_per_stream(self.steps_of(block), numel, self.dtype, self.kept)
        return kept + WORK_VECTORS * numel * self.dtype.itemsize + self.beside.get(block, 0)


def group_streams(
    streams: StreamSizes, room: int, refuse: Callable[[str, int], Exception]
) -> tuple[list[list[Stream]], int]:
    """Group (block, probe) pairs, in order, so that each group fits.

    Args:
        streams: Sizes of all streams.
        room: Bytes that a group may take.
        refuse: Makes the error for a block, and its need, of which not even one stream fits.

    Returns:
        The groups, and the bytes of the largest one.
    """
    waves: list[list[Stream]] = [[]]
    used = most = 0
    for block in streams.numel:
        need = streams.bytes_of(block)
        if need > room:
            raise refuse(block, need)
        for k in streams.probes_of(block):
            if used + need > room:
                waves.append([])
                used = 0
            waves[-1].append((block, k))
            used += need
            most = max(most, used)
    return waves, most
