"""Device functions shared by the attention kernels.

A tensor is a tuple (address, batch stride, head stride, row stride) with contiguous columns; an absent one has
the address None, its tile is None, and whatever needs it is left out when a kernel is compiled. A tile of
scores is laid out (queries, keys), or (keys, queries) with KEYS_FIRST, so that either side can be the one that
a kernel sums over without transposing the tile.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_of(tensor, batch, head):
    """Returns the address of one head of a tensor."""
    pointer = tensor[0]
    if pointer is not None:
        pointer += batch.to(tl.int64) * tensor[1] + head.to(tl.int64) * tensor[2]
    return pointer


@triton.jit
def load_rows(pointer, row_stride, rows, count, columns, WIDTH: tl.constexpr, OPERAND: tl.constexpr):
    """Loads rows of one head as operand of products: zeros past `count` rows and WIDTH columns."""
    tile = None
    if pointer is not None:
        inside = (rows[:, None] < count) & (columns[None, :] < WIDTH)
        at = pointer + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
        tile = tl.load(at, mask=inside, other=0.0).to(OPERAND)
    return tile


@triton.jit
def store_rows(pointer, row_stride, rows, count, columns, WIDTH: tl.constexpr, tile):
    """Stores the rows of one head that exist."""
    inside = (rows[:, None] < count) & (columns[None, :] < WIDTH)
    at = pointer + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
    tl.store(at, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def load_number(pointer, row_stride, rows, count, COLUMN: tl.constexpr):
    """Loads one number per row, 0 past `count`."""
    return tl.load(pointer + rows.to(tl.int64) * row_stride + COLUMN, mask=rows < count, other=0.0)


@triton.jit
def across(of_queries, of_keys, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """Multiplies each query row with each key row."""
    if KEYS_FIRST:
        tile = tl.dot(of_keys, tl.trans(of_queries), input_precision=PRECISION)
    else:
        tile = tl.dot(of_queries, tl.trans(of_keys), input_precision=PRECISION)
    return tile


@triton.jit
def along(rows, KEYS_FIRST: tl.constexpr):
    """Shapes one value per query so that it meets a tile of scores."""
    if KEYS_FIRST:
        shaped = rows[None, :]
    else:
        shaped = rows[:, None]
    return shaped


@triton.jit
def scores_of(
    query, key, mask, mask_row, mask_column, rows, cols, queries, keys, scale,
    CAUSAL: tl.constexpr, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns scale query key' + mask; -inf where a key is hidden or does not exist."""
    scores = across(query, key, KEYS_FIRST, PRECISION) * scale
    row = along(rows, KEYS_FIRST)
    col = along(cols, not KEYS_FIRST)
    seen = col < keys
    if CAUSAL:
        seen = seen & (col <= row)
    if mask is not None:
        at = mask + row.to(tl.int64) * mask_row + col.to(tl.int64) * mask_column
        given = tl.load(at, mask=(row < queries) & (col < keys), other=0)
        if mask.dtype.element_ty == tl.uint8:
            seen = seen & (given != 0)
        else:
            scores += given.to(tl.float32)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def derivative_terms(
    query, grad_out, tangent_query, key, value, tangent_key, tangent_value, scale,
    KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns dP = dO value', A = scale (q' key' + query k'') and B = dO v''; None where nothing enters."""
    dp = None
    a = None
    b = None
    if tangent_query is not None:
        a = across(tangent_query, key, KEYS_FIRST, PRECISION)
    if tangent_key is not None:
        other = across(query, tangent_key, KEYS_FIRST, PRECISION)
        if a is not None:
            a += other
        else:
            a = other
    if a is not None:
        a *= scale
        if grad_out is not None:
            dp = across(grad_out, value, KEYS_FIRST, PRECISION)
    if grad_out is not None:
        if tangent_value is not None:
            b = across(grad_out, tangent_value, KEYS_FIRST, PRECISION)
    return dp, a, b


@triton.jit
def centered(p, dp, a, b, mean_x, mean_y, mean_z):
    """Returns R = P (Z - mean Z), P X and P Y; None where nothing enters."""
    r = None
    px = None
    py = None
    z = b
    if a is not None:
        y = a - mean_y
        py = p * y
        if dp is not None:
            x = dp - mean_x
            px = p * x
            if b is not None:
                z = x * y + b
            else:
                z = x * y
    if z is not None:
        r = p * (z - mean_z)
    return r, px, py


@triton.jit
def add_product(total, weights, rows, COMPUTED: tl.constexpr, PRECISION: tl.constexpr):
    """Returns total + weights rows; nothing is added where a factor is absent."""
    if weights is not None:
        if rows is not None:
            total = tl.dot(weights.to(COMPUTED), rows.to(COMPUTED), total, input_precision=PRECISION)
    return total
