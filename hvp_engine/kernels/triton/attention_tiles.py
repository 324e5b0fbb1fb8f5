"""Device functions shared by the attention kernels.

A tensor is a tuple (address, batch stride, head stride, row stride, column stride), one head of it is (address, row
stride, column stride). The address of an absent tensor is None, so is what is computed from it, and a kernel is
compiled without that part. Triton before 3.7 can take None as an argument but not return it: a device function returns
an unused tile in its place, and the kernel, which knows what is absent, puts None there. A tile of scores is laid out
(queries, keys), or (keys, queries) with KEYS_FIRST: the side that a kernel sums over comes last, so that no tile is
transposed.

Rows are read CHUNK columns at a time: the registers that a tile of scores takes do not grow with the head size.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_program(heads, blocks):
    """Return the batch entry, head and block of this program; blocks vary fastest."""
    pair = tl.program_id(0) // blocks
    return (pair // heads).to(tl.int64), (pair % heads).to(tl.int64), tl.program_id(0) % blocks


@triton.jit
def head_of(tensor, batch, head):
    """Return one head of a tensor that is present."""
    return tensor[0] + batch * tensor[1] + head * tensor[2], tensor[3], tensor[4]


@triton.jit
def own_columns(CHUNK: tl.constexpr, OUT: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    """Return the columns of the results that this program computes.

    Where they are all columns, and a chunk too, they are constants: the loads of a row for scores and for results
    become one.
    """
    columns = tl.arange(0, OUT)
    if CHUNK < OUT or OUT < WIDTH or OUT < VALUE_WIDTH:
        columns += tl.program_id(1) * OUT
    return columns


@triton.jit
def load_rows(view, rows, count, columns, WIDTH: tl.constexpr):
    """Load rows of one head: zeros past `count` rows and WIDTH columns."""
    inside = (rows[:, None] < count) & (columns[None, :] < WIDTH)
    return tl.load(view[0] + rows[:, None].to(tl.int64) * view[1] + columns[None, :] * view[2], mask=inside, other=0.0)


@triton.jit
def store_rows(view, rows, count, columns, WIDTH: tl.constexpr, tile):
    """Store what exists of the rows of one head."""
    inside = (rows[:, None] < count) & (columns[None, :] < WIDTH)
    at = view[0] + rows[:, None].to(tl.int64) * view[1] + columns[None, :] * view[2]
    tl.store(at, tile.to(view[0].dtype.element_ty), mask=inside)


@triton.jit
def load_numbers(view, rows, count, COLUMN: tl.constexpr):
    """Load one number per row, 0 past `count`."""
    return tl.load(view[0] + rows.to(tl.int64) * view[1] + COLUMN * view[2], mask=rows < count, other=0.0)


@triton.jit
def store_numbers(view, rows, count, column, numbers):
    """Store one number per row that exists."""
    tl.store(view[0] + rows.to(tl.int64) * view[1] + column * view[2], numbers, mask=rows < count)


@triton.jit
def add_across(total, of_queries, of_keys, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """Add the products of each query row with each key row to a tile of scores."""
    if KEYS_FIRST:
        total = tl.dot(of_keys, tl.trans(of_queries), total, input_precision=PRECISION)
    else:
        total = tl.dot(of_queries, tl.trans(of_keys), total, input_precision=PRECISION)
    return total


@triton.jit
def zero_scores(rows, cols, KEYS_FIRST: tl.constexpr):
    """Return a tile of zeros."""
    if KEYS_FIRST:
        tile = tl.zeros((cols.shape[0], rows.shape[0]), tl.float32)
    else:
        tile = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    return tile


@triton.jit
def per_query(numbers, KEYS_FIRST: tl.constexpr):
    """Shape one number per query so that it broadcasts over a tile of scores."""
    shaped = numbers[None, :] if KEYS_FIRST else numbers[:, None]
    return shaped


@triton.jit
def load_means(view, rows, count, PARTS: tl.constexpr):
    """Load each row's mean of dP, A and Z, the first and last summed over the parts that `attention_outputs` left."""
    mean_x = load_numbers(view, rows, count, 1)
    mean_z = load_numbers(view, rows, count, 2)
    for part in tl.static_range(1, PARTS):
        mean_x += load_numbers(view, rows, count, 1 + 2 * part)
        mean_z += load_numbers(view, rows, count, 2 + 2 * part)
    return mean_x, load_numbers(view, rows, count, 0), mean_z


@triton.jit
def rounded(weights, rows_type: tl.constexpr):
    """Return float32 weights as `add_weighted` rounds them for rows of a type."""
    if rows_type == tl.bfloat16:
        weights = weights.to(tl.bfloat16).to(tl.float32)
    return weights


@triton.jit
def powers(scores, mask):
    """Return the exponential of differences of what `masked` returned."""
    found = tl.exp(scores) if mask[0] is not None else tl.exp2(scores)
    return found


@triton.jit
def probabilities(
    scores, mask, largest, inverse, rows, cols, queries, keys, scale, CAUSAL: tl.constexpr, KEYS_FIRST: tl.constexpr
):
    """Return the softmax of scale scores + mask from what the forward pass kept of each row."""
    scores = masked(scores, mask, rows, cols, queries, keys, scale, CAUSAL, KEYS_FIRST)
    return powers(scores - per_query(largest, KEYS_FIRST), mask) * per_query(inverse, KEYS_FIRST)


