"""Tile sizes of the attention kernels.

The quickest that were measured on an H100 (benchmarks/gpu/tune_attention.py), and for other GPUs the largest that spill
no registers (benchmarks/gpu/triton_resources.py). They are functions of the architecture, the dtype, the head size and
the presence of a mask alone, and with them the order of all sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = [
    "FLOAT32",
    "TF32",
    "Strip",
    "Tiling",
    "matrix_strip",
    "tiling",
]

MATRIX_BYTES = 512 << 20  # most that the matrices of scores may take where they are formed whole
MATRIX_ROWS = 256  # of a strip, where they fit; with a causal mask, what lies above the diagonal of blocks is left out


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
        key_heads: Key heads of each, with all query heads that share them.
        rows: Query rows of each head.
    """

    entries: int
    key_heads: int
    rows: int


def matrix_strip(dtype: torch.dtype, batch: int, heads: int, key_heads: int, queries: int, keys: int) -> Strip | None:
    """Say how attention's derivatives form whole matrices of scores; None where tiles serve.

    This is the rule: whole matrices in float32, also as TF32, tiles in narrower dtypes.
    """
    if dtype != torch.float32:
        return None
    per_row = 4 * 4 * (heads // key_heads) * keys  # four matrices of four bytes, for one key head
    rows = max(1, min(MATRIX_ROWS, queries, MATRIX_BYTES // per_row))
    fitting = max(1, MATRIX_BYTES // (per_row * rows))
    return Strip(min(batch, max(1, fitting // key_heads)), min(key_heads, fitting), rows)


# Products of three TF32 parts are four times as fast on an H100 as those of float32, and no less accurate.
FLOAT32 = {"attention_forward": Tiling(64, 32, 32, 64, 4, 2, "tf32x3")}
TF32 = {"attention_forward": Tiling(64, 32, 32, 64, 4, 2, "tf32")}
_NARROW = {
    "attention_forward": Tiling(64, 64, 64, 64, 4, 3),
    "attention_outputs": Tiling(64, 32, 64, 64, 4, 3),
    "attention_queries": Tiling(64, 32, 64, 64, 4, 3),
    "attention_keys": Tiling(32, 64, 64, 64, 4, 2),
}
_HOPPER = {
    "attention_forward": Tiling(64, 64, 128, 128, 4, 2),
    "attention_outputs": Tiling(128, 32, 128, 128, 8, 2),
    "attention_queries": Tiling(128, 32, 128, 128, 8, 1),
    "attention_keys": Tiling(32, 128, 128, 128, 8, 1),
}
_HALF = {
    "attention_forward": Tiling(64, 64, 64, 64, 4, 2),
    "attention_outputs": Tiling(32, 32, 64, 64, 8, 2),
    "attention_queries": Tiling(32, 16, 32, 64, 4, 2),
    "attention_keys": Tiling(32, 32, 64, 64, 4, 1),
}


def tiling(kernel: str, dtype: torch.dtype, width: int, *, masked: bool, architecture: int) -> Tiling | None:
    """Return the tiling of a kernel, None where whole matrices serve in its place.

    Args:
        kernel: Its name.
        dtype: torch.float32, torch.bfloat16 or torch.float16. TF32 multiplies float32 where torch lets matmul use it.
        width: The larger of the head sizes.
        masked: Whether there is a mask, whose tiles take registers.
        architecture: Compute capability of the device, such as 90.
    """
    if dtype == torch.float32:
        best = (TF32 if torch.backends.cuda.matmul.fp32_precision == "tf32" else FLOAT32).get(kernel)
    else:
        best = _half(dtype, width, masked, architecture)[kernel]
    if best is None:
        return None
    columns = max(16, 1 << (width - 1).bit_length())  # a power of two that products can take
    return best._replace(chunk=min(best.chunk, columns), out=min(best.out, columns))


def _half(dtype: torch.dtype, width: int, masked: bool, architecture: int) -> dict[str, Tiling]:
    hopper = architecture == 90
    if dtype == torch.float16:  # its products with derivatives are TF32, with twice the bytes
        return _HALF
    if width <= 64 and (hopper or (not masked and architecture < 90)):
        return _NARROW
    return _HOPPER if hopper and not masked and width <= 128 else _HALF
