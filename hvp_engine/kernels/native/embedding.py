"""Rows of a table on the CPU: gathered by PyTorch, summed by the extension."""

from __future__ import annotations

import torch
from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.tensors import address, dtype_number

__all__ = ["gather_rows", "sum_rows"]


def gather_rows(table: Tensor, tokens: Tensor, rows: Tensor) -> None:
    """Fill `rows` (N, d) with rows of the table (V, d); negative tokens gather zeros."""
    nowhere = tokens < 0
    if not bool(nowhere.any()):
        torch.index_select(table, 0, tokens, out=rows)
        return
    torch.index_select(table, 0, tokens.clamp(min=0), out=rows)
    rows.masked_fill_(nowhere.unsqueeze(1), 0)


def sum_rows(grad: Tensor, sorted_tokens: Tensor, order: Tensor, table: Tensor) -> None:
    """Fill the table (V, d) with sums of the rows of `grad` (N, d).

    Args:
        grad: Contiguous rows.
        sorted_tokens: Tokens in ascending order; negative ones are left out.
        order: Row of `grad` of each.
        table: Overwritten, contiguous.
    """
    native.embedding_backward(
        dtype_number(grad.dtype),
        address(order),
        address(sorted_tokens),
        sorted_tokens.shape[0],
        address(grad),
        table.shape[0],
        table.shape[1],
        address(table),
    )
