"""Cross-entropy of rows on the CPU; arguments as in `hvp_engine.kernels.cross_entropy`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.records import CrossEntropyRows
from hvp_engine.kernels.tensors import address, dtype_number

__all__ = ["cross_entropy_backward", "cross_entropy_forward", "cross_entropy_hvp"]


def _described(rows: CrossEntropyRows) -> Any:
    """Describe the rows to the extension."""
    base_rows, classes = rows.logits.shape
    return native.CrossEntropyRows(
        dtype_number(rows.logits.dtype),
        address(rows.logits),
        address(rows.target),
        address(rows.class_weight),
        rows.count,
        base_rows,
        classes,
        rows.ignore_index,
        rows.smoothing,
    )


def cross_entropy_forward(rows: CrossEntropyRows, statistics: Tensor, loss: Tensor) -> None:
    """Fill losses (R) and row statistics (R, 2)."""
    native.cross_entropy_forward(_described(rows), address(statistics), address(loss))


def cross_entropy_backward(rows: CrossEntropyRows, statistics: Tensor, scale: Tensor, grad: Tensor) -> None:
    """Fill the gradient (K R, C), which may be the logits themselves."""
    native.cross_entropy_backward(_described(rows), address(statistics), address(scale), address(grad))


def cross_entropy_hvp(
    rows: CrossEntropyRows,
    statistics: Tensor,
    scale: Tensor,
    tangent: Tensor,
    product: Tensor | None,
    slope: Tensor | None,
) -> None:
    """Fill the products (K R, C), which may be the tangent itself, and slopes (K R), where wanted."""
    native.cross_entropy_hvp(
        _described(rows), address(statistics), address(scale), address(tangent), address(product), address(slope)
    )
