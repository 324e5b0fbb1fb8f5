"""Attention's backward and backward-of-backward: sums over keys for the queries' side, over queries for the keys'.

With P the probabilities, q', k', v' the tangents, dO = grad_out, and mean(X) = rowsum(P * X):
  dP = dO value',  A = scale (q' key' + query k''),  B = dO v'',
  X = dP - mean(dP),  Y = A - mean(A),  Z = X * Y + B,  R = P * (Z - mean(Z)),
  out_grad_out = (P * Y) value + P v',         out_value = (P * Y)' dO,
  out_query = scale (R key + (P * X) k'),      out_key = scale (R' query + (P * X)' q').
attention_outputs.py computes out_grad_out and the means first. The backward pass is the case v' = value without q' and
k': then Z = dP, out_query and out_key are the gradients, and that of the value is P' dO, which `attention_keys`
computes when there is no A.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hvp_engine.kernels.triton.attention_tiles import (
    add_weighted,
    centered,
    first_products,
    head_of,
    load_means,
    load_numbers,
    own_columns,
    probabilities,
    split_program,
    store_rows,
    value_products,
)
from hvp_engine.kernels.triton.attention_variants import attention_variants
from hvp_engine.kernels.triton.resource_case import ResourceCase


@triton.jit
def attention_queries(
    query, key, value, mask, statistics, grad_out, tangent_query, tangent_key, tangent_value, means,
    out_query, heads, group, queries, keys, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Fill OUT columns of `out_query`."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    batch, head, block = split_program(heads, blocks)
    first = (blocks - 1 - block) * BLOCK_Q
    rows = first + tl.arange(0, BLOCK_Q)
    columns = own_columns(CHUNK, OUT, WIDTH, VALUE_WIDTH)
    q = head_of(query, batch, head)
    tq = head_of(tangent_query, batch, head) if tangent_query[0] is not None else (None, 0, 0)
    g = head_of(grad_out, batch, head) if grad_out[0] is not None else (None, 0, 0)
    k, v = head_of(key, batch, head // group), head_of(value, batch, head // group)
    tk = head_of(tangent_key, batch, head // group) if tangent_key[0] is not None else (None, 0, 0)
    tv = head_of(tangent_value, batch, head // group) if tangent_value[0] is not None else (None, 0, 0)
    hidden = head_of(mask, batch, head) if mask[0] is not None else (None, 0, 0)
    kept = head_of(statistics, batch, head)
    largest, inverse = load_numbers(kept, rows, queries, 0), load_numbers(kept, rows, queries, 1)
    center = head_of(means, batch, head)
    mean_x, mean_y, mean_z = load_means(center, rows, queries, PARTS)

    to_query = tl.zeros((BLOCK_Q, OUT), tl.float32)
    end = tl.minimum(keys, first + BLOCK_Q) if CAUSAL else keys
    for start in range(0, end, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        s, a = first_products(q, tq, k, tk, rows, cols, queries, keys, scale, WIDTH, CHUNK, False, PRECISION)
        a = a if tq[0] is not None or tk[0] is not None else None
        dp, b = value_products(
            g, v, tv, rows, cols, queries, keys, a is not None, VALUE_WIDTH, CHUNK, False, PRECISION
        )  # fmt: skip
        dp = dp if g[0] is not None else None
        b = b if dp is not None and tv[0] is not None else None
        p = probabilities(s, hidden, largest, inverse, rows, cols, queries, keys, scale, CAUSAL, False)
        r, px, _ = centered(p, dp, a, b, mean_x[:, None], mean_y[:, None], mean_z[:, None])
        r = r if (b if a is None else dp) is not None else None
        px = px if a is not None and dp is not None else None
        to_query = add_weighted(to_query, r, k, cols, keys, columns, WIDTH, PRECISION)
        to_query = add_weighted(to_query, px, tk, cols, keys, columns, WIDTH, PRECISION)

    store_rows(head_of(out_query, batch, head), rows, queries, columns, WIDTH, to_query * scale)


@triton.jit
def attention_keys(
    query, key, value, mask, statistics, grad_out, tangent_query, tangent_key, tangent_value, means,
    out_key, out_value, heads, group, queries, keys, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Fill OUT columns of `out_key` and `out_value`, where present, summing over the heads of a group, too."""
    batch, key_head, block = split_program(heads // group, tl.cdiv(keys, BLOCK_K))
    first = block * BLOCK_K
    cols = first + tl.arange(0, BLOCK_K)
    columns = own_columns(CHUNK, OUT, WIDTH, VALUE_WIDTH)
    k, v = head_of(key, batch, key_head), head_of(value, batch, key_head)
    tk = head_of(tangent_key, batch, key_head) if tangent_key[0] is not None else (None, 0, 0)
    tv = head_of(tangent_value, batch, key_head) if tangent_value[0] is not None else (None, 0, 0)

    to_key = tl.zeros((BLOCK_K, OUT), tl.float32)
    to_value = tl.zeros((BLOCK_K, OUT), tl.float32)
    begin = first // BLOCK_Q * BLOCK_Q if CAUSAL else 0
    for member in range(0, group):
        head = key_head * group + member
        q = head_of(query, batch, head)
        tq = head_of(tangent_query, batch, head) if tangent_query[0] is not None else (None, 0, 0)
        g = head_of(grad_out, batch, head) if grad_out[0] is not None else (None, 0, 0)
        hidden = head_of(mask, batch, head) if mask[0] is not None else (None, 0, 0)
        kept = head_of(statistics, batch, head)
        center = head_of(means, batch, head)
        for start in range(begin, queries, BLOCK_Q):
            rows = start + tl.arange(0, BLOCK_Q)
            s, a = first_products(q, tq, k, tk, rows, cols, queries, keys, scale, WIDTH, CHUNK, True, PRECISION)
            a = a if tq[0] is not None or tk[0] is not None else None
            dp, b = value_products(
                g, v, tv, rows, cols, queries, keys, a is not None, VALUE_WIDTH, CHUNK, True, PRECISION
            )  # fmt: skip
            dp = dp if g[0] is not None else None
            b = b if dp is not None and tv[0] is not None else None
            largest, inverse = load_numbers(kept, rows, queries, 0), load_numbers(kept, rows, queries, 1)
            p = probabilities(s, hidden, largest, inverse, rows, cols, queries, keys, scale, CAUSAL, True)
            mean_x, mean_y, mean_z = load_means(center, rows, queries, PARTS)
            r, px, py = centered(p, dp, a, b, mean_x[None, :], mean_y[None, :], mean_z[None, :])
            r = r if (b if a is None else dp) is not None else None
            px = px if a is not None and dp is not None else None
            py = py if a is not None else None
            if out_key[0] is not None:
                to_key = add_weighted(to_key, r, q, rows, queries, columns, WIDTH, PRECISION)
                to_key = add_weighted(to_key, px, tq, rows, queries, columns, WIDTH, PRECISION)
            if out_value[0] is not None:
                if py is not None:
                    to_value = add_weighted(to_value, py, g, rows, queries, columns, VALUE_WIDTH, PRECISION)
                else:
                    to_value = add_weighted(to_value, p, g, rows, queries, columns, VALUE_WIDTH, PRECISION)

    if out_key[0] is not None:
        store_rows(head_of(out_key, batch, key_head), cols, keys, columns, WIDTH, to_key * scale)
    if out_value[0] is not None:
        store_rows(head_of(out_value, batch, key_head), cols, keys, columns, VALUE_WIDTH, to_value)


def resource_cases() -> list[ResourceCase]:
    """List the variants to compile ahead of time."""
    return [case for kernel in (attention_queries, attention_keys) for case in attention_variants(kernel)]
