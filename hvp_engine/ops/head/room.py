"""How much of a head's logits exists at once: a chunk of tokens, or a panel of classes, by the device and its memory.

On a CPU they are sized for its caches, and the same everywhere. A GPU wants them large: every chunk adds its product to
sums of the weights' size, and every panel is a handful of launches. There a job's memory bounds them, in powers of two,
so that a little more or less of free memory changes neither the sizes nor the bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch

__all__ = ["ON_CPU", "HeadRoom", "granted", "head_room", "room_on"]


@dataclass(frozen=True)
class HeadRoom:
    """Sizes of a head's temporaries.

    Attributes:
        chunk_bytes: Logits of one chunk of tokens; passes hold two of that size.
        panel_bytes: Tangents of one panel of tokens and classes; likewise.
    """

    chunk_bytes: int
    panel_bytes: int

    @property
    def beyond(self) -> int:
        """Bytes that passes hold beyond those of a CPU's chunks, which count among the temporaries of any graph."""
        return 2 * (self.chunk_bytes - ON_CPU.chunk_bytes)


# Enough rows for the products to run at full speed; smaller chunks, although they would stay in cache between product
# and kernel, are slower. A panel of tangents stays in a last-level cache (benchmarks/NOTES.md).
ON_CPU = HeadRoom(64 << 20, 16 << 20)
_LARGEST = HeadRoom(1 << 30, 128 << 20)
_SHARE = 64  # of a job's memory, for one chunk

_granted: ContextVar[HeadRoom | None] = ContextVar("head room", default=None)


def head_room(budget: int, *, on_cpu: bool) -> HeadRoom:
    """Choose the sizes for a job.

    Args:
        budget: Bytes for everything.
        on_cpu: Whether the CPU computes.
    """
    if on_cpu:
        return ON_CPU
    chunk = min(max(1 << (max(budget // _SHARE, 1).bit_length() - 1), ON_CPU.chunk_bytes), _LARGEST.chunk_bytes)
    return HeadRoom(chunk, max(chunk * _LARGEST.panel_bytes // _LARGEST.chunk_bytes, ON_CPU.panel_bytes))


@contextlib.contextmanager
def granted(room: HeadRoom | None) -> Iterator[None]:
    """Let heads whose losses this thread evaluates inside have these sizes, in their backward passes too.

    Args:
        room: The sizes; None leaves the choice to :func:`room_on`.
    """
    token = _granted.set(room)
    try:
        yield
    finally:
        _granted.reset(token)


def room_on(device: torch.device) -> HeadRoom:
    """Return the sizes that were granted; without a grant those that a device has room for as a whole."""
    room = _granted.get()
    if room is not None:
        return room
    if device.type != "cuda":
        return ON_CPU
    return head_room(torch.cuda.get_device_properties(device).total_memory, on_cpu=False)
