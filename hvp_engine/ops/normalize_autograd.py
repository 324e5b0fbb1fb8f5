"""Autograd functions of layer and RMS normalisation: each derivative is one fused pass.

Kept per call: the inputs and two numbers per row. The formulas are in csrc/cpu/normalize.cpp; tangents use
the same kernels, because the backward-of-backward applies both the Jacobian and the (symmetric) second
derivative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.normalize import (
    normalize_backward,
    normalize_double_backward,
    normalize_forward,
)
from hvp_engine.kernels.records import NormalizeShape, Operand, is_shared
from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.arguments import check_tensor
from hvp_engine.ops.autograd import (
    BatchedFunction,
    sum_present,
    tensor_arguments,
    wanted_gradients,
)
from hvp_engine.ops.third import LastDerivative, keep_arguments
from hvp_engine.ops.vmap import batch_first
from hvp_engine.ops.written_out import normalize_second

__all__ = ["NormalizeSpec", "check_shapes", "normalize"]


class NormalizeSpec(NamedTuple):
    """What is normalised.

    Attributes:
        name: The public operation, for messages.
        centered: True for layer norm, False for RMS norm.
        size: Elements per row.
        eps: Added to the variance (mean square).
        batched: All tensors have a leading vmapped dimension; parameters then have one row per group.
    """

    name: str
    centered: bool
    size: int
    eps: float
    batched: bool = False


def check_shapes(name: str, x: Tensor, normalized_shape: Sequence[int], w: Tensor | None, b: Tensor | None) -> int:
    """Check that rows and parameters have the normalised shape.

    Args:
        name: The public operation, for messages.
        x: The input.
        normalized_shape: Its trailing dimensions.
        w: Scale or None.
        b: Shift or None.

    Returns:
        Elements per row.

    Raises:
        ConfigurationError: The shapes do not fit together.
    """
    check_tensor(name, "input", x)
    shape = tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ConfigurationError(
            f"{name} got an input of shape {tuple(x.shape)}, which does not end with normalized_shape={shape}; pass "
            "the sizes of the trailing dimensions to normalise."
        )
    for label, parameter in (("weight", w), ("bias", b)):
        if parameter is None:
            continue
        check_tensor(name, label, parameter)
        if parameter.shape != shape:
            raise ConfigurationError(
                f"{name} got {label} of shape {tuple(parameter.shape)} and normalized_shape={shape}; make them equal."
            )
    return math.prod(shape)


def normalize(x: Tensor, w: Tensor | None, b: Tensor | None, spec: NormalizeSpec) -> Tensor:
    """Normalise rows of `spec.size` elements, scale them by w and shift them by b.

    Args:
        x: Tensor whose trailing dimensions hold the rows.
        w: Scale of `spec.size` elements, or None for 1.
        b: Shift of `spec.size` elements, or None for 0.
        spec: What is normalised.

    Returns:
        A tensor of x's shape and dtype.
    """
    y: Tensor = _Normalize.apply(x, w, b, spec)[0]
    return y


@functools.lru_cache(maxsize=8)
def _constant_row(size: int, dtype: torch.dtype, device: torch.device, value: float) -> Tensor:
    """Return the row that stands for an absent scale or shift; kept, since models repeat few shapes."""
    return torch.full((size,), value, dtype=dtype, device=device)


class _KernelCall:
    """Shape and operands of one kernel call."""

    def __init__(self, x: Tensor, w: Tensor | None, spec: NormalizeSpec) -> None:
        self.spec = spec
        batch = x.shape[0] if spec.batched else 1
        self.shape = NormalizeShape(spec.centered, batch, x.numel() // (batch * spec.size), spec.size)
        self._parameter = (spec.size, x.dtype if w is None else w.dtype, x.device)

    def operand(self, tensor: Tensor) -> Operand:
        """Return a tensor and its batch stride; copy what is neither contiguous nor shared by the batch."""
        shared = False
        if not tensor.is_contiguous():
            shared = self.spec.batched and is_shared(tensor)
            if not shared:
                tensor = tensor.contiguous()
        return tensor, 0 if shared else tensor.numel() // self.shape.batch

    def parameter(self, tensor: Tensor | None, value: float) -> Operand:
        """Return the operand of a row of parameters; an absent one is a constant row."""
        return (_constant_row(*self._parameter, value), 0) if tensor is None else self.operand(tensor)


def _empty(like: Tensor, wanted: bool = True) -> Tensor | None:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if wanted else None


def _vmap_rule(
    function: type[BatchedFunction], tensors: int, info: Any, in_dims: Sequence[Any], args: Sequence[Any]
) -> Any:
    """Run a function with the vmapped dimension in front of its leading tensors; the spec follows them."""
    spec = args[tensors]
    batched = batch_first(info.batch_size, in_dims, args[:tensors])
    if not spec.batched:
        outputs = function.apply(*batched, spec._replace(batched=True), *args[tensors + 1 :])
        return outputs, tuple(None if output is None else 0 for output in outputs)
    flat = [None if tensor is None else tensor.flatten(0, 1) for tensor in batched]
    outputs = function.apply(*flat, *args[tensors:])
    outputs = tuple(None if output is None else output.unflatten(0, (info.batch_size, -1)) for output in outputs)
    return outputs, tuple(None if output is None else 0 for output in outputs)


def _second(
    u: Tensor | None,
    u_w: Tensor | None,
    u_b: Tensor | None,
    g: Tensor,
    x: Tensor,
    w: Tensor | None,
    statistics: Tensor,
    spec: NormalizeSpec,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """Do what `_NormalizeDoubleBackward` does, in plain PyTorch."""
    acc = accumulator(x.dtype)

    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(acc).reshape(x.shape[0] if spec.batched else 1, -1, spec.size)

    wide_g, wide_x = rows(g), rows(x)
    assert wide_g is not None and wide_x is not None
    cotangents = (rows(u), rows(u_w), rows(u_b))
    found = normalize_second(cotangents, wide_g, wide_x, rows(w), centered=spec.centered, eps=spec.eps, needs=needs)
    return tuple(
        None if part is None or like is None else part.reshape(like.shape).to(like.dtype)
        for part, like in zip(found, (x, x, w), strict=True)
    )


class _Normalize(BatchedFunction):
    """(y, statistics) of (x, w, b); statistics hold mean and reciprocal deviation of every row."""

    @staticmethod
    def forward(x: Tensor, w: Tensor | None, b: Tensor | None, spec: NormalizeSpec) -> tuple[Tensor, Tensor]:
        call = _KernelCall(x, w, spec)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        statistics = x.new_empty((call.shape.batch, call.shape.rows, 2), dtype=accumulator(x.dtype))
        inputs = (call.operand(x), call.parameter(w, 1.0), call.parameter(b, 0.0))
        normalize_forward(call.shape, spec.eps, *inputs, y, statistics)
        return y, statistics if spec.batched else statistics[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, w, _, ctx.spec = inputs
        ctx.is_tensor = tensor_arguments(inputs)
        statistics = output[1]
        ctx.mark_non_differentiable(statistics)
        ctx.save_for_backward(x, w, statistics)
        ctx.save_for_forward(x, w, statistics)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None, None
        needs = wanted_gradients(ctx, ctx.is_tensor)[:3]
        return *_NormalizeBackward.apply(g, *ctx.saved_tensors, ctx.spec, needs), None

    @staticmethod
    def jvp(ctx: Any, t_x: Tensor | None, t_w: Tensor | None, t_b: Tensor | None, _: None) -> Any:
        return _NormalizeTangent.apply(t_x, t_w, t_b, *ctx.saved_tensors, ctx.spec)[0], None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _vmap_rule(_Normalize, 3, info, in_dims, args)


class _NormalizeBackward(BatchedFunction):
    """(dx, dw, db) of (g, x, w)."""

    @staticmethod
    def forward(
        g: Tensor,
        x: Tensor,
        w: Tensor | None,
        statistics: Tensor,
        spec: NormalizeSpec,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        call = _KernelCall(x, w, spec)
        dx = _empty(x, needs[0])
        dw, db = (None, None) if w is None else (_empty(w, needs[1]), _empty(w, needs[2]))
        inputs = (call.operand(x), call.parameter(w, 1.0), call.operand(statistics), call.operand(g))
        normalize_backward(call.shape, inputs, dx, dw, db)
        return dx, dw, db

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.spec, ctx.needs = inputs
        ctx.is_tensor = tensor_arguments(inputs)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, u_w: Tensor | None, u_b: Tensor | None) -> tuple[Tensor | None, ...]:
        if u is None and u_w is None and u_b is None:
            return (None,) * 6
        needs = wanted_gradients(ctx, ctx.is_tensor)[1:3]
        gradients = _NormalizeDoubleBackward.apply(u, u_w, u_b, *ctx.saved_tensors, ctx.spec, needs)
        return *gradients, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, t_g: Tensor | None, t_x: Tensor | None, t_w: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        g, x, w, statistics = ctx.saved_tensors
        absent = (None, None, None)
        along_g = absent if t_g is None else _NormalizeBackward.apply(t_g, x, w, statistics, ctx.spec, ctx.needs)
        along_rest = absent
        if t_x is not None or t_w is not None:
            args = (t_x, t_w, None, g, x, w, statistics, ctx.spec, ctx.needs[:2])
            # db depends on g alone, but a tangent of a computed output may not be absent.
            d_b = torch.zeros_like(w) if w is not None and ctx.needs[2] else None
            along_rest = (*_NormalizeDoubleBackward.apply(*args)[1:], d_b)
        return tuple(sum_present(*terms) for terms in zip(along_g, along_rest, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _vmap_rule(_NormalizeBackward, 4, info, in_dims, args)


class _NormalizeDoubleBackward(LastDerivative):
    """(d_g, d_x, d_w) for cotangents (u, u_w, u_b) of (dx, dw, db)."""

    @staticmethod
    def forward(
        u: Tensor | None,
        u_w: Tensor | None,
        u_b: Tensor | None,
        g: Tensor,
        x: Tensor,
        w: Tensor | None,
        statistics: Tensor,
        spec: NormalizeSpec,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor | None, ...]:
        call = _KernelCall(x, w, spec)
        d_g = torch.empty_like(x, memory_format=torch.contiguous_format)
        d_x = _empty(x, needs[0])
        d_w = None if w is None else _empty(w, needs[1])
        if u is None:
            u = torch.zeros_like(x, memory_format=torch.contiguous_format)
        absent: Operand = (None, 0)
        no_parameters = u_w is None and u_b is None
        inputs = (
            call.operand(x),
            call.parameter(w, 1.0),
            call.operand(statistics),
            call.operand(g),
            call.operand(u),
            absent if no_parameters else call.parameter(u_w, 0.0),
            absent if no_parameters else call.parameter(u_b, 0.0),
        )
        normalize_double_backward(call.shape, inputs, d_g, d_x, d_w)
        return d_g, d_x, d_w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        keep_arguments(ctx, inputs, _second)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _vmap_rule(_NormalizeDoubleBackward, 7, info, in_dims, args)


class _NormalizeTangent(BatchedFunction):
    """(t_y,) for tangents (t_x, t_w, t_b): the backward-of-backward's d_g is this same linear map."""

    @staticmethod
    def forward(
        t_x: Tensor | None,
        t_w: Tensor | None,
        t_b: Tensor | None,
        x: Tensor,
        w: Tensor | None,
        statistics: Tensor,
        spec: NormalizeSpec,
    ) -> tuple[Tensor]:
        args = (t_x, t_w, t_b, x, x, w, statistics, spec, (False, False))
        (t_y,) = _NormalizeDoubleBackward.forward(*args)[:1]
        assert t_y is not None  # d_g is always computed
        return (t_y,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        t_x, t_w, _, x, w, statistics, ctx.spec = inputs
        ctx.save_for_backward(t_x, t_w, x, w, statistics)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 7
        t_x, t_w, x, w, statistics = ctx.saved_tensors
        needs = ctx.needs_input_grad
        tangents = _NormalizeBackward.apply(g, x, w, statistics, ctx.spec, needs[:3])
        args = (t_x, t_w, None, g, x, w, statistics, ctx.spec, needs[3:5])
        return *tangents, *_NormalizeDoubleBackward.apply(*args)[1:], None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _vmap_rule(_NormalizeTangent, 6, info, in_dims, args)
