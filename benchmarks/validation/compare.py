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
    """Let HVP_ENGINE_BACKEND name a backend; an empty name lets the package choose."""
    before = os.environ.get("HVP_ENGINE_BACKEND")
    os.environ["HVP_ENGINE_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["HVP_ENGINE_BACKEND"]
        else:
            os.environ["HVP_ENGINE_BACKEND"] = before


def distance(found: Tensor, exact: Tensor, order: float = math.inf) -> float:
    """Norm of the difference, the largest entry by default; NaN where one of them has a NaN."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    if found.shape != exact.shape:
        raise ValueError(f"shapes {tuple(found.shape)} and {tuple(exact.shape)} differ")
    return _norm(found - exact, order)


def _norm(x: Tensor, order: float) -> float:
    return float(torch.linalg.vector_norm(x, order)) if x.numel() else 0.0


def worst(parts: Iterable[Triple], working: torch.dtype | None = None) -> tuple[float, float]:
    """Error and limit, relative to the exact tensor, of the tensor and norm nearest to the limit.

    In the Euclidean norm the limit is twice plain PyTorch's error plus one rounding (64 in fp64). In the maximum norm,
    where single entries decide by chance, both are four times as much; it is there for what a few entries get wrong.

    Args:
        parts: What is compared.
        working: Dtype whose rounding is allowed for, where it is narrower than the result's.
    """
    found = [pair for part in parts for pair in _relative(*part, working)]
    return max(found, key=lambda pair: used(*pair))


def used(error: float, limit: float) -> float:
    """Share of its limit that an error takes; NaN takes more than everything."""
    return float("inf") if math.isnan(error) else error / limit


def _relative(
    found: Tensor, plain: Tensor, exact: Tensor, working: torch.dtype | None
) -> Iterator[tuple[float, float]]:
    dtype = working or found.dtype
    rounding = (64 if dtype == torch.float64 else 1) * torch.finfo(dtype).eps
    for order, slack in ((2, 1), (math.inf, 4)):
        scale = _norm(exact.detach().double(), order) or 1.0
        error, plain_error = (distance(x, exact, order) / scale for x in (found, plain))
        yield error, slack * (2 * plain_error + rounding)
