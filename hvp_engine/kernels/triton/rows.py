"""What the kernels on rows share: loads in the accumulator type, row statistics, tile sizes, launches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from hvp_engine.kernels.triton.launching import run
from hvp_engine.kernels.triton.resource_case import ResourceCase

__all__ = ["COUNTS", "ELEMENTS", "Tile", "launch", "load_wide", "softmax_statistics", "tile_of", "variant", "wide"]

ELEMENTS = ("fp32", "bf16", "fp64")

# Arguments that count rows, or tell them apart. Triton makes a variant of its own for an integer that is 1, and for one
# that 16 divides: of columns and strides these are worth it, since they say how wide a load may be, of these never.
COUNTS = (
    *("rows", "base_rows", "tokens", "count", "chunk_count", "first"),
    *("statistics_stride", "ignore_index"),
)

_TILE_ELEMENTS = 4096
_MOST_ROWS = 64


@triton.jit
def load_wide(pointers, mask, other=0.0):
    """Load elements in the type they are computed in: float64 stays, everything else becomes float32."""
    values = tl.load(pointers, mask=mask, other=other)
    return values.to(tl.float64 if values.dtype == tl.float64 else tl.float32)


@triton.jit
def softmax_statistics(rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Return largest element m and sum of exp(z - m) of rows, in one read (Milakov and Gimelshein, 2018).

    Every lane has its own running maximum and sum. `rows` are pointers (BLOCK_ROWS, 1) to their first elements.
    """
    wide: tl.constexpr = tl.float64 if rows.dtype.element_ty == tl.float64 else tl.float32
    # Not -inf: the difference of two of those is NaN, and masked rows may start with them.
    shift = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), -3.0e38, wide)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), wide)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        value = load_wide(rows + column, column < columns, -float("inf"))
        # Of exp(shift - new shift) and exp(value - new shift) one is always 1.
        factor = tl.exp(-tl.abs(value - shift))
        is_larger = value > shift
        total = tl.where(is_larger, total * factor + 1.0, total + factor)
        shift = tl.where(is_larger, value, shift)
    largest = tl.max(shift, 1)
    return largest, tl.sum(total * tl.exp(shift - largest[:, None]), 1)


class Tile(NamedTuple):
    """Rows and columns that a program holds at once, powers of two."""

    rows: int
    columns: int

    @property
    def warps(self) -> int:
        """Warps per program."""
        return 8 if self.rows * self.columns >= 2048 else 4


def tile_of(rows: int, columns: int, elements: int = _TILE_ELEMENTS) -> Tile:
    """Choose a tile for a matrix; it depends on the shape only, and with it the order of all sums."""
    wide = min(triton.next_power_of_2(columns), elements)
    return Tile(min(triton.next_power_of_2(rows), elements // wide, _MOST_ROWS), wide)


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first tensor.

    Args:
        kernel: The `triton.jit` function.
        programs: Programs of the one-dimensional grid; none is no launch.
        arguments: Arguments of the kernel.
        options: Constants of the kernel, and `num_warps`.

    Raises:
        BackendError: The kernel cannot be compiled or launched.
    """
    if programs == 0:
        return
    tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
    run(kernel, (programs,), tensor, *arguments, **options)


def wide(element: str) -> str:
    """Return the accumulator type of an element type, both as Triton names them."""
    return "fp64" if element == "fp64" else "fp32"


def variant(
    kernel: Any, label: str, pointers: Mapping[str, str | None], constants: Mapping[str, object], num_warps: int = 4
) -> ResourceCase:
    """Describe a variant of a kernel for ahead-of-time compilation.

    Args:
        kernel: The `triton.jit` function.
        label: What tells the variant from the kernel's others.
        pointers: Element types by names of pointers, several with spaces between them; None for absent ones.
        constants: Values of the constants. Every other argument is a 32-bit integer.
        num_warps: As the launch sets it.
    """
    types = {name: element for names, element in pointers.items() for name in names.split()}
    fixed = {**constants, **{name: None for name, element in types.items() if element is None}}
    signature = {name: f"*{types[name]}" if name in types else "i32" for name in kernel.arg_names if name not in fixed}
    return ResourceCase(kernel, label, signature, fixed, num_warps)
