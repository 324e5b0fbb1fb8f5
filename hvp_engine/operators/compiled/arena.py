"""Memory of a replay: what is used at different times shares bytes, and the replays of an operator share all of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hvp_engine.operators.compiled.tape import Memory

__all__ = ["Arena", "placed"]

_ALIGNED = 64


class Arena:
    """Bytes in which replays work, one after the other; what one leaves there nobody reads."""

    def __init__(self) -> None:
        """Begin without any."""
        self._bytes: Tensor | None = None

    def of(self, size: int, device: torch.device) -> Tensor:
        """Return at least that many bytes; replays that were made before keep those that they got."""
        if self._bytes is None or self._bytes.numel() < size or self._bytes.device != device:
            self._bytes = torch.empty(max(size, 1), dtype=torch.uint8, device=device)
        return self._bytes

    @property
    def size(self) -> int:
        """Bytes of it that the next replay may use without more."""
        return 0 if self._bytes is None else self._bytes.numel()


def placed(spans: Mapping[Memory, tuple[int, int]]) -> tuple[dict[Memory, int], int]:
    """Give every memory bytes that no other one has at the same time.

    Args:
        spans: The first and the last call that use each memory.

    Returns:
        Where each begins, and how many bytes there are in all.
    """
    starts: dict[Memory, int] = {}
    free = _Free()
    ending: dict[int, list[Memory]] = {}
    now = 0
    for memory, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        while now < first:
            for gone in ending.pop(now, ()):
                free.give_back(starts[gone], _rounded(gone.bytes))
            now += 1
        starts[memory] = free.take(_rounded(memory.bytes))
        ending.setdefault(last, []).append(memory)
    return starts, free.end


class _Free:
    """Gaps between what is in use, and the end of all."""

    def __init__(self) -> None:
        self.end = 0
        self._gaps: list[tuple[int, int]] = []  # begin and end, in order

    def take(self, size: int) -> int:
        """Return where ``size`` bytes begin: in the smallest gap that has them, else at the end."""
        fitting = [gap for gap in self._gaps if gap[1] - gap[0] >= size]
        if fitting:
            begin, end = min(fitting, key=lambda gap: gap[1] - gap[0])
            self._gaps.remove((begin, end))
            if end - begin > size:
                self._gaps.append((begin + size, end))
                self._gaps.sort()
            return begin
        begin = self.end
        if self._gaps and self._gaps[-1][1] == self.end:
            begin = self._gaps.pop()[0]
        self.end = begin + size
        return begin

    def give_back(self, begin: int, size: int) -> None:
        """Make a gap, one with those beside it."""
        if not size:
            return
        gaps: list[tuple[int, int]] = []
        for gap in sorted([*self._gaps, (begin, begin + size)]):
            if gaps and gaps[-1][1] == gap[0]:
                gaps[-1] = (gaps[-1][0], gap[1])
            else:
                gaps.append(gap)
        self._gaps = gaps


def _rounded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
