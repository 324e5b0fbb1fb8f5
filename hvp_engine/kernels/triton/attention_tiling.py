"""Tile sizes of the attention kernels.

The largest that spill no registers on sm_80, sm_90 and sm_100 (benchmarks/gpu/triton_resources.py). They are functions
of the dtype and head size alone, and with them the order of all sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["FLOAT32", "TF32", "Tiling", "tiling"]


class Tiling(NamedTuple):
    """How a kernel divides its work.

    Attributes:
        queries: Queries per tile of scores.
        keys: Keys per tile of scores.
        chunk: Most columns of a row that are read at once to compute scores.
        out: Most columns of the results that one program computes.
        warps: Warps per program.
        stages: Tiles whose loads overlap.
        precision: How float32 factors are multiplied, `input_precision` of `tl.dot`.
    """

    queries: int
    keys: int
    chunk: int
    out: int
    warps: int
    stages: int
    precision: str = "ieee"

    def constants(self) -> dict[str, object]:
        """Return the constants by which the kernels know the tiling."""
        return {
            "CHUNK": self.chunk,
            "OUT": self.out,
            "PRECISION": self.precision,
            "BLOCK_Q": self.queries,
            "BLOCK_K": self.keys,
        }


FLOAT32 = {
    "attention_forward": Tiling(64, 32, 16, 64, 8, 2),
    "attention_means": Tiling(32, 32, 16, 64, 4, 2),
    "attention_queries": Tiling(32, 16, 16, 64, 4, 2),
    "attention_keys": Tiling(16, 32, 16, 64, 8, 2),
}
TF32 = {
    "attention_forward": Tiling(64, 32, 32, 64, 4, 2, "tf32"),
    "attention_means": Tiling(32, 32, 32, 64, 8, 1, "tf32"),
    "attention_queries": Tiling(32, 16, 16, 64, 4, 2, "tf32"),
    "attention_keys": Tiling(16, 32, 16, 64, 4, 2, "tf32"),
}
_HALF_NARROW = {
    "attention_forward": Tiling(64, 64, 64, 64, 4, 2),
    "attention_means": Tiling(64, 32, 64, 64, 4, 1),
    "attention_queries": Tiling(64, 32, 64, 64, 4, 2),
    "attention_keys": Tiling(32, 32, 64, 64, 4, 2),
}
_HALF = {
    "attention_forward": Tiling(64, 64, 64, 64, 4, 2),
    "attention_means": Tiling(32, 32, 64, 64, 8, 2),
    "attention_queries": Tiling(32, 16, 32, 64, 4, 2),
    "attention_keys": Tiling(32, 32, 64, 64, 4, 1),
}


def tiling(kernel: str, dtype: torch.dtype, width: int, *, masked: bool) -> Tiling:
    """Return the tiling of a kernel.

    Args:
        kernel: Its name.
        dtype: torch.float32, torch.bfloat16 or torch.float16. TF32 multiplies float32 where torch lets matmul use it.
        width: The larger of the head sizes.
        masked: Whether there is a mask, whose tiles take registers.
    """
    if dtype != torch.float32:
        best = (_HALF if masked or width > 64 else _HALF_NARROW)[kernel]
    else:
        best = (TF32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else FLOAT32)[kernel]
    columns = max(16, 1 << (width - 1).bit_length())  # a power of two that products can take
    return best._replace(chunk=min(best.chunk, columns), out=min(best.out, columns))
