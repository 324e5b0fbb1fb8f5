"""Tensors that are not one block of numbers at regular distances: sparse, nested and quantised ones."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dense_parts", "kind_of"]


def kind_of(tensor: Tensor) -> str | None:
    """Say in a word what a tensor is if not a dense one; None for dense ones."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    return "quantised" if tensor.is_quantized else None


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """List the dense tensors that a tensor's numbers are in: itself, or what another kind is made of.

    Args:
        tensor: Any layout; components of a nested one come in order.

    Returns:
        Tensors that change whenever the tensor's numbers do. Layouts that only oneDNN knows are made dense.
    """
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    return [tensor if tensor.layout == torch.strided else tensor.to_dense()]
