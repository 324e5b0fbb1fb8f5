"""Cross-entropy of rows of logits, on the kernels of the device: losses, gradient, and its derivative."""

from __future__ import annotations

from torch import Tensor

from hvp_engine.kernels.records import CrossEntropyRows
from hvp_engine.kernels.registry import implementation

__all__ = ["cross_entropy_backward", "cross_entropy_forward", "cross_entropy_hvp"]


def cross_entropy_forward(rows: CrossEntropyRows, statistics: Tensor, loss: Tensor) -> None:
    """Compute row losses and row statistics.

    Args:
        rows: The rows; `count` is R.
        statistics: Overwritten (R, 2), accumulator type: largest logit m and 1 / sum(exp(z - m)).
        loss: Overwritten (R), accumulator type.
    """
    implementation("cross_entropy", rows.logits.device).cross_entropy_forward(rows, statistics, loss)


def cross_entropy_backward(rows: CrossEntropyRows, statistics: Tensor, scale: Tensor, grad: Tensor) -> None:
    """Compute the gradient wrt the logits.

    Args:
        rows: The rows.
        statistics: Statistics (R, 2) of the logits, as `cross_entropy_forward` gives them.
        scale: Upstream gradient (K R), accumulator type.
        grad: Overwritten (K R, C); may be the logits themselves.
    """
    implementation("cross_entropy", rows.logits.device).cross_entropy_backward(rows, statistics, scale, grad)


def cross_entropy_hvp(
    rows: CrossEntropyRows,
    statistics: Tensor,
    scale: Tensor,
    tangent: Tensor,
    product: Tensor | None,
    slope: Tensor | None,
) -> None:
    """Compute derivatives along a tangent of the logits.

    Args:
        rows: The rows.
        statistics: Statistics (R, 2) of the logits, as `cross_entropy_forward` gives them.
        scale: Upstream gradient (K R), accumulator type.
        tangent: Tangent (K R, C).
        product: Overwritten derivative of the gradient (K R, C), may be the tangent itself; None if not wanted.
        slope: Overwritten derivative of the losses (K R), accumulator type; None if not wanted.
    """
    implementation("cross_entropy", rows.logits.device).cross_entropy_hvp(
        rows, statistics, scale, tangent, product, slope
    )
