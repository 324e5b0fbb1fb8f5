"""Arithmetic of the model's products: which dtype the working copy has and which GEMM modes are in force."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.problem.product_switches import HeldSwitches

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


def rounding(precision: Precision) -> float:
    """Return the relative spacing of the numbers that enter matrix products: TF32 has 10 bits after the leading one."""
    return 2.0**-10 if precision == "tf32" else torch.finfo(product_dtype(precision)).eps


def product_mode(precision: Precision) -> AbstractContextManager[None]:
    """Hold the product modes of every backend at what ``precision`` says, whatever the caller's global settings are.

    ``"tf32"`` allows TensorFloat-32 on CUDA; everything else means IEEE float32. CPUs have no TF32: there ``"tf32"``
    runs as float32, which is more accurate, never less. Products of bfloat16 add up in float32. The caller's settings
    come back at the end.

    They are settings of the process: several threads may be inside at once where none or all of them compute in
    ``"tf32"``. One thread may nest any precisions while it is alone inside.

    Raises:
        ConfigurationError: On entering, where another thread is inside with the other mode.
    """
    return HeldSwitches(tf32=precision == "tf32")


@contextlib.contextmanager
def forward_mode(precision: Precision, device: torch.device) -> Iterator[None]:
    """Hold autocast on for ``"bf16"`` and off otherwise while a loss is evaluated.

    The backward passes follow the dtypes that the forward recorded, so that only the forward runs in here. Casts of
    parameters are kept no longer, also where the caller's own autocast would keep them.
    """
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        try:
            yield
        finally:
            torch.clear_autocast_cache()