@triton.jit
def masked(scores, mask, rows, cols, queries, keys, scale, CAUSAL: tl.constexpr, KEYS_FIRST: tl.constexpr):
    """Return scale scores + mask, times log2(e) without a mask; -inf where a key is hidden or does not exist.

    A mask may hold the least number of float32, which that factor would take out of range.
    """
    row, col = per_query(rows, KEYS_FIRST), per_query(cols, not KEYS_FIRST)
    seen = col < keys
    if CAUSAL:
        seen = seen & (col <= row)
    if mask[0] is not None:
        at = mask[0] + row.to(tl.int64) * mask[1] + col.to(tl.int64) * mask[2]
        given = tl.load(at, mask=(row < queries) & (col < keys), other=0)
        scores *= scale
        if given.dtype == tl.uint8:
            seen = seen & (given != 0)
        else:
            scores += given.to(tl.float32)
    else:
        scores *= scale * 1.4426950408889634
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def first_products(
    q, tangent_q, k, tangent_k, rows, cols, queries, keys, scale,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return query key' and A = scale (q' key' + query k''), unused without tangents."""
    scores = zero_scores(rows, cols, KEYS_FIRST)
    a = zero_scores(rows, cols, KEYS_FIRST)
    for start in range(0, WIDTH, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        query, key = load_rows(q, rows, queries, columns, WIDTH), load_rows(k, cols, keys, columns, WIDTH)
        scores = add_across(scores, query, key, KEYS_FIRST, PRECISION)
        if tangent_q[0] is not None:
            a = add_across(a, load_rows(tangent_q, rows, queries, columns, WIDTH), key, KEYS_FIRST, PRECISION)
        if tangent_k[0] is not None:
            a = add_across(a, query, load_rows(tangent_k, cols, keys, columns, WIDTH), KEYS_FIRST, PRECISION)
    return scores, a * scale


@triton.jit
def first_slopes(
    q, tangent_q, k, tangent_k, rows, queries, keys, scale,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Return each row's plain mean of A over the first keys: what all of them have in common, but for a little."""
    cols = tl.arange(0, 16)
    factor = scale / tl.minimum(keys, 16)
    total = tl.zeros((rows.shape[0],), tl.float32)
    for start in range(0, WIDTH, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        if tangent_q[0] is not None:
            key = tl.sum(load_rows(k, cols, keys, columns, WIDTH).to(tl.float32), 0)
            total += tl.sum(load_rows(tangent_q, rows, queries, columns, WIDTH).to(tl.float32) * key[None, :], 1)
        if tangent_k[0] is not None:
            tangent = tl.sum(load_rows(tangent_k, cols, keys, columns, WIDTH).to(tl.float32), 0)
            total += tl.sum(load_rows(q, rows, queries, columns, WIDTH).to(tl.float32) * tangent[None, :], 1)
    return total * factor


@triton.jit
def value_products(
    g, v, tangent_v, rows, cols, queries, keys, WANTED: tl.constexpr,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return dP = dO value', if WANTED, and B = dO v''; unused without an output gradient or tangent."""
    dp = zero_scores(rows, cols, KEYS_FIRST)
    b = zero_scores(rows, cols, KEYS_FIRST)
    if g[0] is not None:
        for start in range(0, WIDTH, CHUNK):
            columns = start + tl.arange(0, CHUNK)
            grad_out = load_rows(g, rows, queries, columns, WIDTH)
            if WANTED:
                dp = add_across(dp, grad_out, load_rows(v, cols, keys, columns, WIDTH), KEYS_FIRST, PRECISION)
            if tangent_v[0] is not None:
                b = add_across(b, grad_out, load_rows(tangent_v, cols, keys, columns, WIDTH), KEYS_FIRST, PRECISION)
    return dp, b


@triton.jit
def centered(p, dp, a, b, mean_x, mean_y, mean_z):
    """Return R = P (Z - mean Z), P X and P Y; p, unused, where nothing enters."""
    r, px, py = p, p, p
    if a is not None:
        y = a - mean_y
        py = p * y
        if dp is not None:
            x = dp - mean_x
            px = p * x
            z = x * y
            if b is not None:
                z += b
            r = p * (z - mean_z)
    elif b is not None:
        r = p * (b - mean_z)
    return r, px, py


@triton.jit
def add_weighted(total, weights, view, at, count, columns, WIDTH: tl.constexpr, PRECISION: tl.constexpr):
    """Return total + weights rows; nothing is added where a factor is absent."""
    if weights is not None and view[0] is not None:
        rows = load_rows(view, at, count, columns, WIDTH)
        if rows.dtype == tl.float16:
            # Derivatives leave the range of float16; TF32 holds the rows exactly and has float32's range.
            total = tl.dot(weights, rows.to(tl.float32), total, input_precision="tf32")
        else:
            total = tl.dot(weights.to(rows.dtype), rows, total, input_precision=PRECISION)
    return total
