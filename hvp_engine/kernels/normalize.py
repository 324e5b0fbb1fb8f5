"""Normalisation of rows, on the kernels of the device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hvp_engine.kernels.records import NormalizeShape, Operand
from hvp_engine.kernels.registry import implementation

__all__ = ["normalize_backward", "normalize_double_backward", "normalize_forward"]


def normalize_forward(
    shape: NormalizeShape, eps: float, x: Operand, w: Operand, b: Operand, y: Tensor, statistics: Tensor
) -> None:
    """Normalise rows.

    Args:
        shape: Extents.
        eps: Added to the variance (mean square).
        x: Rows.
        w: Scale, a row per group.
        b: Shift, a row per group.
        y: Overwritten, contiguous, dtype of x.
        statistics: Overwritten (batch, rows, 2), accumulator type: mean and reciprocal deviation.
    """
    implementation("normalize", y.device).normalize_forward(shape, eps, x, w, b, y, statistics)


def normalize_backward(
    shape: NormalizeShape, inputs: Sequence[Operand], dx: Tensor | None, dw: Tensor | None, db: Tensor | None
) -> None:
    """Compute the gradients.

    Args:
        shape: Extents.
        inputs: Rows x, scale w, statistics, and upstream gradient g.
        dx: Overwritten; None if not wanted. So are dw and db.
        dw: Gradient of the scale, a row per group.
        db: Gradient of the shift, a row per group.
    """
    x = inputs[0][0]
    assert x is not None
    implementation("normalize", x.device).normalize_backward(shape, inputs, dx, dw, db)


def normalize_double_backward(
    shape: NormalizeShape, inputs: Sequence[Operand], d_g: Tensor, d_x: Tensor | None, d_w: Tensor | None
) -> None:
    """Compute the gradients of <u, dx> + <u_w, dw> + <u_b, db>.

    Args:
        shape: Extents.
        inputs: x, w, statistics, g, and the cotangents u, u_w and u_b; the last two are absent together.
        d_g: Overwritten, wrt g.
        d_x: Overwritten, wrt x; None if not wanted.
        d_w: Overwritten, wrt w; None if not wanted.
    """
    implementation("normalize", d_g.device).normalize_double_backward(shape, inputs, d_g, d_x, d_w)
