"""Normalisation of rows on the CPU; arguments as in `hvp_engine.kernels.normalize`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.records import NormalizeShape, Operand
from hvp_engine.kernels.tensors import address, dtype_number

__all__ = ["normalize_backward", "normalize_double_backward", "normalize_forward"]


def _described(shape: NormalizeShape, x: Operand, w: Operand) -> tuple[bool, int, int, int, int, int]:
    assert x[0] is not None and w[0] is not None
    return shape.centered, dtype_number(x[0].dtype), dtype_number(w[0].dtype), shape.batch, shape.rows, shape.size


def _operand(operand: Operand) -> tuple[int, int]:
    return address(operand[0]), operand[1]


def _workspace(shape: NormalizeShape, like: Tensor | None, planes: int) -> Tensor:
    """Allocate room for the partial rows of `planes` sums over the rows of each group."""
    assert like is not None
    elements = shape.batch * planes * native.normalize_chunks(shape.rows) * shape.size
    return like.new_empty(elements)


def normalize_forward(
    shape: NormalizeShape, eps: float, x: Operand, w: Operand, b: Operand, y: Tensor, statistics: Tensor
) -> None:
    """Fill y and the statistics of its rows."""
    native.normalize_forward(
        *_described(shape, x, w), eps, _operand(x), _operand(w), _operand(b), y.data_ptr(), statistics.data_ptr()
    )


def normalize_backward(
    shape: NormalizeShape, inputs: Sequence[Operand], dx: Tensor | None, dw: Tensor | None, db: Tensor | None
) -> None:
    """Fill the gradients that are wanted."""
    x, w, statistics, g = inputs
    workspace = None if dw is None and db is None else _workspace(shape, statistics[0], 2)
    native.normalize_backward(
        *_described(shape, x, w),
        _operand(x),
        _operand(w),
        _operand(statistics),
        _operand(g),
        address(dx),
        address(dw),
        address(db),
        address(workspace),
    )


def normalize_double_backward(
    shape: NormalizeShape, inputs: Sequence[Operand], d_g: Tensor, d_x: Tensor | None, d_w: Tensor | None
) -> None:
    """Fill the gradients of the gradients that are wanted."""
    x, w, statistics, g, u, u_w, u_b = inputs
    workspace = None if d_w is None else _workspace(shape, statistics[0], 1)
    native.normalize_double_backward(
        *_described(shape, x, w),
        _operand(x),
        _operand(w),
        _operand(statistics),
        _operand(g),
        _operand(u),
        _operand(u_w),
        _operand(u_b),
        d_g.data_ptr(),
        address(d_x),
        address(d_w),
        address(workspace),
    )
