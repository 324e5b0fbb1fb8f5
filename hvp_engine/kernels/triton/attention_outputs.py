"""The pass over rows that opens attention's backward of backward: the output's derivative, and all means.

In the notation of attention_derivatives.py, out_grad_out = (P * Y) value + P v'' is also what the means follow from:
mean(Z) = rowsum(dO * out_grad_out) and mean(X) = rowsum(dO * (P value)), as FlashAttention's delta (Dao 2023). So
neither dP nor B is computed here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hvp_engine.kernels.triton.attention_tiles import (
    add_weighted,
    first_products,
    first_slopes,
    head_of,
    load_numbers,
    load_rows,
    own_columns,
    probabilities,
    rounded,
    split_program,
    store_numbers,
    store_rows,
)
from hvp_engine.kernels.triton.attention_variants import attention_variants
from hvp_engine.kernels.triton.resource_case import ResourceCase


@triton.jit
def attention_outputs(
    query, key, value, mask, statistics, grad_out, tangent_query, tangent_key, tangent_value, means, out_grad_out,
    heads, group, queries, keys, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Fill OUT columns of `out_grad_out`, where present, and what they add to each row's means of X, A and Z.

    (P * Y) value is summed as (P * (A - c)) value - mean(A - c) (P value), c near the mean of A so that nothing is
    lost in the difference. The mean is that under the weights as they were rounded for the products: a value that all
    keys share leaves no trace.
    """
    blocks = tl.cdiv(queries, BLOCK_Q)
    batch, head, block = split_program(heads, blocks)
    first = (blocks - 1 - block) * BLOCK_Q  # of causal blocks the longest start first
    rows = first + tl.arange(0, BLOCK_Q)
    columns = own_columns(CHUNK, OUT, WIDTH, VALUE_WIDTH)
    q = head_of(query, batch, head)
    tq = head_of(tangent_query, batch, head) if tangent_query[0] is not None else (None, 0, 0)
    k, v = head_of(key, batch, head // group), head_of(value, batch, head // group)
    tk = head_of(tangent_key, batch, head // group) if tangent_key[0] is not None else (None, 0, 0)
    tv = head_of(tangent_value, batch, head // group) if tangent_value[0] is not None else (None, 0, 0)
    hidden = head_of(mask, batch, head) if mask[0] is not None else (None, 0, 0)
    kept = head_of(statistics, batch, head)
    largest, inverse = load_numbers(kept, rows, queries, 0), load_numbers(kept, rows, queries, 1)
    has_slopes: tl.constexpr = tangent_query[0] is not None or tangent_key[0] is not None

    common = tl.zeros((BLOCK_Q,), tl.float32)
    if has_slopes:
        common = first_slopes(q, tq, k, tk, rows, queries, keys, scale, WIDTH, CHUNK)
    weight = tl.zeros((BLOCK_Q,), tl.float32)
    slope = tl.zeros((BLOCK_Q,), tl.float32)
    of_values = tl.zeros((BLOCK_Q, OUT), tl.float32)
    of_slopes = tl.zeros((BLOCK_Q, OUT), tl.float32)
    of_tangents = tl.zeros((BLOCK_Q, OUT), tl.float32)
    end = tl.minimum(keys, first + BLOCK_Q) if CAUSAL else keys
    for start in range(0, end, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        s, a = first_products(q, tq, k, tk, rows, cols, queries, keys, scale, WIDTH, CHUNK, False, PRECISION)
        p = probabilities(s, hidden, largest, inverse, rows, cols, queries, keys, scale, CAUSAL, False)
        weight += tl.sum(rounded(p, value[0].dtype.element_ty), 1)
        of_tangents = add_weighted(of_tangents, p, tv, cols, keys, columns, VALUE_WIDTH, PRECISION)
        if has_slopes:
            pa = p * (a - common[:, None])
            slope += tl.sum(rounded(pa, value[0].dtype.element_ty), 1)
            of_values = add_weighted(of_values, p, v, cols, keys, columns, VALUE_WIDTH, PRECISION)
            of_slopes = add_weighted(of_slopes, pa, v, cols, keys, columns, VALUE_WIDTH, PRECISION)

    unit = tl.where(weight > 0.0, 1.0 / tl.where(weight > 0.0, weight, 1.0), 0.0)  # no weight: the row sees no key
    mean_y = slope * unit
    of_slopes = (of_slopes - mean_y[:, None] * of_values + of_tangents) * unit[:, None]
    if out_grad_out[0] is not None:
        store_rows(head_of(out_grad_out, batch, head), rows, queries, columns, VALUE_WIDTH, of_slopes)
    to = head_of(means, batch, head)
    if tl.program_id(1) == 0:
        store_numbers(to, rows, queries, 0, mean_y + common)
    if grad_out[0] is not None:
        gradient = load_rows(head_of(grad_out, batch, head), rows, queries, columns, VALUE_WIDTH).to(tl.float32)
        part = 2 * tl.program_id(1)
        store_numbers(to, rows, queries, 1 + part, tl.sum(gradient * of_values, 1) * unit)
        store_numbers(to, rows, queries, 2 + part, tl.sum(gradient * of_slopes, 1))


def resource_cases() -> list[ResourceCase]:
    """List the variants to compile ahead of time."""
    return attention_variants(attention_outputs)
