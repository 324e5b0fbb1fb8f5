"""Normalisation of rows, on the kernels of the device.

An operand is (tensor, batch stride): groups of rows that follow each other at that stride, or 0 for one group that
serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.tensors import address, dtype_number, triton_kernels

__all__ = ["NormalizeShape", "Operand", "normalize_backward", "normalize_double_backward", "normalize_forward"]

Operand = tuple[Tensor | None, int]


class NormalizeShape(NamedTuple):
    """Extents of a call.

    Attributes:
        centered: True for layer norm, False for RMS norm.
        batch: Groups of rows, each with its own row of every parameter.
        rows: Rows per group.
        size: Elements per row.
    """

    centered: bool
    batch: int
    rows: int
    size: int


def _described(shape: NormalizeShape, x: Operand, w: Operand) -> tuple[bool, int, int, int, int, int]:
    assert x[0] is not None and w[0] is not None
    return shape.centered, dtype_number(x[0].dtype), dtype_number(w[0].dtype), shape.batch, shape.rows, shape.size


def _operand(operand: Operand) -> tuple[int, int]:
    return address(operand[0]), operand[1]


def _workspace(shape: NormalizeShape, like: Tensor, planes: int) -> Tensor:
    """Allocates room for the partial rows of `planes` sums over the rows of each group."""
    elements = shape.batch * planes * native.normalize_chunks(shape.rows) * shape.size
    return like.new_empty(elements)


def normalize_forward(
    shape: NormalizeShape, eps: float, x: Operand, w: Operand, b: Operand, y: Tensor, stats: Tensor
) -> None:
    """Normalises rows.

    Args:
        shape: Extents.
        eps: Added to the variance (mean square).
        x: Rows.
        w: Scale, a row per group.
        b: Shift, a row per group.
        y: Overwritten, contiguous, dtype of x.
        stats: Overwritten (batch, rows, 2), accumulator type: mean and reciprocal deviation.
    """
    triton = triton_kernels("normalize", y)
    if triton is not None:
        triton.forward(shape, eps, x, w, b, y, stats)
        return
    native.normalize_forward(
        *_described(shape, x, w), eps, _operand(x), _operand(w), _operand(b), y.data_ptr(), stats.data_ptr()
    )


def normalize_backward(
    shape: NormalizeShape, inputs: Sequence[Operand], dx: Tensor | None, dw: Tensor | None, db: Tensor | None
) -> None:
    """Computes the gradients.

    Args:
        shape: Extents.
        inputs: Rows x, scale w, statistics, and upstream gradient g.
        dx: Overwritten; None if not wanted. So are dw and db.
        dw: Gradient of the scale, a row per group.
        db: Gradient of the shift, a row per group.
    """
    x, w, stats, g = inputs
    assert stats[0] is not None
    triton = triton_kernels("normalize", stats[0])
    if triton is not None:
        triton.backward(shape, inputs, dx, dw, db)
        return
    workspace = None if dw is None and db is None else _workspace(shape, stats[0], 2)
    native.normalize_backward(
        *_described(shape, x, w),
        _operand(x),
        _operand(w),
        _operand(stats),
        _operand(g),
        address(dx),
        address(dw),
        address(db),
        address(workspace),
    )


def normalize_double_backward(
    shape: NormalizeShape, inputs: Sequence[Operand], d_g: Tensor, d_x: Tensor | None, d_w: Tensor | None
) -> None:
    """Computes the gradients of <u, dx> + <u_w, dw> + <u_b, db>.

    Args:
        shape: Extents.
        inputs: x, w, statistics, g, and the cotangents u, u_w and u_b; the last two are absent together.
        d_g: Overwritten, wrt g.
        d_x: Overwritten, wrt x; None if not wanted.
        d_w: Overwritten, wrt w; None if not wanted.
    """
    triton = triton_kernels("normalize", d_g)
    if triton is not None:
        triton.double_backward(shape, inputs, d_g, d_x, d_w)
        return
    x, w, stats, g, u, u_w, u_b = inputs
    assert stats[0] is not None
    workspace = None if d_w is None else _workspace(shape, stats[0], 1)
    native.normalize_double_backward(
        *_described(shape, x, w),
        _operand(x),
        _operand(w),
        _operand(stats),
        _operand(g),
        _operand(u),
        _operand(u_w),
        _operand(u_b),
        d_g.data_ptr(),
        address(d_x),
        address(d_w),
        address(workspace),
    )
