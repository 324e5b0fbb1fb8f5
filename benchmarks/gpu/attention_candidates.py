"""Tilings of the attention kernels that `tune_attention.py` tries, and the cases that it tries them on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hvp_engine.kernels.triton.attention_tiling import Tiling

__all__ = ["CASES", "Case", "candidates", "usual"]


class Case(NamedTuple):
    """One shape and arithmetic.

    Attributes:
        mode: ``"bf16"``, ``"tf32"``, ``"ieee"`` or ``"tf32x3"``; all but the first multiply float32.
        heads: Heads per batch entry.
        width: Head size.
        batch: Batch entries.
        length: Queries and keys.
    """

    mode: str
    heads: int
    width: int
    batch: int = 8
    length: int = 1024

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all operands."""
        return torch.bfloat16 if self.mode == "bf16" else torch.float32


CASES = tuple(
    Case(mode, heads, width) for width, heads in ((64, 12), (128, 6)) for mode in ("bf16", "tf32", "ieee", "tf32x3")
)

# By kernel: (queries, keys, chunk, out, warps, stages).
_Sizes = tuple[int, int, int, int, int, int]
_BF16_64: dict[str, tuple[_Sizes, ...]] = {
    "attention_forward": (
        (64, 64, 64, 64, 4, 3),
        (64, 64, 64, 64, 4, 4),
        (128, 64, 64, 64, 4, 3),
        (64, 32, 64, 64, 4, 3),
    ),
    "attention_outputs": (
        (64, 32, 64, 64, 4, 3),
        (64, 32, 64, 64, 4, 4),
        (64, 16, 64, 64, 4, 3),
        (64, 64, 64, 64, 4, 2),
        (64, 64, 64, 64, 4, 3),
        (128, 64, 64, 64, 8, 3),
    ),
    "attention_queries": (
        (64, 32, 64, 64, 4, 3),
        (64, 32, 64, 64, 4, 4),
        (64, 64, 64, 64, 4, 2),
        (64, 64, 64, 64, 4, 3),
        (128, 32, 64, 64, 8, 3),
    ),
    "attention_keys": (
        (32, 64, 64, 64, 4, 2),
        (32, 64, 64, 64, 4, 3),
        (32, 64, 64, 64, 4, 4),
        (16, 64, 64, 64, 4, 3),
        (16, 64, 64, 64, 4, 4),
        (64, 64, 64, 64, 4, 2),
        (64, 128, 64, 64, 8, 2),
        (32, 128, 64, 64, 8, 3),
    ),
}
_BF16_128: dict[str, tuple[_Sizes, ...]] = {
    "attention_forward": ((64, 64, 128, 128, 4, 2), (64, 64, 128, 128, 4, 3), (128, 64, 128, 128, 8, 3)),
    "attention_outputs": (
        (128, 32, 128, 128, 8, 2),
        (128, 32, 128, 128, 8, 3),
        (128, 16, 128, 128, 8, 3),
        (64, 16, 128, 128, 4, 3),
    ),
    "attention_queries": (
        (128, 32, 128, 128, 8, 1),
        (128, 32, 128, 128, 8, 2),
        (64, 32, 128, 128, 4, 2),
        (64, 16, 128, 128, 4, 3),
    ),
    "attention_keys": (
        (32, 128, 128, 128, 8, 1),
        (32, 128, 128, 128, 8, 2),
        (16, 128, 128, 128, 8, 2),
        (16, 64, 128, 128, 4, 2),
    ),
}
_FLOAT32: dict[str, tuple[_Sizes, ...]] = {
    "attention_forward": ((64, 32, 32, 64, 4, 2), (64, 64, 32, 64, 8, 2), (128, 32, 32, 64, 8, 2)),
    "attention_outputs": (
        (64, 32, 32, 64, 8, 2),
        (64, 64, 32, 64, 8, 2),
        (64, 32, 64, 64, 4, 2),
        (128, 32, 32, 64, 8, 2),
    ),
    "attention_queries": (
        (64, 32, 32, 64, 8, 1),
        (64, 32, 32, 64, 8, 2),
        (64, 16, 32, 64, 4, 2),
        (64, 32, 64, 64, 8, 2),
    ),
    "attention_keys": ((32, 64, 32, 64, 8, 1), (32, 64, 32, 64, 8, 2), (32, 32, 32, 64, 4, 2), (32, 64, 64, 64, 8, 2)),
}


# The package forms whole matrices in float32, so it has no tilings of these kernels of its own.
_FLOAT32_USUAL = {
    "attention_outputs": (32, 32, 16, 64, 4, 2),
    "attention_queries": (32, 16, 16, 64, 4, 2),
    "attention_keys": (16, 32, 16, 64, 8, 2),
}


def usual(case: Case) -> dict[str, Tiling]:
    """Return the tilings of kernels for which the package has none."""
    return {} if case.mode == "bf16" else {k: Tiling(*sizes, case.mode) for k, sizes in _FLOAT32_USUAL.items()}


def candidates(case: Case, kernel: str) -> list[Tiling]:
    """List the tilings to try for a kernel; float32's are few, for they take longest to compile and to run."""
    if case.mode == "bf16":
        sizes = (_BF16_64 if case.width <= 64 else _BF16_128).get(kernel, ())
        return [Tiling(*numbers) for numbers in sizes]
    return [Tiling(*numbers, case.mode) for numbers in _FLOAT32.get(kernel, ())]
