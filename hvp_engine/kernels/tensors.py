"""How tensors are told to the compiled kernels: dtype numbers and addresses."""

from __future__ import annotations

import torch

__all__ = ["ELEMENT_TYPES", "accumulator", "address", "dtype_number"]

# The numbers of hvp::Dtype in csrc/include/hvp/dtype.h.
# int8 is that of rows with scales, hvp_engine.kernels.scaled_rows.
_NUMBERS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.bool: 3, torch.int8: 4}
ELEMENT_TYPES = frozenset(_NUMBERS) - {torch.bool, torch.int8}
"""Dtypes that fused operations compute with."""


def dtype_number(dtype: torch.dtype) -> int:
    """Return the number that stands for a dtype in the native interface."""
    return _NUMBERS[dtype]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which kernels accumulate: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def address(tensor: torch.Tensor | None) -> int:
    """Return a contiguous tensor's address, 0 for an absent one."""
    return 0 if tensor is None else tensor.data_ptr()
