"""Softmax of rows on the CPU; arguments as in `hvp_engine.kernels.softmax`."""

from __future__ import annotations

from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.tensors import address, dtype_number

__all__ = ["softmax_backward", "softmax_double_backward", "softmax_forward", "softmax_tangent"]


def softmax_forward(x: Tensor, out: Tensor) -> None:
    """Overwrite `out` with the softmax of the rows (R, C)."""
    rows, columns = x.shape
    native.softmax_forward(dtype_number(x.dtype), address(x), rows, columns, address(out))


def softmax_backward(p: Tensor, g: Tensor, out: Tensor) -> None:
    """Overwrite `out` (K R, C) with p * (g - <p, g>)."""
    rows, columns = g.shape
    native.softmax_backward(dtype_number(g.dtype), address(p), address(g), rows, p.shape[0], columns, address(out))


def softmax_double_backward(p: Tensor, g: Tensor, u: Tensor, wrt_x: Tensor | None, wrt_g: Tensor | None) -> None:
    """Overwrite the gradients of <u, p * (g - <p, g>)> that are wanted."""
    rows, columns = u.shape
    native.softmax_double_backward(
        dtype_number(u.dtype),
        address(p),
        address(g),
        address(u),
        rows,
        p.shape[0],
        columns,
        address(wrt_x),
        address(wrt_g),
    )


def softmax_tangent(
    logits: Tensor, statistics: Tensor, factor: Tensor, center: Tensor, tangent: Tensor, totals: Tensor
) -> None:
    """Overwrite `tangent` (R, C) and add to `totals` (R)."""
    rows, columns = tangent.shape
    native.softmax_tangent(
        dtype_number(tangent.dtype),
        address(logits),
        logits.stride(0),
        address(statistics),
        address(factor),
        address(center),
        rows,
        columns,
        address(tangent),
        address(totals),
    )
