"""Tile sizes of the attention kernels.

The largest that spill no registers on sm_80, sm_90 and sm_100 (benchmarks/gpu/triton_resources.py). They are functions
of the dtype and head size alone, and with them the order of all sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["FLOAT32", "JOINT_BYTES", "JOINT_PROGRAMS", "TF32", "Strip", "Tiling", "matrix_strip", "tiling"]

MATRIX_BYTES = 256 << 20  # most that the matrices of scores may take where they are formed whole
MATRIX_KEYS = 128  # with fewer keys there is little to compute, and more launches take longer
_MATRIX_ROWS = (256, 128, 64)  # of a strip, as many as fit
JOINT_PROGRAMS = 384  # `attention_joint` splits the keys of a head until there are so many programs
JOINT_BYTES = 256 << 20  # most that the split sums of the queries may take


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


class Strip(NamedTuple):
    """What of the matrices of scores is formed at once.

    Attributes:
        entries: Batch entries.
        rows: Query rows of all their heads.
    """

    entries: int
    rows: int


def matrix_strip(dtype: torch.dtype, batch: int, heads: int, queries: int, keys: int) -> Strip | None:
    """Say how attention's derivatives form whole matrices of scores; None where tiles serve.

    The rule for all dtypes: whole matrices in float32, also as TF32, where a strip of them fits and is worth it.
    """
    if dtype != torch.float32 or keys < MATRIX_KEYS:
        return None
    for rows in _MATRIX_ROWS:
        rows = min(rows, queries)
        entries = MATRIX_BYTES // (4 * 4 * heads * rows * keys)  # four matrices of four bytes
        if entries:
            return Strip(min(entries, batch), rows)
    return None


FLOAT32 = {
    "attention_forward": Tiling(64, 32, 16, 64, 8, 2),
    "attention_outputs": Tiling(32, 32, 16, 64, 4, 2),
    "attention_queries": Tiling(32, 16, 16, 64, 4, 2),
    "attention_keys": Tiling(16, 32, 16, 64, 8, 2),
}
TF32 = {
    "attention_forward": Tiling(64, 32, 32, 64, 4, 2, "tf32"),
    "attention_outputs": Tiling(32, 32, 32, 64, 8, 1, "tf32"),
    "attention_queries": Tiling(32, 16, 16, 64, 4, 2, "tf32"),
    "attention_keys": Tiling(16, 32, 16, 64, 4, 2, "tf32"),
}
_HALF_NARROW = {
    "attention_forward": Tiling(64, 64, 64, 64, 4, 2),
    "attention_outputs": Tiling(64, 32, 64, 64, 4, 2),
    "attention_queries": Tiling(64, 32, 64, 64, 4, 2),
    "attention_keys": Tiling(32, 32, 64, 64, 4, 2),
    "attention_joint": Tiling(64, 64, 64, 64, 8, 2),
}
_HALF = {
    "attention_forward": Tiling(64, 64, 64, 64, 4, 2),
    "attention_outputs": Tiling(32, 32, 64, 64, 8, 2),
    "attention_queries": Tiling(32, 16, 32, 64, 4, 2),
    "attention_keys": Tiling(32, 32, 64, 64, 4, 1),
}


def tiling(kernel: str, dtype: torch.dtype, width: int, *, masked: bool) -> Tiling | None:
    """Return the tiling of a kernel, None where others serve in place of `attention_joint`.

    Args:
        kernel: Its name.
        dtype: torch.float32, torch.bfloat16 or torch.float16. TF32 multiplies float32 where torch lets matmul use it.
        width: The larger of the head sizes.
        masked: Whether there is a mask, whose tiles take registers.
    """
    if dtype != torch.float32:
        best = (_HALF if masked or width > 64 else _HALF_NARROW).get(kernel)
    else:
        best = (TF32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else FLOAT32).get(kernel)
    if best is None or (kernel == "attention_joint" and dtype == torch.float16):
        return None  # derivatives leave the range of float16
    columns = max(16, 1 << (width - 1).bit_length())  # a power of two that products can take
    return best._replace(chunk=min(best.chunk, columns), out=min(best.out, columns))
