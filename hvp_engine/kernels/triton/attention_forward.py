"""Attention's forward pass: online softmax over tiles of keys (Dao et al. 2022, FlashAttention)."""

from __future__ import annotations

import triton
import triton.language as tl

from hvp_engine.kernels.triton.attention_tiles import (
    add_weighted,
    first_products,
    head_of,
    masked,
    own_columns,
    powers,
    split_program,
    store_numbers,
    store_rows,
)
from hvp_engine.kernels.triton.attention_variants import attention_variants
from hvp_engine.kernels.triton.resource_case import ResourceCase


@triton.jit
def attention_forward(
    query, key, value, mask, statistics, out, heads, group, queries, keys, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Fill OUT columns of `out`, and `statistics`: each row's largest score and 1 / sum of exponentials."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    batch, head, block = split_program(heads, blocks)
    first = (blocks - 1 - block) * BLOCK_Q  # of causal blocks the longest start first
    rows = first + tl.arange(0, BLOCK_Q)
    columns = own_columns(CHUNK, OUT, WIDTH, VALUE_WIDTH)
    q, k, v = head_of(query, batch, head), head_of(key, batch, head // group), head_of(value, batch, head // group)
    hidden = head_of(mask, batch, head) if mask[0] is not None else (None, 0, 0)

    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    result = tl.zeros((BLOCK_Q, OUT), tl.float32)
    end = tl.minimum(keys, first + BLOCK_Q) if CAUSAL else keys
    for start in range(0, end, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        s, _ = first_products(
            q, (None, 0, 0), k, (None, 0, 0), rows, cols, queries, keys, scale, WIDTH, CHUNK, False, PRECISION
        )
        s = masked(s, hidden, rows, cols, queries, keys, scale, CAUSAL, False)
        new = tl.maximum(largest, tl.max(s, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen no key yet
        p = powers(s - shift[:, None], hidden)
        decay = powers(largest - shift, hidden)
        total = total * decay + tl.sum(p, 1)
        result = add_weighted(result * decay[:, None], p, v, cols, keys, columns, VALUE_WIDTH, PRECISION)
        largest = new

    blind = total == 0.0  # rows that see no key give zeros
    inverse = tl.where(blind, 0.0, 1.0 / tl.where(blind, 1.0, total))
    store_rows(head_of(out, batch, head), rows, queries, columns, VALUE_WIDTH, result * inverse[:, None])
    if tl.program_id(1) == 0:
        kept = head_of(statistics, batch, head)
        store_numbers(kept, rows, queries, 0, tl.where(largest == float("-inf"), 0.0, largest))
        store_numbers(kept, rows, queries, 1, inverse)


def resource_cases() -> list[ResourceCase]:
    """List the variants to compile ahead of time."""
    return attention_variants(attention_forward)
