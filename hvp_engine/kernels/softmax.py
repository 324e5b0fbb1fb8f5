"""Softmax of rows, on the kernels of the device; all tensors are contiguous."""

from __future__ import annotations

from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.tensors import address, dtype_number, triton_kernels

__all__ = ["softmax_backward", "softmax_double_backward", "softmax_forward"]


def softmax_forward(x: Tensor, out: Tensor) -> None:
    """Overwrites `out` with the softmax of the rows (R, C)."""
    triton = triton_kernels("softmax", x)
    if triton is not None:
        triton.forward(x, out)
        return
    rows, columns = x.shape
    native.softmax_forward(dtype_number(x.dtype), address(x), rows, columns, address(out))


def softmax_backward(p: Tensor, g: Tensor, out: Tensor) -> None:
    """Overwrites `out` (K R, C) with p * (g - <p, g>); row r of g meets row r % R of p (R, C)."""
    triton = triton_kernels("softmax", p)
    if triton is not None:
        triton.backward(p, g, out)
        return
    rows, columns = g.shape
    native.softmax_backward(dtype_number(g.dtype), address(p), address(g), rows, p.shape[0], columns, address(out))


def softmax_double_backward(p: Tensor, g: Tensor, u: Tensor, wrt_x: Tensor | None, wrt_g: Tensor | None) -> None:
    """Overwrites the gradients of <u, p * (g - <p, g>)> wrt the softmax's input and g (K R, C); None if not wanted."""
    triton = triton_kernels("softmax", p)
    if triton is not None:
        triton.double_backward(p, g, u, wrt_x, wrt_g)
        return
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
