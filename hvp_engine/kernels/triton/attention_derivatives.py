"""Attention's backward and backward-of-backward: sums over keys for the queries' side, over queries for the keys'.

With P the probabilities, q', k', v' the tangents, dO = grad_out, and mean(X) = rowsum(P * X):
  dP = dO value',  A = scale (q' key' + query k''),  B = dO v'',
  X = dP - mean(dP),  Y = A - mean(A),  Z = X * Y + B,  R = P * (Z - mean(Z)),
  out_grad_out = (P * Y) value + P v',         out_value = (P * Y)' dO,
  out_query = scale (R key + (P * X) k'),      out_key = scale (R' query + (P * X)' q').
The backward pass is the case v' = value without q' and k': then Z = dP, out_query and out_key are the gradients,
and that of the value is P' dO, which `keys_kernel` computes when there is no A.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hvp_engine.kernels.triton.attention_tiles import (
    add_product,
    along,
    centered,
    derivative_terms,
    head_of,
    load_number,
    load_rows,
    scores_of,
    store_rows,
)


@triton.jit
def means_kernel(
    query, key, value, mask, mask_column, statistics, grad_out, tangent_query, tangent_key, tangent_value, means,
    heads, group, queries, keys, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, VALUE_COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, COMPUTED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program per query block and head; fills `means` with those of dP, A and Z.

    mean(X * Y) is the covariance of dP and A under P, merged tile by tile (Chan, Golub, LeVeque 1983): the
    difference mean(dP A) - mean(dP) mean(A) would cancel.
    """
    blocks = tl.cdiv(queries, BLOCK_Q)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_Q
    batch, head = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
    rows = first + tl.arange(0, BLOCK_Q)
    columns, value_columns = tl.arange(0, COLUMNS), tl.arange(0, VALUE_COLUMNS)
    key_at, value_at = head_of(key, batch, head // group), head_of(value, batch, head // group)
    tangent_key_at = head_of(tangent_key, batch, head // group)
    tangent_value_at = head_of(tangent_value, batch, head // group)
    mask_at, statistics_at = head_of(mask, batch, head), head_of(statistics, batch, head)
    q = load_rows(head_of(query, batch, head), query[3], rows, queries, columns, WIDTH, OPERAND)
    tq = load_rows(
        head_of(tangent_query, batch, head), tangent_query[3], rows, queries, columns, WIDTH, OPERAND
    )  # fmt: skip
    g = load_rows(head_of(grad_out, batch, head), grad_out[3], rows, queries, value_columns, VALUE_WIDTH, OPERAND)
    largest = load_number(statistics_at, statistics[3], rows, queries, 0)
    inverse = load_number(statistics_at, statistics[3], rows, queries, 1)

    weight = tl.zeros((BLOCK_Q,), tl.float32)
    mean_x = tl.zeros((BLOCK_Q,), tl.float32)
    mean_y = tl.zeros((BLOCK_Q,), tl.float32)
    mean_z = tl.zeros((BLOCK_Q,), tl.float32)
    end = tl.minimum(keys, first + BLOCK_Q) if CAUSAL else keys
    for start in range(0, end, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        k = load_rows(key_at, key[3], cols, keys, columns, WIDTH, OPERAND)
        v = load_rows(value_at, value[3], cols, keys, value_columns, VALUE_WIDTH, OPERAND)
        tk = load_rows(tangent_key_at, tangent_key[3], cols, keys, columns, WIDTH, OPERAND)
        tv = load_rows(tangent_value_at, tangent_value[3], cols, keys, value_columns, VALUE_WIDTH, OPERAND)
        s = scores_of(
            q, k, mask_at, mask[3], mask_column, rows, cols, queries, keys, scale, CAUSAL, False, PRECISION
        )  # fmt: skip
        p = tl.exp(s - largest[:, None]) * inverse[:, None]
        dp, a, b = derivative_terms(q, g, tq, k, v, tk, tv, scale, False, PRECISION)
        if b is not None:
            mean_z += tl.sum(p * b, 1)
        if a is not None:
            part = tl.sum(p, 1)
            unit = 1.0 / tl.where(part > 0.0, part, 1.0)
            whole = weight + part
            share = part / tl.where(whole > 0.0, whole, 1.0)
            part_y = tl.sum(p * a, 1) * unit
            step_y = part_y - mean_y
            if dp is not None:
                part_x = tl.sum(p * dp, 1) * unit
                step_x = part_x - mean_x
                mean_z += tl.sum(p * (dp - part_x[:, None]) * (a - part_y[:, None]), 1)
                mean_z += step_x * step_y * weight * share
                mean_x += step_x * share
            mean_y += step_y * share
            weight = whole

    to = head_of(means, batch, head) + rows.to(tl.int64) * means[3]
    tl.store(to, mean_x, mask=rows < queries)
    tl.store(to + 1, mean_y, mask=rows < queries)
    tl.store(to + 2, mean_z, mask=rows < queries)


@triton.jit
def queries_kernel(
    query, key, value, mask, mask_column, statistics, grad_out, tangent_query, tangent_key, tangent_value, means,
    out_query, out_grad_out, heads, group, queries, keys, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, VALUE_COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, COMPUTED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program per query block and head; fills `out_query` and `out_grad_out`, where present."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_Q
    batch, head = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
    rows = first + tl.arange(0, BLOCK_Q)
    columns, value_columns = tl.arange(0, COLUMNS), tl.arange(0, VALUE_COLUMNS)
    key_at, value_at = head_of(key, batch, head // group), head_of(value, batch, head // group)
    tangent_key_at = head_of(tangent_key, batch, head // group)
    tangent_value_at = head_of(tangent_value, batch, head // group)
    mask_at, statistics_at, means_at = head_of(mask, batch, head), head_of(statistics, batch, head), head_of(means, batch, head)
    q = load_rows(head_of(query, batch, head), query[3], rows, queries, columns, WIDTH, OPERAND)
    tq = load_rows(
        head_of(tangent_query, batch, head), tangent_query[3], rows, queries, columns, WIDTH, OPERAND
    )  # fmt: skip
    g = load_rows(head_of(grad_out, batch, head), grad_out[3], rows, queries, value_columns, VALUE_WIDTH, OPERAND)
    largest = load_number(statistics_at, statistics[3], rows, queries, 0)
    inverse = load_number(statistics_at, statistics[3], rows, queries, 1)
    mean_x = load_number(means_at, means[3], rows, queries, 0)
    mean_y = load_number(means_at, means[3], rows, queries, 1)
    mean_z = load_number(means_at, means[3], rows, queries, 2)

    to_query = tl.zeros((BLOCK_Q, COLUMNS), tl.float32)
    to_grad_out = tl.zeros((BLOCK_Q, VALUE_COLUMNS), tl.float32)
    end = tl.minimum(keys, first + BLOCK_Q) if CAUSAL else keys
    for start in range(0, end, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        k = load_rows(key_at, key[3], cols, keys, columns, WIDTH, OPERAND)
        v = load_rows(value_at, value[3], cols, keys, value_columns, VALUE_WIDTH, OPERAND)
        tk = load_rows(tangent_key_at, tangent_key[3], cols, keys, columns, WIDTH, OPERAND)
        tv = load_rows(tangent_value_at, tangent_value[3], cols, keys, value_columns, VALUE_WIDTH, OPERAND)
        s = scores_of(
            q, k, mask_at, mask[3], mask_column, rows, cols, queries, keys, scale, CAUSAL, False, PRECISION
        )  # fmt: skip
        p = tl.exp(s - largest[:, None]) * inverse[:, None]
        dp, a, b = derivative_terms(q, g, tq, k, v, tk, tv, scale, False, PRECISION)
        r, px, py = centered(p, dp, a, b, mean_x[:, None], mean_y[:, None], mean_z[:, None])
        if out_query[0] is not None:
            to_query = add_product(to_query, r, k, COMPUTED, PRECISION)
            to_query = add_product(to_query, px, tk, COMPUTED, PRECISION)
        if out_grad_out[0] is not None:
            to_grad_out = add_product(to_grad_out, py, v, COMPUTED, PRECISION)
            to_grad_out = add_product(to_grad_out, p, tv, COMPUTED, PRECISION)

    if out_query[0] is not None:
        to_query *= scale
        store_rows(head_of(out_query, batch, head), out_query[3], rows, queries, columns, WIDTH, to_query)
    if out_grad_out[0] is not None:
        to = head_of(out_grad_out, batch, head)
        store_rows(to, out_grad_out[3], rows, queries, value_columns, VALUE_WIDTH, to_grad_out)


@triton.jit
def keys_kernel(
    query, key, value, mask, mask_column, statistics, grad_out, tangent_query, tangent_key, tangent_value, means,
    out_key, out_value, heads, group, queries, keys, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, VALUE_COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, COMPUTED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program per key block and key head; fills `out_key` and `out_value`, where present."""
    blocks = tl.cdiv(keys, BLOCK_K)
    first = tl.program_id(0) % blocks * BLOCK_K
    key_heads = heads // group
    batch, key_head = tl.program_id(0) // blocks // key_heads, tl.program_id(0) // blocks % key_heads
    cols = first + tl.arange(0, BLOCK_K)
    columns, value_columns = tl.arange(0, COLUMNS), tl.arange(0, VALUE_COLUMNS)
    k = load_rows(head_of(key, batch, key_head), key[3], cols, keys, columns, WIDTH, OPERAND)
    v = load_rows(head_of(value, batch, key_head), value[3], cols, keys, value_columns, VALUE_WIDTH, OPERAND)
    tk = load_rows(head_of(tangent_key, batch, key_head), tangent_key[3], cols, keys, columns, WIDTH, OPERAND)
    tv = load_rows(
        head_of(tangent_value, batch, key_head), tangent_value[3], cols, keys, value_columns, VALUE_WIDTH, OPERAND
    )  # fmt: skip

    to_key = tl.zeros((BLOCK_K, COLUMNS), tl.float32)
    to_value = tl.zeros((BLOCK_K, VALUE_COLUMNS), tl.float32)
    begin = first // BLOCK_Q * BLOCK_Q if CAUSAL else 0
    for head in range(key_head * group, key_head * group + group):
        query_at, grad_out_at = head_of(query, batch, head), head_of(grad_out, batch, head)
        tangent_query_at, mask_at = head_of(tangent_query, batch, head), head_of(mask, batch, head)
        statistics_at, means_at = head_of(statistics, batch, head), head_of(means, batch, head)
        for start in range(begin, queries, BLOCK_Q):
            rows = start + tl.arange(0, BLOCK_Q)
            q = load_rows(query_at, query[3], rows, queries, columns, WIDTH, OPERAND)
            tq = load_rows(tangent_query_at, tangent_query[3], rows, queries, columns, WIDTH, OPERAND)
            g = load_rows(grad_out_at, grad_out[3], rows, queries, value_columns, VALUE_WIDTH, OPERAND)
            largest = load_number(statistics_at, statistics[3], rows, queries, 0)
            inverse = load_number(statistics_at, statistics[3], rows, queries, 1)
            mean_x = load_number(means_at, means[3], rows, queries, 0)
            mean_y = load_number(means_at, means[3], rows, queries, 1)
            mean_z = load_number(means_at, means[3], rows, queries, 2)
            s = scores_of(
                q, k, mask_at, mask[3], mask_column, rows, cols, queries, keys, scale, CAUSAL, True, PRECISION
            )  # fmt: skip
            p = tl.exp(s - largest[None, :]) * inverse[None, :]
            dp, a, b = derivative_terms(q, g, tq, k, v, tk, tv, scale, True, PRECISION)
            r, px, py = centered(p, dp, a, b, mean_x[None, :], mean_y[None, :], mean_z[None, :])
            if out_key[0] is not None:
                to_key = add_product(to_key, r, q, COMPUTED, PRECISION)
                to_key = add_product(to_key, px, tq, COMPUTED, PRECISION)
            if out_value[0] is not None:
                if py is not None:
                    to_value = add_product(to_value, py, g, COMPUTED, PRECISION)
                else:
                    to_value = add_product(to_value, p, g, COMPUTED, PRECISION)

    if out_key[0] is not None:
        to_key *= scale
        store_rows(head_of(out_key, batch, key_head), out_key[3], cols, keys, columns, WIDTH, to_key)
    if out_value[0] is not None:
        to = head_of(out_value, batch, key_head)
        store_rows(to, out_value[3], cols, keys, value_columns, VALUE_WIDTH, to_value)
