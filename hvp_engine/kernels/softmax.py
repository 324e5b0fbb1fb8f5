"""Softmax of rows, on the kernels of the device; all tensors are contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

from hvp_engine.kernels.registry import implementation, optional_implementation

__all__ = ["softmax_backward", "softmax_double_backward", "softmax_forward", "softmax_tangent", "softmax_tangent_ref"]


def softmax_forward(x: Tensor, out: Tensor) -> None:
    """Overwrite `out` with the softmax of the rows (R, C)."""
    implementation("softmax", x.device).softmax_forward(x, out)


def softmax_backward(p: Tensor, g: Tensor, out: Tensor) -> None:
    """Overwrite `out` (K R, C) with p * (g - <p, g>); row r of g meets row r % R of p (R, C)."""
    implementation("softmax", p.device).softmax_backward(p, g, out)


def softmax_double_backward(p: Tensor, g: Tensor, u: Tensor, wrt_x: Tensor | None, wrt_g: Tensor | None) -> None:
    """Overwrite the gradients of <u, p * (g - <p, g>)> wrt the softmax's input and g (K R, C); None if not wanted."""
    implementation("softmax", p.device).softmax_double_backward(p, g, u, wrt_x, wrt_g)


def softmax_tangent_ref(logits: Tensor, statistics: Tensor, factor: Tensor, center: Tensor, tangent: Tensor) -> Tensor:
    """Return the product of `softmax_tangent` in plain PyTorch."""
    return factor[:, None] * (logits - statistics[:, :1]).exp() * (tangent - center[:, None])


def softmax_tangent(
    logits: Tensor, statistics: Tensor, factor: Tensor, center: Tensor, tangent: Tensor, totals: Tensor
) -> None:
    """Turn some columns of a tangent of the logits into those of the softmax's, around a given mean.

    Args:
        logits: Columns of the logits (R, C); rows may be apart, columns not.
        statistics: Of the whole rows (R, 2): largest logit m and 1 / sum(exp(z - m)), accumulator type.
        factor: Factors (R), accumulator type, the softmax's 1 / sum among them; rows with factor 0 become zero.
        center: Mean (R) that is taken off the tangent, accumulator type.
        tangent: Contiguous (R, C); overwritten with factor * exp(z - m) * (tangent - center).
        totals: float64 (R), to which the sums of the new rows are added.
    """
    kernels = optional_implementation("softmax", tangent.device)
    if kernels is None:
        tangent.copy_(softmax_tangent_ref(logits, statistics, factor, center, tangent))
        totals.add_(tangent.sum(1, dtype=torch.float64))
    else:
        kernels.softmax_tangent(logits, statistics, factor, center, tangent, totals)
