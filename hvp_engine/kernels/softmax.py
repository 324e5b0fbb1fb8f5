"""Softmax of rows, on the kernels of the device; all tensors are contiguous."""

from __future__ import annotations

from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.tensors import address, dtype_number, triton_kernels

__all__ = ["softmax_backward", "softmax_double_backward", "softmax_forward", "softmax_tangent", "softmax_tangent_ref"]


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


def softmax_tangent_ref(logits: Tensor, norm: Tensor, factor: Tensor, center: Tensor, tangent: Tensor) -> Tensor:
    """Plain PyTorch reference of `softmax_tangent`; returns the product."""
    return factor[:, None] * (logits - norm[:, :1]).exp() * (tangent - center[:, None])


def softmax_tangent(
    logits: Tensor, norm: Tensor, factor: Tensor, center: Tensor, tangent: Tensor, totals: Tensor
) -> None:
    """Turns some columns of a tangent of the logits into those of the softmax's, around a given mean.

    Args:
        logits: Columns of the logits (R, C); rows may be apart, columns not.
        norm: Of the whole rows (R, 2): largest logit m and 1 / sum(exp(z - m)), accumulator type.
        factor: Factors (R), accumulator type, the softmax's 1 / sum among them; rows with factor 0 become zero.
        center: Mean (R) that is taken off the tangent, accumulator type.
        tangent: Contiguous (R, C); overwritten with factor * exp(z - m) * (tangent - center).
        totals: float64 (R), to which the sums of the new rows are added.
    """
    triton = triton_kernels("softmax", tangent)
    if triton is not None:
        triton.tangent(logits, norm, factor, center, tangent, totals)
        return
    rows, columns = tangent.shape
    native.softmax_tangent(
        dtype_number(tangent.dtype),
        address(logits),
        logits.stride(0),
        address(norm),
        address(factor),
        address(center),
        rows,
        columns,
        address(tangent),
        address(totals),
    )
