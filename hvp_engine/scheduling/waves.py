"""Which streams run together when the Lanczos vectors of all of them do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from hvp_engine.krylov.basis import Elsewhere
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.registry import Storage, bytes_elsewhere, bytes_per_stream

_BY_BASIS = "basis='auto', "
WORK_VECTORS = 3  # per stream: the newest vector gathered, its product, and a temporary


@dataclass(frozen=True)
class StreamSizes:
    """Sizes of a job's streams, or of those of one round.

    Attributes:
        numel: Length of each block's vectors.
        steps: Lanczos steps asked for; a stream takes at most as many as its vectors are long.
        probes: Streams per block; their numbers where these do not begin with 0, by block where they are not the same
            for all.
        dtype: Working dtype.
        kept: How vectors are kept; None where two are.
        limits: Steps of blocks that take fewer than the others.
        beside: Bytes that a block takes beside its streams' vectors.
        results: Bytes that stay taken when waves have ended, those of all of them.
        savings: What asked for less would need less, in words for an error message that go on with "smaller blocks";
            None for what ``ways_out`` says.
    """

    numel: Mapping[str, int]
    steps: int
    probes: int | range | Mapping[str, range]
    dtype: torch.dtype
    kept: Storage | None
    limits: Mapping[str, int] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)
    results: int = 0
    savings: str | None = None

    @property
    def largest(self) -> int:
        """What the largest stream takes."""
        return max(self.bytes_of(block) for block in self.numel)

    def steps_of(self, block: str) -> int:
        """Return the most steps that a stream of a block takes."""
        return min(self.limits.get(block, self.steps), self.numel[block])

    def probes_of(self, block: str) -> range:
        """Return the numbers of a block's probes."""
        if isinstance(self.probes, int):
            return range(self.probes)
        return self.probes if isinstance(self.probes, range) else self.probes[block]

    def bytes_of(self, block: str) -> int:
        """Return what one stream of a block takes: its basis, its work vectors, and what is beside them."""
        numel = self.numel[block]
        kept = bytes_per_stream(self.steps_of(block), numel, self.dtype, self.kept)
        return kept + WORK_VECTORS * numel * self.dtype.itemsize + self.beside.get(block, 0)

    @property
    def ways_out(self) -> str:
        """Say what asked for less would need less, each with a comma behind it."""
        if self.savings is not None:
            return self.savings
        if self.kept is None:
            return ""
        return f"{'' if self.elsewhere else _BY_BASIS}reorthogonalize='none', fewer steps, "

    @property
    def elsewhere(self) -> Elsewhere | None:
        """Where vectors are kept, if that is not the device's memory."""
        return None if self.kept is None else self.kept.elsewhere

    def elsewhere_of(self, block: str) -> int:
        """Return what one stream of a block takes in host memory or on the disk."""
        return bytes_elsewhere(self.steps_of(block), self.numel[block], self.kept)


class Room(NamedTuple):
    """Bytes that a group of streams may take.

    Attributes:
        here: On the device.
        elsewhere: In host memory or on the disk, where the vectors are kept there.
    """

    here: int
    elsewhere: float = math.inf


def group_streams(
    streams: StreamSizes, room: Room, refuse: Callable[[str, int, bool], Exception]
) -> tuple[list[list[Stream]], int, int]:
    """Group (block, probe) pairs, in order, so that each group fits.

    Args:
        streams: Sizes of all streams.
        room: What a group may take.
        refuse: Makes the error for a block, and its need, of which not even one stream fits; elsewhere, where True.

    Returns:
        The groups, and the bytes of the largest one on the device, and elsewhere.
    """
    waves: list[list[Stream]] = [[]]
    used = away = most = furthest = 0
    for block in streams.numel:
        need, further = streams.bytes_of(block), streams.elsewhere_of(block)
        if need > room.here:
            raise refuse(block, need, False)
        if further > room.elsewhere:
            raise refuse(block, further, True)
        for k in streams.probes_of(block):
            if used + need > room.here or away + further > room.elsewhere:
                waves.append([])
                used = away = 0
            waves[-1].append((block, k))
            used, away = used + need, away + further
            most, furthest = max(most, used), max(furthest, away)
    return waves, most, furthest
