"""Embedding: gathered rows, and their gradient summed without atomic operations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvp_engine.kernels.triton.resource_case import ResourceCase
from hvp_engine.kernels.triton.rows import ELEMENTS, launch, load_wide, variant

__all__ = ["gather_rows", "resource_cases", "sum_rows"]

_FEWEST_COLUMNS, _MOST_COLUMNS = 16, 256
_TOKENS = 8  # whose rows are in flight together


@triton.jit
def embedding_gather(table, tokens, out, columns, BLOCK: tl.constexpr):
    tiles = tl.cdiv(columns, BLOCK)
    position = (tl.program_id(0) // tiles).to(tl.int64)
    column = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + position)
    value = tl.load(table + token * columns + column, mask=(token >= 0) & (column < columns), other=0.0)
    tl.store(out + position * columns + column, value, mask=column < columns)


@triton.jit
def embedding_scatter(order, starts, grad, table, columns, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    wide: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    tiles = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    column = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)[None, :]
    end = tl.load(starts + row + 1)
    total = tl.zeros((TOKENS, BLOCK), wide)
    for first in range(tl.load(starts + row), end, TOKENS):
        position = first + tl.arange(0, TOKENS)[:, None]
        token = tl.load(order + position, mask=position < end, other=0)
        total += load_wide(grad + token * columns + column, (position < end) & (column < columns))
    tl.store(table + row * columns + column, tl.sum(total, 0)[None, :], mask=column < columns)


def _block(columns: int, most: int) -> int:
    return max(_FEWEST_COLUMNS, min(int(triton.next_power_of_2(columns)), most))


def gather_rows(table: Tensor, tokens: Tensor, rows: Tensor) -> None:
    """Fill `rows` (N, d) with rows of the table (V, d); negative tokens gather zeros."""
    table, tokens, columns = table.contiguous(), tokens.contiguous(), table.shape[1]
    block = _block(columns, 4 * _MOST_COLUMNS)
    launch(embedding_gather, tokens.shape[0] * triton.cdiv(columns, block), table, tokens, rows, columns, block)


def sum_rows(grad: Tensor, sorted_tokens: Tensor, order: Tensor, table: Tensor) -> None:
    """Fill the table (V, d) with sums of the rows of `grad` (N, d).

    Args:
        grad: Contiguous rows.
        sorted_tokens: Tokens in ascending order; negative ones are left out.
        order: Row of `grad` of each.
        table: Overwritten, contiguous.
    """
    rows, columns = table.shape
    ids = torch.arange(rows + 1, device=sorted_tokens.device)
    starts = torch.searchsorted(sorted_tokens, ids)
    block = _block(columns, _MOST_COLUMNS)
    arguments = (order, starts, grad, table, columns, _TOKENS, block)
    launch(embedding_scatter, rows * triton.cdiv(columns, block), *arguments)


def resource_cases() -> list[ResourceCase]:
    """Declare the variants with the widest blocks."""
    return [
        case
        for element in ELEMENTS
        for case in (
            variant(embedding_gather, element, {"table out": element, "tokens": "i64"}, {"BLOCK": 4 * _MOST_COLUMNS}),
            variant(
                embedding_scatter,
                element,
                {"grad table": element, "order starts": "i64"},
                {"TOKENS": _TOKENS, "BLOCK": _MOST_COLUMNS},
            ),
        )
    ]
