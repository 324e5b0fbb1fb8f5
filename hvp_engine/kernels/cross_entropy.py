"""Cross-entropy of rows of logits, on the kernels of the device: losses, gradient, and its derivative."""

from __future__ import annotations

from torch import Tensor

from hvp_engine.kernels.records import CrossEntropyRows
from hvp_engine.kernels.registry import implementation

__all__ = ["CrossEntropyRows", "cross_entropy_backward", "cross_entropy_forward", "cross_entropy_hvp"]


def cross_entropy_forward(rows: CrossEntropyRows, norm: Tensor, loss: Tensor) -> None:
    """Compute row losses and softmax norms.

    Args:
        rows: The rows; `count` is R.
        norm: Overwritten (R, 2), accumulator type: largest logit m and 1 / sum(exp(z - m)).
        loss: Overwritten (R), accumulator type.
    """
    implementation("cross_entropy", rows.logits.device).cross_entropy_forward(rows, norm, loss)


def cross_entropy_backward(rows: CrossEntropyRows, norm: Tensor, scale: Tensor, grad: Tensor) -> None:
    """Compute the gradient wrt the logits.

    Args:
        rows: The rows.
        norm: Softmax norms (R, 2).
        scale: Upstream gradient (K R), accumulator type.
        grad: Overwritten (K R, C); may be the logits themselves.
    """
    implementation("cross_entropy", rows.logits.device).cross_entropy_backward(rows, norm, scale, grad)


def cross_entropy_hvp(
    rows: CrossEntropyRows, norm: Tensor, scale: Tensor, tangent: Tensor, product: Tensor | None, slope: Tensor | None
) -> None:
    """Compute derivatives along a tangent of the logits.

    Args:
        rows: The rows.
        norm: Softmax norms (R, 2).
        scale: Upstream gradient (K R), accumulator type.
        tangent: Tangent (K R, C).
        product: Overwritten derivative of the gradient (K R, C), may be the tangent itself; None if not wanted.
        slope: Overwritten derivative of the losses (K R), accumulator type; None if not wanted.
    """
    implementation("cross_entropy", rows.logits.device).cross_entropy_hvp(rows, norm, scale, tangent, product, slope)
