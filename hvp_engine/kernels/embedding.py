"""Rows of a table, gathered and summed, on the kernels of the device."""

from __future__ import annotations

import torch
from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.tensors import address, dtype_number, triton_kernels

__all__ = ["gather_rows", "sum_rows"]


def gather_rows(table: Tensor, tokens: Tensor) -> Tensor:
    """Returns rows (N, d) of a table (V, d) at int64 tokens (N); negative tokens gather zeros."""
    triton = triton_kernels("embedding", table)
    if triton is not None:
        rows = table.new_empty(tokens.shape[0], table.shape[1])
        triton.gather(table.contiguous(), tokens.contiguous(), rows)
        return rows
    nowhere = tokens < 0
    if not bool(nowhere.any()):
        return table.index_select(0, tokens)
    return table.index_select(0, tokens.clamp(min=0)).masked_fill_(nowhere.unsqueeze(1), 0)


def sum_rows(grad: Tensor, tokens: Tensor, table_rows: int) -> Tensor:
    """Returns a table (V, d) with the sums of rows (N, d) at their tokens (N); negative tokens are left out."""
    grad = grad.contiguous()
    table = grad.new_empty(table_rows, grad.shape[1])
    sorted_tokens, order = torch.sort(tokens, stable=True)
    triton = triton_kernels("embedding", grad)
    if triton is not None:
        triton.scatter(sorted_tokens, order, grad, table)
        return table
    native.embedding_backward(
        dtype_number(grad.dtype),
        address(order),
        address(sorted_tokens),
        tokens.shape[0],
        address(grad),
        table_rows,
        table.shape[1],
        address(table),
    )
    return table
