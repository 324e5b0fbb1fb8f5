"""Softmax rows: forward, backward, both gradients of the backward, and tangents; a program owns its rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hvp_engine.kernels.triton.resource_case import ResourceCase
from hvp_engine.kernels.triton.rows import (
    COUNTS,
    ELEMENTS,
    launch,
    load_wide,
    softmax_statistics,
    tile_of,
    variant,
    wide,
)

__all__ = [
    "resource_cases",
    "softmax_backward",
    "softmax_double_backward",
    "softmax_forward",
    "softmax_tangent",
]


@triton.jit(do_not_specialize=COUNTS)
def softmax_forward_kernel(x, out, rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    at = tl.minimum(row, rows - 1) * columns
    largest, total = softmax_statistics(x + at, columns, BLOCK_ROWS, BLOCK_COLUMNS)
    factor = 1.0 / total
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        value = load_wide(x + at + column, column < columns)
        result = factor[:, None] * tl.exp(value - largest[:, None])
        tl.store(out + at + column, result, mask=(row < rows) & (column < columns))


@triton.jit(do_not_specialize=COUNTS)
def softmax_backward_kernel(p, g, out, rows, base_rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    wide: tl.constexpr = tl.float64 if g.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    at = tl.minimum(row, rows - 1) * columns
    base = tl.minimum(row, rows - 1) % base_rows * columns
    mean = tl.zeros((BLOCK_ROWS,), wide)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < columns
        mean += tl.sum(load_wide(p + base + column, mask) * load_wide(g + at + column, mask), 1)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < columns
        result = load_wide(p + base + column, mask) * (load_wide(g + at + column, mask) - mean[:, None])
        tl.store(out + at + column, result, mask=(row < rows) & mask)


# With a = g - <p, g> and b = u - <p, u>, F = <u, p a> has dF/dg = p b and, through p(x),
# dF/dx = p (a b - <p, a b>).
@triton.jit(do_not_specialize=COUNTS)
def softmax_double_backward_kernel(
    p, g, u, wrt_x, wrt_g, rows, base_rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    wide: tl.constexpr = tl.float64 if g.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    at = tl.minimum(row, rows - 1) * columns
    base = tl.minimum(row, rows - 1) % base_rows * columns
    mean_g = tl.zeros((BLOCK_ROWS,), wide)
    mean_u = tl.zeros((BLOCK_ROWS,), wide)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < columns
        prob = load_wide(p + base + column, mask)
        mean_g += tl.sum(prob * load_wide(g + at + column, mask), 1)
        mean_u += tl.sum(prob * load_wide(u + at + column, mask), 1)
    covariance = tl.zeros((BLOCK_ROWS,), wide)
    if wrt_x is not None:
        for start in range(0, columns, BLOCK_COLUMNS):
            column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
            mask = column < columns
            a = load_wide(g + at + column, mask) - mean_g[:, None]
            b = load_wide(u + at + column, mask) - mean_u[:, None]
            covariance += tl.sum(load_wide(p + base + column, mask) * (a * b), 1)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < columns
        stored = (row < rows) & mask
        prob = load_wide(p + base + column, mask)
        b = load_wide(u + at + column, mask) - mean_u[:, None]
        if wrt_g is not None:
            tl.store(wrt_g + at + column, prob * b, mask=stored)
        if wrt_x is not None:
            a = load_wide(g + at + column, mask) - mean_g[:, None]
            tl.store(wrt_x + at + column, prob * (a * b - covariance[:, None]), mask=stored)


@triton.jit(do_not_specialize=COUNTS)
def softmax_tangent_kernel(
    logits,
    statistics,
    factor,
    center,
    tangent,
    totals,
    row_stride,
    rows,
    columns,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    stored = row < rows
    row = tl.minimum(row, rows - 1)
    f = tl.load(factor + row)
    shift = tl.load(statistics + 2 * row)[:, None]
    mean = tl.load(center + row)[:, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float64)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < columns
        prob = tl.exp(load_wide(logits + row[:, None] * row_stride + column, mask, -float("inf")) - shift)
        value = f[:, None] * prob * (load_wide(tangent + row[:, None] * columns + column, mask) - mean)
        value = tl.where((f != 0)[:, None] & mask, value, 0.0)
        tl.store(tangent + row[:, None] * columns + column, value, mask=stored[:, None] & mask)
        total += value.to(tl.float64)
    tl.store(totals + row, tl.load(totals + row) + tl.sum(total, 1), mask=stored)


def softmax_forward(x: Tensor, out: Tensor) -> None:
    """Overwrite `out` with the softmax of rows (R, C)."""
    rows, columns = x.shape
    tile = tile_of(rows, columns, 2048)
    launch(softmax_forward_kernel, triton.cdiv(rows, tile.rows), x, out, rows, columns, *tile, num_warps=tile.warps)


def softmax_backward(p: Tensor, g: Tensor, out: Tensor) -> None:
    """Overwrite `out` (K R, C) with p * (g - <p, g>); row r of g meets row r % R of p (R, C)."""
    rows, columns = g.shape
    tile = tile_of(rows, columns)
    arguments = (p, g, out, rows, p.shape[0], columns, *tile)
    launch(softmax_backward_kernel, triton.cdiv(rows, tile.rows), *arguments, num_warps=tile.warps)


def softmax_double_backward(p: Tensor, g: Tensor, u: Tensor, wrt_x: Tensor | None, wrt_g: Tensor | None) -> None:
    """Overwrite the gradients (K R, C) of <u, p * (g - <p, g>)> wrt the softmax's input and g, where wanted."""
    rows, columns = u.shape
    tile = tile_of(rows, columns, 2048)
    arguments = (p, g, u, wrt_x, wrt_g, rows, p.shape[0], columns, *tile)
    launch(softmax_double_backward_kernel, triton.cdiv(rows, tile.rows), *arguments, num_warps=tile.warps)


def softmax_tangent(
    logits: Tensor, statistics: Tensor, factor: Tensor, center: Tensor, tangent: Tensor, totals: Tensor
) -> None:
    """Overwrite `tangent` (R, C) and add to `totals` (R); see `hvp_engine.kernels.softmax`."""
    rows, columns = tangent.shape
    tile = tile_of(rows, columns, 2048)
    arguments = (logits, statistics, factor, center, tangent, totals, logits.stride(0), rows, columns, *tile)
    launch(softmax_tangent_kernel, triton.cdiv(rows, tile.rows), *arguments, num_warps=tile.warps)


def _tangent_pointers(element: str) -> dict[str, str]:
    return {"logits tangent": element, "statistics factor center": wide(element), "totals": "fp64"}


def resource_cases() -> list[ResourceCase]:
    """Declare the variants with the widest tiles."""
    tiles = {"BLOCK_ROWS": 1, "BLOCK_COLUMNS": 4096}
    smaller = {"BLOCK_ROWS": 1, "BLOCK_COLUMNS": 2048}
    return [
        case
        for element in ELEMENTS
        for case in (
            variant(softmax_forward_kernel, element, {"x out": element}, smaller, num_warps=8),
            variant(softmax_backward_kernel, element, {"p g out": element}, tiles, num_warps=8),
            variant(softmax_double_backward_kernel, element, {"p g u wrt_x wrt_g": element}, smaller, num_warps=8),
            variant(softmax_tangent_kernel, element, _tangent_pointers(element), smaller, num_warps=8),
        )
    ]
