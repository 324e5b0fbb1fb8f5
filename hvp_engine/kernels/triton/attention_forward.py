"""Attention's forward pass: online softmax over tiles of keys (Dao et al. 2022, FlashAttention)."""

from __future__ import annotations

import triton
import triton.language as tl

from hvp_engine.kernels.triton.attention_tiles import add_product, head_of, load_rows, scores_of, store_rows


@triton.jit
def forward_kernel(
    query, key, value, mask, mask_column, statistics, out, heads, group, queries, keys, scale,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, VALUE_COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, COMPUTED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program per query block and head; fills `out` and `statistics` (largest score, 1 / sum of exp)."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_Q  # of causal blocks the longest start first
    batch, head = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
    rows = first + tl.arange(0, BLOCK_Q)
    columns, value_columns = tl.arange(0, COLUMNS), tl.arange(0, VALUE_COLUMNS)
    key_at, value_at = head_of(key, batch, head // group), head_of(value, batch, head // group)
    mask_at = head_of(mask, batch, head)
    q = load_rows(head_of(query, batch, head), query[3], rows, queries, columns, WIDTH, OPERAND)

    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    result = tl.zeros((BLOCK_Q, VALUE_COLUMNS), tl.float32)
    end = tl.minimum(keys, first + BLOCK_Q) if CAUSAL else keys
    for start in range(0, end, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        k = load_rows(key_at, key[3], cols, keys, columns, WIDTH, OPERAND)
        v = load_rows(value_at, value[3], cols, keys, value_columns, VALUE_WIDTH, OPERAND)
        s = scores_of(
            q, k, mask_at, mask[3], mask_column, rows, cols, queries, keys, scale, CAUSAL, False, PRECISION
        )  # fmt: skip
        new = tl.maximum(largest, tl.max(s, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen no key yet
        p = tl.exp(s - shift[:, None])
        decay = tl.exp(largest - shift)
        total = total * decay + tl.sum(p, 1)
        result = add_product(result * decay[:, None], p, v, COMPUTED, PRECISION)
        largest = new

    blind = total == 0.0  # rows that see no key give zeros
    inverse = tl.where(blind, 0.0, 1.0 / tl.where(blind, 1.0, total))
    result *= inverse[:, None]
    store_rows(head_of(out, batch, head), out[3], rows, queries, value_columns, VALUE_WIDTH, result)
    to = head_of(statistics, batch, head) + rows.to(tl.int64) * statistics[3]
    tl.store(to, tl.where(largest == float("-inf"), 0.0, largest), mask=rows < queries)
    tl.store(to + 1, inverse, mask=rows < queries)
