"""Arithmetic of the model's products: which dtype the working copy has and which GEMM modes are in force."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch

from hvp_engine.errors import ConfigurationError

Precision = Literal["fp64", "fp32", "tf32", "bf16"]


def check_precision(precision: str) -> None:
    """Raise ConfigurationError unless ``precision`` is one of the four modes."""
    if precision not in get_args(Precision):
        raise ConfigurationError(f"precision={precision!r} is not one of {', '.join(get_args(Precision))}.")


def working_dtype(precision: Precision) -> torch.dtype:
    """Choose the dtype of parameters, vectors and products: float64 for ``"fp64"``, else float32."""
    return torch.float64 if precision == "fp64" else torch.float32


def product_dtype(precision: Precision) -> torch.dtype:
    """Choose the dtype of the operands of matrix products: bfloat16 under ``"bf16"``, else the working dtype."""
    return torch.bfloat16 if precision == "bf16" else working_dtype(precision)


@contextlib.contextmanager
def product_mode(precision: Precision) -> Iterator[None]:
    """Hold the float32 product modes of every backend at what ``precision`` says.

    ``"tf32"`` allows TensorFloat-32 on CUDA; everything else means IEEE float32, whatever the caller's global settings
    are. CPUs have no TF32: there ``"tf32"`` runs as float32, which is more accurate, never less.
    """
    backends: tuple[Any, ...] = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    )
    before = [backend.fp32_precision for backend in backends]
    cuda_mode = "tf32" if precision == "tf32" else "ieee"
    try:
        for backend, mode in zip(backends, (cuda_mode, cuda_mode, "ieee", "ieee"), strict=True):
            backend.fp32_precision = mode
        yield
    finally:
        for backend, mode in zip(backends, before, strict=True):
            backend.fp32_precision = mode


@contextlib.contextmanager
def forward_mode(precision: Precision, device: torch.device) -> Iterator[None]:
    """Hold autocast on for ``"bf16"`` and off otherwise while a loss is evaluated.

    The backward passes follow the dtypes that the forward recorded, so that only the forward runs in here.
    """
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield
