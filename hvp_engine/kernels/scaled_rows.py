"""Rows of 8-bit numbers with scales: how Lanczos vectors are kept in a quarter of fp32's memory.

A row of n numbers is cut into blocks of 128, the last one filled up with zeros. It is kept as all numbers of all
blocks, int8, then one fp32 scale per block, then zeros up to a multiple of 64 bytes. A number stands for itself times
the scale of its block, which is its largest entry over 127. Rounding is to nearest, ties to even, so that equal vectors
have equal bits on every device; an entry is off by at most 1/254 of the largest one in its block. Of a block with a
number that is not finite none is.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BLOCK", "Parts", "in_fp64", "parts_of", "row_bytes", "row_length", "scaled_rows"]

Parts = tuple[Tensor, ...]  # some columns of some rows: numbers, or numbers and scales

BLOCK = 128  # as kScaledBlock in csrc/include/hvp/dtype.h
_SCALE_BYTES = 4
_ALIGNMENT = 64  # a cache line
_LARGEST = 127.0
_PIECE = 1 << 16  # entries worked with at a time, so that temporaries stay small and in the caches


def row_bytes(numel: int) -> int:
    """Return the bytes of a row of ``numel`` numbers, which are also the columns of the int8 tensor that holds it."""
    blocks = -(-numel // BLOCK)
    return -(-blocks * (BLOCK + _SCALE_BYTES) // _ALIGNMENT) * _ALIGNMENT


def row_length(dtype: torch.dtype, numel: int) -> int:
    """Return how many elements a tensor of a dtype needs for a row of ``numel`` numbers."""
    return row_bytes(numel) if dtype == torch.int8 else numel


def scaled_rows(vector: Tensor, row: Tensor) -> None:
    """Round a vector to 8 bits.

    Args:
        vector: (n,) fp32 or fp64.
        row: (row_bytes(n),) int8 on the same device.
    """
    numel = vector.shape[0]
    for first in range(0, numel, _PIECE):
        piece = vector[first : first + _PIECE].float()
        ((numbers,), (scales,)) = parts_of(row[None], numel, slice(first, min(numel, first + _PIECE)))
        blocks = torch.nn.functional.pad(piece, (0, -piece.shape[0] % BLOCK)).view(-1, BLOCK)
        scale = blocks.abs().amax(dim=1) / _LARGEST
        # The largest entry of a tiny block may exceed 127 scales, which have fewer digits there.
        rounded = (blocks / torch.where(scale == 0, 1.0, scale)[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
        scales.copy_(scale)
        numbers.copy_(rounded.nan_to_num_(0.0))
        numbers[:, 0].masked_fill_(~scale.isfinite(), 1)  # so that no product with the scale hides it
    row[-(-numel // BLOCK) * (BLOCK + _SCALE_BYTES) :] = 0


def parts_of(rows: Tensor, numel: int, columns: slice) -> Parts:
    """Return views of some columns of rows.

    Args:
        rows: (k, row_length(dtype, numel)), with scales where they are int8.
        numel: Length of a vector.
        columns: First and last + 1 of consecutive columns; of int8 the first one begins a block.

    Returns:
        (k, columns) numbers; of int8 (k, blocks, BLOCK), and their scales, (k, blocks) fp32.
    """
    if rows.dtype != torch.int8:
        return (rows[:, columns],)
    begin, end = columns.start // BLOCK, -(-columns.stop // BLOCK)
    blocks = -(-numel // BLOCK)
    numbers = rows[:, begin * BLOCK : end * BLOCK].view(-1, end - begin, BLOCK)
    scales = rows[:, blocks * BLOCK + begin * _SCALE_BYTES : blocks * BLOCK + end * _SCALE_BYTES]
    return numbers, scales.view(torch.float32)


def in_fp64(parts: Parts, columns: slice) -> Tensor:
    """Return what the parts of some columns stand for: (k, columns)."""
    if len(parts) == 1:
        return parts[0].double()
    numbers, scales = parts
    wide = numbers.double().mul_(scales.double().unsqueeze(2)).flatten(1)
    return wide[:, : columns.stop - columns.start]
