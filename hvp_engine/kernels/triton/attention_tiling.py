"""Tile sizes of the attention kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Tiling", "tiling"]


class Tiling(NamedTuple):
    """How a kernel divides its work.

    Attributes:
        queries: Queries per tile of scores.
        keys: Keys per tile of scores.
        chunk: Columns of a row that are read at once to compute scores.
        out: Columns of the results that one program computes.
        precision: How float32 factors are multiplied, `input_precision` of `tl.dot`.
        warps: Warps per program.
        stages: Tiles whose loads overlap.
    """

    queries: int
    keys: int
    chunk: int
    out: int
    precision: str
    warps: int
    stages: int

    def constants(self) -> dict[str, object]:
        """Returns the constants by which the kernels know the tiling."""
        return {
            "CHUNK": self.chunk,
            "OUT": self.out,
            "PRECISION": self.precision,
            "BLOCK_Q": self.queries,
            "BLOCK_K": self.keys,
        }


def tiling(kernel: str, dtype: torch.dtype, width: int) -> Tiling:
    """Returns the tiling of a kernel for a dtype and the larger of the head sizes."""
    columns = max(16, 1 << (width - 1).bit_length())  # a power of two that products can take
    return Tiling(64, 64, min(columns, 64), min(columns, 64), "ieee", 4, 2)
