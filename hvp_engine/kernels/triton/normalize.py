"""Layer and RMS normalisation of rows: forward, backward, backward of the backward.

The formulas are those of csrc/cpu/normalize.cpp. A program owns a chunk of rows of one group and reads it from
memory once (later passes find it in the cache); parameter gradients are summed over the chunk, and the
partial rows in a second, equally deterministic step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hvp_engine.kernels.records import NormalizeShape, Operand
from hvp_engine.kernels.triton.resource_case import ResourceCase
from hvp_engine.kernels.triton.rows import COUNTS, ELEMENTS, Tile, launch, load_wide, variant, wide

__all__ = ["normalize_backward", "normalize_double_backward", "normalize_forward", "resource_cases"]

_TILE_ELEMENTS = 1024
_FEWEST_ROWS = 4
_MOST_ROWS = 16
_WARPS = 8
_ENOUGH_PROGRAMS = 256  # chunks get longer only when there are more than this many of them


@triton.jit
def _place(batch, rows, BLOCK_ROWS: tl.constexpr):
    """Return group, chunk, its first row, its rows, and which exist; the groups of a chunk follow each other."""
    program = tl.program_id(0).to(tl.int64)
    first = program // batch * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)[:, None]
    return (
        program % batch,
        program // batch,
        first,
        tl.minimum(row, (rows - first - 1).to(tl.int32)),
        row < rows - first,
    )


@triton.jit
def _sums(values):
    return tl.sum(values, 1)[:, None]


@triton.jit
def _load_centered(x, column, mask, mean):
    """Load elements minus their mean; zero beyond the row, so that sums may run over whole tiles."""
    return tl.where(mask, load_wide(x + column, mask) - mean, 0.0)


@triton.jit(do_not_specialize=COUNTS)
def normalize_forward_kernel(
    x,
    x_stride,
    w,
    w_stride,
    b,
    b_stride,
    y,
    statistics,
    batch,
    rows,
    size,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    wide: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    group, _, first, row, stored = _place(batch, rows, BLOCK_ROWS)
    xs = x + (group * x_stride + first * size) + row * size
    mean = tl.zeros((BLOCK_ROWS, 1), wide)
    if CENTERED:
        for start in range(0, size, BLOCK_COLUMNS):
            column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
            mean += _sums(load_wide(xs + column, column < size))
        mean /= size
    # The second pass corrects the rounding of the mean.
    shift = tl.zeros((BLOCK_ROWS, 1), wide)
    second = tl.zeros((BLOCK_ROWS, 1), wide)
    for start in range(0, size, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        d = _load_centered(xs, column, column < size, mean)
        shift += _sums(d)
        second += _sums(d * d)
    if CENTERED:
        shift /= size
        mean += shift
        second = second / size - shift * shift
    else:
        second /= size
    rstd = 1.0 / tl.sqrt(second + EPS)
    index = group * rows + first
    tl.store(statistics + 2 * index + 2 * row, mean, mask=stored)
    tl.store(statistics + 2 * index + 2 * row + 1, rstd, mask=stored)
    ys = y + index * size + row * size
    for start in range(0, size, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < size
        scaled = (load_wide(xs + column, mask) - mean) * rstd * load_wide(w + group * w_stride + column, mask)
        shifted = scaled + load_wide(b + group * b_stride + column, mask)
        tl.store(ys + column, shifted, mask=stored & mask)


@triton.jit(do_not_specialize=COUNTS)
def normalize_backward_kernel(
    x,
    x_stride,
    w,
    w_stride,
    statistics,
    statistics_stride,
    g,
    g_stride,
    dx,
    partial_dw,
    partial_db,
    batch,
    rows,
    size,
    CENTERED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    wide: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    group, chunk, first, row, stored = _place(batch, rows, BLOCK_ROWS)
    xs = x + (group * x_stride + first * size) + row * size
    gs = g + (group * g_stride + first * size) + row * size
    ws = w + group * w_stride
    mean = tl.load(statistics + (group * statistics_stride + 2 * first) + 2 * row)
    rstd = tl.load(statistics + (group * statistics_stride + 2 * first) + 2 * row + 1)
    mean_wg = tl.zeros((BLOCK_ROWS, 1), wide)
    wg_xhat = tl.zeros((BLOCK_ROWS, 1), wide)
    if dx is not None:
        for start in range(0, size, BLOCK_COLUMNS):
            column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
            mask = column < size
            wg = load_wide(ws + column, mask) * load_wide(gs + column, mask)
            if CENTERED:
                mean_wg += _sums(wg)
            wg_xhat += _sums(wg * (_load_centered(xs, column, mask, mean) * rstd))
        mean_wg /= size
        wg_xhat /= size
    partial_row = (chunk * batch + group) * size
    for start in range(0, size, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < size
        xhat = _load_centered(xs, column, mask, mean) * rstd
        upstream = load_wide(gs + column, mask)
        if dx is not None:
            wg = load_wide(ws + column, mask) * upstream
            result = rstd * (wg - mean_wg - xhat * wg_xhat)
            tl.store(dx + (group * rows + first) * size + row * size + column, result, mask=stored & mask)
        if partial_dw is not None:
            products = tl.sum(tl.where(stored, upstream * xhat, 0.0), 0)[None, :]
            tl.store(partial_dw + partial_row + column, products, mask=mask)
        if partial_db is not None:
            sums = tl.sum(tl.where(stored, upstream, 0.0), 0)[None, :]
            tl.store(partial_db + partial_row + column, sums, mask=mask)


@triton.jit
def _double_backward_means(
    xs, us, gs, ws, u_ws, mean, rstd, size, NEED_X: tl.constexpr, CENTERED: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """Return means over rows of u, u xhat, w g, w g xhat, u w g, u_w g and u_w g xhat; those not needed are zero."""
    zero = tl.zeros_like(mean)
    mean_u, u_xhat, mean_wg, wg_xhat, u_wg, mean_q, q_xhat = zero, zero, zero, zero, zero, zero, zero
    for start in range(0, size, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < size
        xhat = _load_centered(xs, column, mask, mean) * rstd
        u = load_wide(us + column, mask)
        if CENTERED:
            mean_u += _sums(u)
        u_xhat += _sums(u * xhat)
        if NEED_X:
            g = load_wide(gs + column, mask)
            wg = load_wide(ws + column, mask) * g
            if CENTERED:
                mean_wg += _sums(wg)
            wg_xhat += _sums(wg * xhat)
            u_wg += _sums(u * wg)
            if u_ws is not None:
                q = load_wide(u_ws + column, mask) * g
                if CENTERED:
                    mean_q += _sums(q)
                q_xhat += _sums(q * xhat)
    return mean_u / size, u_xhat / size, mean_wg / size, wg_xhat / size, u_wg / size, mean_q / size, q_xhat / size


@triton.jit(do_not_specialize=COUNTS)
def normalize_double_backward_kernel(
    x,
    x_stride,
    w,
    w_stride,
    statistics,
    statistics_stride,
    g,
    g_stride,
    u,
    u_stride,
    u_w,
    u_w_stride,
    u_b,
    u_b_stride,
    d_g,
    d_x,
    partial_dw,
    batch,
    rows,
    size,
    CENTERED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    group, chunk, first, row, stored = _place(batch, rows, BLOCK_ROWS)
    xs = x + (group * x_stride + first * size) + row * size
    gs = g + (group * g_stride + first * size) + row * size
    us = u + (group * u_stride + first * size) + row * size
    ws = w + group * w_stride
    u_ws = None if u_w is None else u_w + group * u_w_stride
    mean = tl.load(statistics + (group * statistics_stride + 2 * first) + 2 * row)
    rstd = tl.load(statistics + (group * statistics_stride + 2 * first) + 2 * row + 1)
    mean_u, u_xhat, mean_wg, wg_xhat, u_wg, mean_q, q_xhat = _double_backward_means(
        xs, us, gs, ws, u_ws, mean, rstd, size, d_x is not None, CENTERED, BLOCK_COLUMNS
    )
    along_xhat = u_wg - mean_u * mean_wg - u_xhat * wg_xhat
    at = (group * rows + first) * size + row * size
    for start in range(0, size, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < size
        xhat = _load_centered(xs, column, mask, mean) * rstd
        scale = load_wide(ws + column, mask)
        upstream = load_wide(gs + column, mask)
        projected = load_wide(us + column, mask) - mean_u - xhat * u_xhat
        to_g = rstd * scale * projected
        if u_w is not None:
            along_w = load_wide(u_ws + column, mask)
            to_g += along_w * xhat + load_wide(u_b + group * u_b_stride + column, mask)
        tl.store(d_g + at + column, to_g, mask=stored & mask)
        if d_x is not None:
            projected_wg = scale * upstream - mean_wg - xhat * wg_xhat
            to_x = -rstd * rstd * (wg_xhat * projected + u_xhat * projected_wg + xhat * along_xhat)
            if u_w is not None:
                to_x += rstd * (along_w * upstream - mean_q - xhat * q_xhat)
            tl.store(d_x + at + column, to_x, mask=stored & mask)
        if partial_dw is not None:
            products = tl.sum(tl.where(stored, rstd * upstream * projected, 0.0), 0)[None, :]
            tl.store(partial_dw + (chunk * batch + group) * size + column, products, mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def normalize_add_chunks(partial, out, elements, chunk_count, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Sum rows of `elements` numbers."""
    element = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), partial.dtype.element_ty)
    for first in range(0, chunk_count, BLOCK_ROWS):
        chunk = (first + tl.arange(0, BLOCK_ROWS)[:, None]).to(tl.int64)
        mask = (chunk < chunk_count) & (element < elements)
        total += load_wide(partial + chunk * elements + element, mask)
    tl.store(out + element, tl.sum(total, 0)[None, :], mask=element < elements)


