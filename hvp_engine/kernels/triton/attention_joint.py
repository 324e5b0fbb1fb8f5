"""Attention's backward and backward-of-backward for queries, keys and values in one pass over the tiles.

The notation is that of attention_derivatives.py, whose two kernels compute P, A, dP and B of every tile once each; here
they are computed once. A program walks every `splits`-th block of keys of a head, and adds what a tile gives to the
queries to a buffer that no other program writes; `attention_gather` adds the buffers up in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hvp_engine.kernels.triton.attention_tiles import (
    centered,
    head_of,
    load_means,
    load_numbers,
    load_rows,
    probabilities,
    split_program,
    store_rows,
)
from hvp_engine.kernels.triton.attention_variants import attention_variants
from hvp_engine.kernels.triton.resource_case import ResourceCase


@triton.jit
def attention_joint(
    query, key, value, mask, statistics, grad_out, tangent_query, tangent_key, tangent_value, means, parts,
    out_key, out_value, heads, group, queries, keys, scale, splits,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Fill `out_key`, and `out_value` where present, and one split of `parts` (splits, batch, heads, queries, OUT).

    Whole rows of all operands are held at once. Rows of a split that none of its keys is visible to stay as they are.
    """
    batch, key_head, split = split_program(heads // group, splits)
    columns = tl.arange(0, OUT)
    k, v = head_of(key, batch, key_head), head_of(value, batch, key_head)
    tk = head_of(tangent_key, batch, key_head) if tangent_key[0] is not None else (None, 0, 0)
    tv = head_of(tangent_value, batch, key_head) if tangent_value[0] is not None else (None, 0, 0)
    has_slopes: tl.constexpr = tangent_query[0] is not None or tangent_key[0] is not None

    for block in range(split, tl.cdiv(keys, BLOCK_K), splits):
        first = block * BLOCK_K
        cols = first + tl.arange(0, BLOCK_K)
        key_rows = load_rows(k, cols, keys, columns, WIDTH)
        value_rows = load_rows(v, cols, keys, columns, VALUE_WIDTH) if has_slopes else None
        tangent_k = load_rows(tk, cols, keys, columns, WIDTH) if tk[0] is not None else None
        tangent_v = load_rows(tv, cols, keys, columns, VALUE_WIDTH) if tv[0] is not None else None
        to_key = tl.zeros((BLOCK_K, OUT), tl.float32)
        to_value = tl.zeros((BLOCK_K, OUT), tl.float32)
        for member in range(0, group):
            head = key_head * group + member
            q, g = head_of(query, batch, head), head_of(grad_out, batch, head)
            tq = head_of(tangent_query, batch, head) if tangent_query[0] is not None else (None, 0, 0)
            hidden = head_of(mask, batch, head) if mask[0] is not None else (None, 0, 0)
            kept, center = head_of(statistics, batch, head), head_of(means, batch, head)
            part = parts[0] + split * parts[1] + batch * parts[2] + head * parts[3], parts[4], 1
            for start in range(first // BLOCK_Q * BLOCK_Q if CAUSAL else 0, queries, BLOCK_Q):
                rows = start + tl.arange(0, BLOCK_Q)
                query_rows = load_rows(q, rows, queries, columns, WIDTH)
                gradient = load_rows(g, rows, queries, columns, VALUE_WIDTH)
                tangent_q = load_rows(tq, rows, queries, columns, WIDTH) if tq[0] is not None else None
                s = tl.dot(key_rows, tl.trans(query_rows), input_precision=PRECISION)
                a, dp, b = None, None, None
                if has_slopes:
                    a = tl.zeros((BLOCK_K, BLOCK_Q), tl.float32)
                    if tangent_q is not None:
                        a = tl.dot(key_rows, tl.trans(tangent_q), a, input_precision=PRECISION)
                    if tangent_k is not None:
                        a = tl.dot(tangent_k, tl.trans(query_rows), a, input_precision=PRECISION)
                    a *= scale
                    dp = tl.dot(value_rows, tl.trans(gradient), input_precision=PRECISION)
                if tangent_v is not None:
                    b = tl.dot(tangent_v, tl.trans(gradient), input_precision=PRECISION)
                largest, inverse = load_numbers(kept, rows, queries, 0), load_numbers(kept, rows, queries, 1)
                p = probabilities(s, hidden, largest, inverse, rows, cols, queries, keys, scale, CAUSAL, True)
                mean_x, mean_y, mean_z = load_means(center, rows, queries, PARTS)
                r, px, py = centered(p, dp, a, b, mean_x[None, :], mean_y[None, :], mean_z[None, :])
                r = r.to(key_rows.dtype)
                to_key = tl.dot(r, query_rows, to_key, input_precision=PRECISION)
                to_query = tl.dot(tl.trans(r), key_rows, input_precision=PRECISION)
                if tangent_q is not None:
                    to_key = tl.dot(px.to(key_rows.dtype), tangent_q, to_key, input_precision=PRECISION)
                if tangent_k is not None:
                    to_query = tl.dot(tl.trans(px.to(key_rows.dtype)), tangent_k, to_query, input_precision=PRECISION)
                if out_value[0] is not None:
                    weights = py if has_slopes else p
                    to_value = tl.dot(weights.to(key_rows.dtype), gradient, to_value, input_precision=PRECISION)
                # A query row is first met at the split's first block that it sees, and blocks only move on.
                at = part[0] + rows[:, None].to(tl.int64) * part[1] + columns[None, :]
                inside = (rows[:, None] < queries) & (columns[None, :] < WIDTH)
                to_query += tl.load(at, mask=inside & (block != split), other=0.0)
                tl.store(at, to_query, mask=inside)

        store_rows(head_of(out_key, batch, key_head), cols, keys, columns, WIDTH, to_key * scale)
        if out_value[0] is not None:
            store_rows(head_of(out_value, batch, key_head), cols, keys, columns, VALUE_WIDTH, to_value)


@triton.jit
def attention_gather(
    parts, out_query, heads, queries, scale, splits, first_keys,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Fill `out_query` with scale times the sum over the splits; `first_keys` keys are one block of `attention_joint`."""
    batch, head, block = split_program(heads, tl.cdiv(queries, BLOCK_Q))
    rows = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.arange(0, OUT)
    total = tl.zeros((BLOCK_Q, OUT), tl.float32)
    end = tl.minimum(splits, tl.cdiv((block + 1) * BLOCK_Q, first_keys)) if CAUSAL else splits
    for split in range(0, end):
        part = parts[0] + split * parts[1] + batch * parts[2] + head * parts[3], parts[4], 1
        total += load_rows(part, rows, queries, columns, WIDTH)
    store_rows(head_of(out_query, batch, head), rows, queries, columns, WIDTH, total * scale)


def resource_cases() -> list[ResourceCase]:
    """List the variants to compile ahead of time."""
    return attention_variants(attention_joint)
