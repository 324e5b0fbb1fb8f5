"""Twice-differentiable softmax: forward, gradient, and both gradients of the gradient in one pass each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.softmax import softmax_backward, softmax_double_backward, softmax_forward
from hvp_engine.ops.applies import fused_applies
from hvp_engine.ops.arguments import check_tensor, run_plain
from hvp_engine.ops.autograd import BatchedFunction
from hvp_engine.ops.third import LastDerivative, keep_arguments
from hvp_engine.ops.vmap import fold_rows
from hvp_engine.ops.written_out import softmax_second

__all__ = ["softmax", "softmax_ref"]


class _Softmax(BatchedFunction):
    """Probabilities of rows (R, C)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x.contiguous()
        output = torch.empty_like(x)
        softmax_forward(x, output)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, p = ctx.saved_tensors
        result: Tensor = _SoftmaxBackward.apply(x, p.detach(), grads[0])
        return result

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        x, p = ctx.saved_tensors
        result: Tensor = _SoftmaxBackward.apply(x, p.detach(), tangents[0])
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        base, _, unfold = fold_rows(info.batch_size, [(args[0], in_dims[0])], [])
        return unfold(_Softmax.apply(base[0])), 0


class _SoftmaxBackward(BatchedFunction):
    """p * (g - <p, g>) for rows of g (K * R, C); x (R, C) takes part for its derivative only."""

    @staticmethod
    def forward(x: Tensor, p: Tensor, g: Tensor) -> Tensor:
        p, g = p.contiguous(), g.contiguous()
        out = torch.empty_like(g)
        softmax_backward(p, g, out)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wants_x, _, wants_g = ctx.needs_input_grad
        if grads[0] is None or not (wants_x or wants_g):
            return None, None, None
        x, p, g = ctx.saved_tensors
        wrt_x, wrt_g = _SoftmaxDoubleBackward.apply(x, p, g, grads[0], wants_x, wants_g)
        if wants_x and g.shape[0] != x.shape[0]:
            wrt_x = wrt_x.unflatten(0, (-1, x.shape[0])).sum(0)
        return wrt_x if wants_x else None, None, wrt_g if wants_g else None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        x_t, _, g_t = tangents
        x, p, g = ctx.saved_tensors
        result = None
        if x_t is not None:  # the third derivative of log-sum-exp is symmetric: the same pass serves both directions
            repeated = x_t.repeat(g.shape[0] // max(x.shape[0], 1), 1)
            result = _SoftmaxDoubleBackward.apply(x, p, g, repeated, True, False)[0]
        if g_t is not None:
            part = _SoftmaxBackward.apply(x, p, g_t)
            result = part if result is None else result + part
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        base, rows, unfold = fold_rows(
            info.batch_size, [(args[0], in_dims[0]), (args[1], in_dims[1])], [(args[2], in_dims[2])]
        )
        return unfold(_SoftmaxBackward.apply(*base, *rows)), 0


class _SoftmaxDoubleBackward(LastDerivative):
    """Gradients of <u, p * (g - <p, g>)> wrt the softmax's input x and wrt g; empty where not wanted."""

    @staticmethod
    def forward(x: Tensor, p: Tensor, g: Tensor, u: Tensor, wants_x: bool, wants_g: bool) -> tuple[Tensor, Tensor]:
        del x  # takes part for its derivative only
        p, g, u = p.contiguous(), g.contiguous(), u.contiguous()
        rows, columns = u.shape
        wrt_x = u.new_empty(rows, columns if wants_x else 0)
        wrt_g = u.new_empty(rows, columns if wants_g else 0)
        softmax_double_backward(p, g, u, wrt_x if wants_x else None, wrt_g if wants_g else None)
        return wrt_x, wrt_g

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep_arguments(ctx, inputs, _second)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        base, rows, unfold = fold_rows(
            info.batch_size, [(args[i], in_dims[i]) for i in (0, 1)], [(args[i], in_dims[i]) for i in (2, 3)]
        )
        wrt_x, wrt_g = _SoftmaxDoubleBackward.apply(*base, *rows, *args[4:])
        return (unfold(wrt_x), unfold(wrt_g)), (0, 0)


def _second(x: Tensor, p: Tensor, g: Tensor, u: Tensor, wants_x: bool, wants_g: bool) -> tuple[Tensor, Tensor]:
    del p  # a constant to autograd
    return softmax_second(x, g, u, wants_x, wants_g)


def softmax_ref(input: Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
    """Compute `softmax` in plain PyTorch."""
    return torch.softmax(input, dim, dtype=dtype)


def softmax(input: Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
    """Compute the softmax with fused first and second derivatives.

    Semantics of `torch.nn.functional.softmax`. Dtypes other than float32, float64 and bfloat16, and
    devices without fused kernels, run `softmax_ref`.

    Args:
        input: Values of any shape; bfloat16 is accumulated in float32.
        dim: Dimension over which probabilities sum to one; the last one needs no copy.
        dtype: Type to cast the input to first.

    Returns:
        Probabilities in the input's shape.

    Raises:
        ConfigurationError: The input has no such dimension, or is not of real floating-point numbers.
    """
    check_tensor("softmax", "input", input)
    if not -max(input.dim(), 1) <= dim < max(input.dim(), 1):
        raise ConfigurationError(
            f"dim={dim} is none of the input's {input.dim()} dimensions; use -{max(input.dim(), 1)} to "
            f"{max(input.dim(), 1) - 1}."
        )
    values = input if dtype is None else input.to(dtype)
    if input.dim() == 0 or not fused_applies("softmax", values):
        return run_plain("softmax", lambda: softmax_ref(input, dim, dtype), {"input": values})
    moved = values.movedim(dim, -1)
    output: Tensor = _Softmax.apply(moved.reshape(-1, moved.shape[-1]))
    return output.view(moved.shape).movedim(-1, dim)