def _tile(rows: int, size: int) -> Tile:
    """Choose the rows of a chunk and the columns read together, by the shape alone."""
    enough = triton.next_power_of_2(triton.cdiv(rows, _ENOUGH_PROGRAMS))
    tall = min(max(enough, _FEWEST_ROWS), _MOST_ROWS, triton.next_power_of_2(rows))
    return Tile(tall, min(triton.next_power_of_2(size), _TILE_ELEMENTS // tall))


def _run(kernel: Any, shape: NormalizeShape, operands: Sequence[Any], **options: Any) -> None:
    centered, batch, rows, size = shape
    tile = _tile(rows, size)
    programs = batch * triton.cdiv(rows, tile.rows)
    options |= {"CENTERED": centered, "BLOCK_ROWS": tile.rows, "BLOCK_COLUMNS": tile.columns}
    launch(kernel, programs, *operands, batch, rows, size, **options, num_warps=_WARPS)


def _add_chunks(partial: Tensor | None, out: Tensor | None) -> None:
    if partial is None or out is None:
        return
    elements = out.numel()
    tile = Tile(32, 64)
    arguments = (partial, out, elements, partial.shape[0], *tile)
    launch(normalize_add_chunks, triton.cdiv(elements, tile.columns), *arguments, num_warps=4)


def _partial(like: Tensor | None, statistics: Tensor, shape: NormalizeShape) -> Tensor | None:
    """Allocate the partial rows (chunks, ...) of a parameter gradient."""
    _, _, rows, size = shape
    if like is None:
        return None
    return statistics.new_empty(triton.cdiv(rows, _tile(rows, size).rows), like.numel())


def normalize_forward(
    shape: NormalizeShape, eps: float, x: Operand, w: Operand, b: Operand, y: Tensor, statistics: Tensor
) -> None:
    """Fill y and the statistics of its rows; see `hvp_engine.kernels.normalize` for all arguments."""
    _run(normalize_forward_kernel, shape, (*x, *w, *b, y, statistics), EPS=eps)


def normalize_backward(
    shape: NormalizeShape,
    inputs: Sequence[Operand],
    dx: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
) -> None:
    """Fill the gradients that are wanted."""
    statistics = inputs[2][0]
    assert statistics is not None
    partials = (_partial(dw, statistics, shape), _partial(db, statistics, shape))
    _run(normalize_backward_kernel, shape, (*(part for pair in inputs for part in pair), dx, *partials))
    _add_chunks(partials[0], dw)
    _add_chunks(partials[1], db)


def normalize_double_backward(
    shape: NormalizeShape,
    inputs: Sequence[Operand],
    d_g: Tensor,
    d_x: Tensor | None,
    d_w: Tensor | None,
) -> None:
    """Fill the gradients of the gradients that are wanted."""
    statistics = inputs[2][0]
    assert statistics is not None
    partial = _partial(d_w, statistics, shape)
    _run(normalize_double_backward_kernel, shape, (*(part for pair in inputs for part in pair), d_g, d_x, partial))
    _add_chunks(partial, d_w)


def resource_cases() -> list[ResourceCase]:
    """Declare the variants with all results wanted, centred, for many rows."""
    cases = []
    for element in ELEMENTS:
        accumulator = wide(element)
        tiles = {"BLOCK_ROWS": _MOST_ROWS, "BLOCK_COLUMNS": _TILE_ELEMENTS // _MOST_ROWS}
        constants = {"CENTERED": True, **tiles}
        forward_pointers = {"x w b y": element, "statistics": accumulator}
        gradients = {"x w g dx": element, "statistics partial_dw partial_db": accumulator}
        second = {"x w g u u_w u_b d_g d_x": element, "statistics partial_dw": accumulator}
        sums = {"partial": accumulator, "out": element}
        cases += [
            variant(normalize_forward_kernel, element, forward_pointers, {"EPS": 1e-5, **constants}, _WARPS),
            variant(normalize_backward_kernel, element, gradients, constants, _WARPS),
            variant(normalize_double_backward_kernel, element, second, constants, _WARPS),
            variant(normalize_add_chunks, element, sums, {"BLOCK_ROWS": 32, "BLOCK_COLUMNS": 64}),
        ]
    return cases
