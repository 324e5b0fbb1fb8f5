"""Cross-entropy of rows of logits, on the kernels of the device: losses, gradient, and its derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.tensors import address, dtype_number, triton_kernels

__all__ = ["CrossEntropyRows", "cross_entropy_backward", "cross_entropy_forward", "cross_entropy_hvp"]


@dataclass(frozen=True)
class CrossEntropyRows:
    """What every pass over the rows reads; all tensors are contiguous.

    Attributes:
        logits: Logits (R, C).
        target: Class indices (R), int64.
        class_weight: Class weights (C) in the accumulator type, or None.
        count: Rows of the outputs, a multiple K R of R; row r belongs to row r % R of the logits.
        ignore_index: Target value whose rows have neither loss nor gradient.
        smoothing: Share of the target distribution spread evenly over the classes.
    """

    logits: Tensor
    target: Tensor
    class_weight: Tensor | None
    count: int
    ignore_index: int
    smoothing: float

    def described(self) -> Any:
        """Describes the rows to the native kernels."""
        rows, classes = self.logits.shape
        return native.CrossEntropyRows(
            dtype_number(self.logits.dtype),
            address(self.logits),
            address(self.target),
            address(self.class_weight),
            self.count,
            rows,
            classes,
            self.ignore_index,
            self.smoothing,
        )


def cross_entropy_forward(rows: CrossEntropyRows, norm: Tensor, loss: Tensor) -> None:
    """Computes row losses and softmax norms.

    Args:
        rows: The rows; `count` is R.
        norm: Overwritten (R, 2), accumulator type: largest logit m and 1 / sum(exp(z - m)).
        loss: Overwritten (R), accumulator type.
    """
    triton = triton_kernels("cross_entropy", rows.logits)
    if triton is not None:
        triton.forward(rows, norm, loss)
    else:
        native.cross_entropy_forward(rows.described(), address(norm), address(loss))


def cross_entropy_backward(rows: CrossEntropyRows, norm: Tensor, scale: Tensor, grad: Tensor) -> None:
    """Computes the gradient wrt the logits.

    Args:
        rows: The rows.
        norm: Softmax norms (R, 2).
        scale: Upstream gradient (K R), accumulator type.
        grad: Overwritten (K R, C); may be the logits themselves.
    """
    triton = triton_kernels("cross_entropy", rows.logits)
    if triton is not None:
        triton.backward(rows, norm, scale, grad)
    else:
        native.cross_entropy_backward(rows.described(), address(norm), address(scale), address(grad))


def cross_entropy_hvp(
    rows: CrossEntropyRows, norm: Tensor, scale: Tensor, tangent: Tensor, product: Tensor | None, slope: Tensor | None
) -> None:
    """Computes derivatives along a tangent of the logits.

    Args:
        rows: The rows.
        norm: Softmax norms (R, 2).
        scale: Upstream gradient (K R), accumulator type.
        tangent: Tangent (K R, C).
        product: Overwritten derivative of the gradient (K R, C), may be the tangent itself; None if not wanted.
        slope: Overwritten derivative of the losses (K R), accumulator type; None if not wanted.
    """
    triton = triton_kernels("cross_entropy", rows.logits)
    if triton is not None:
        triton.hvp(rows, norm, scale, tangent, product, slope)
    else:
        native.cross_entropy_hvp(
            rows.described(), address(norm), address(scale), address(tangent), address(product), address(slope)
        )
