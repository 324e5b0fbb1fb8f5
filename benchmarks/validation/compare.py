"""The error rule: at most twice the error of plain PyTorch in the same dtype on the same device, against fp64."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]  # what a kernel found, what plain PyTorch found, the same in fp64


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Lets HVP_ENGINE_BACKEND name a backend; an empty name lets the package choose."""
    before = os.environ.get("HVP_ENGINE_BACKEND")
    os.environ["HVP_ENGINE_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["HVP_ENGINE_BACKEND"]
        else:
            os.environ["HVP_ENGINE_BACKEND"] = before


def distance(found: Tensor, exact: Tensor) -> float:
    """Largest difference; NaN where one of them has a NaN alone."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    if found.shape != exact.shape:
        raise ValueError(f"shapes {tuple(found.shape)} and {tuple(exact.shape)} differ")
    return float((found - exact).abs().max()) if found.numel() else 0.0


def worst(parts: Iterable[Triple], working: torch.dtype | None = None) -> tuple[float, float]:
    """Error and limit, both relative to the exact tensor's largest entry, of the tensor nearest to its limit.

    Args:
        parts: What is compared.
        working: Dtype whose rounding is allowed for, where it is narrower than the result's.

    Returns:
        The error, and the limit: twice plain PyTorch's error plus one rounding (64 in fp64) of the largest entry.
    """
    found = [_relative(*part, working) for part in parts]
    return max(found, key=lambda pair: used(*pair))


def used(error: float, limit: float) -> float:
    """Share of its limit that an error takes; NaN takes more than everything."""
    return float("inf") if math.isnan(error) else error / limit


def _relative(found: Tensor, plain: Tensor, exact: Tensor, working: torch.dtype | None) -> tuple[float, float]:
    dtype = working or found.dtype
    allowed = (64 if dtype == torch.float64 else 1) * torch.finfo(dtype).eps
    scale = float(exact.detach().abs().max()) or 1.0
    return distance(found, exact) / scale, 2 * distance(plain, exact) / scale + allowed
