"""Rows of a table, gathered and summed, on the kernels of the device."""

from __future__ import annotations

import torch
from torch import Tensor

from hvp_engine.kernels.registry import implementation

__all__ = ["gather_rows", "sum_rows"]


def gather_rows(table: Tensor, tokens: Tensor) -> Tensor:
    """Return rows (N, d) of a table (V, d) at int64 tokens (N); negative tokens gather zeros."""
    rows = table.new_empty(tokens.shape[0], table.shape[1])
    implementation("embedding", table.device).gather_rows(table, tokens, rows)
    return rows


def sum_rows(grad: Tensor, tokens: Tensor, table_rows: int) -> Tensor:
    """Return a table (V, d) with the sums of rows (N, d) at their tokens (N); negative tokens are left out."""
    grad = grad.contiguous()
    table = grad.new_empty(table_rows, grad.shape[1])
    sorted_tokens, order = torch.sort(tokens, stable=True)
    implementation("embedding", grad.device).sum_rows(grad, sorted_tokens, order, table)
    return table
