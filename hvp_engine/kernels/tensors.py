"""Hands tensors to the fused kernels: dtype numbers, addresses, and which calls which kernels can serve."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from hvp_engine.kernels.registry import backend_for, intended_backend

__all__ = ["accumulator", "address", "dtype_number", "is_fused", "triton_kernels"]

# The numbers of hvp::Dtype in csrc/include/hvp/dtype.h.
_NUMBERS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_PLAIN_BACKENDS = ("cuda", "torch")  # run the operations of a model as plain PyTorch


def dtype_number(dtype: torch.dtype) -> int:
    """Returns the number that stands for an element type in the native interface."""
    return _NUMBERS[dtype]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Returns the type in which kernels accumulate: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def address(tensor: torch.Tensor | None) -> int:
    """Returns a contiguous tensor's address, 0 for an absent one."""
    return 0 if tensor is None else tensor.data_ptr()


def is_fused(*tensors: torch.Tensor) -> bool:
    """Tells whether fused kernels are to serve these tensors: one device that has a backend of them, dtypes supported.

    Never raises. It is also true where HVP_ENGINE_BACKEND asks for kernels that cannot run on the device: calling them
    then raises BackendError, which plain operations in their place would hide.
    """
    devices = {t.device for t in tensors}
    return (
        all(t.dtype in _NUMBERS for t in tensors)
        and len(devices) == 1
        and intended_backend(devices.pop()) not in _PLAIN_BACKENDS
    )


def triton_kernels(family: str, tensor: torch.Tensor) -> Any:
    """Returns the module of a family's Triton kernels if they serve this tensor, or None if the native ones do."""
    if backend_for(tensor.device) != "triton":
        return None
    return importlib.import_module(f"hvp_engine.kernels.triton.{family}")
