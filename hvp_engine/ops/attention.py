"""Scaled dot-product attention with fused first and second derivatives."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from hvp_engine.errors import ConfigurationError, SecondDerivativeError
from hvp_engine.kernels.attention import (
    AttentionInputs,
    attention_backward,
    attention_forward,
    attention_second,
    can_run,
    statistics_like,
)
from hvp_engine.kernels.registry import backend_for
from hvp_engine.ops.batched_function import BatchedFunction
from hvp_engine.ops.batching import tensor_arguments, wanted_gradients

__all__ = ["attention", "attention_ref"]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Computes softmax(scale * query key^T + mask) value, differentiable twice in memory linear in the lengths.

    Takes the arguments of `torch.nn.functional.scaled_dot_product_attention` and means the same by them, rows that
    see no key included: they give zeros. Forward, backward and backward-of-backward are one fused pass each: the
    probabilities are recomputed from two numbers per row (Dao et al. 2022, FlashAttention, extended here to the
    second derivative) a strip of rows at a time. Forward-mode derivatives, also of the backward pass, use the same
    kernels. Sums are in float32, for float64 inputs in float64; the same inputs give the same bits.

    The plain PyTorch `attention_ref` runs instead, with its quadratic memory, when the mask needs a gradient, on a
    device or dtype without a native kernel, without the compiled extension, and for empty tensors.

    Args:
        query: (..., Hq, L, E) float32, float64 or bfloat16, any strides.
        key: (..., H, S, E), same dtype.
        value: (..., H, S, Ev), same dtype.
        attn_mask: Broadcastable to (..., Hq, L, S): boolean (True = attend) or floating (added to the scores). It is
            not expanded in memory.
        dropout_p: Must be 0.
        is_causal: Query i sees keys 0..i (top-left aligned when L != S). Excludes `attn_mask`.
        scale: Factor of the scores; 1 / sqrt(E) by default.
        enable_gqa: Whether groups of Hq / H query heads share a key head.

    Returns:
        (..., Hq, L, Ev) in the dtype of the inputs.

    Raises:
        ConfigurationError: Dropout, or shapes, dtypes or masks that do not fit together.
        SecondDerivativeError: From a third derivative; `attention_ref` has all of them.
    """
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    _check(query, key, value, attn_mask, dropout_p, is_causal)
    scale = 1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale)
    squeeze = query.dim() == 2
    if squeeze:
        query, key, value = query[None], key[None], value[None]
    query, key, value, mask = _broadcast(query, key, value, attn_mask, enable_gqa)
    if (
        backend_for(query.device) != "native"
        or not can_run(query, mask)
        or (mask is not None and _is_differentiated(mask))
        or 0 in (query.numel(), key.numel(), value.numel())
    ):
        out = _reference(query, key, value, mask, is_causal, scale)
    else:
        out, _ = _Forward.apply(query, key, value, mask, (scale, is_causal))
    return out[0] if squeeze else out


def attention_ref(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Computes `attention` in plain PyTorch: derivatives of every order, also for the mask; memory grows with L x S.

    Args and errors are those of `attention`.

    Returns:
        (..., Hq, L, Ev) in the dtype of the inputs.

    Raises:
        ConfigurationError: Dropout, or shapes, dtypes or masks that do not fit together.
    """
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    _check(query, key, value, attn_mask, dropout_p, is_causal)
    scale = 1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale)
    squeeze = query.dim() == 2
    if squeeze:
        query, key, value = query[None], key[None], value[None]
    query, key, value, mask = _broadcast(query, key, value, attn_mask, enable_gqa)
    out = _reference(query, key, value, mask, is_causal, scale)
    return out[0] if squeeze else out


def _reference(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    groups = query.shape[-3] // max(key.shape[-3], 1)
    if groups != 1:
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = (query * scale) @ key.transpose(-2, -1)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        # A row that sees no key: uniform weights first, so that softmax and its derivatives stay finite, then zero.
        blind = (scores == -math.inf).all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
    else:
        weights = torch.softmax(scores, -1)
    return weights.to(value.dtype) @ value


def _autocast(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Casts as autocast does for scaled_dot_product_attention."""
    device = query.device.type
    if not torch.is_autocast_enabled(device):
        return query, key, value, mask
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x

    return cast(query), cast(key), cast(value), None if mask is None else cast(mask)


def _check(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, causal: bool
) -> None:
    if dropout_p != 0.0:
        raise ConfigurationError(
            f"attention got dropout_p={dropout_p}: a loss that changes from call to call has no Hessian. "
            "Call model.eval(), or set the attention dropout of the model to 0."
        )
    if mask is not None and causal:
        raise ConfigurationError(
            "attention got both attn_mask and is_causal=True. Pass one: fold the causal mask into attn_mask, "
            "or drop attn_mask."
        )
    if min(query.dim(), key.dim(), value.dim()) < 2 or (query.dim() == 2) != (key.dim() == 2 == value.dim()):
        raise ConfigurationError(
            "attention needs query (..., Hq, L, E), key (..., H, S, E) and value (..., H, S, Ev), or (L, E), (S, E) "
            f"and (S, Ev); got {_shapes(query, key, value)}. Add or remove leading dimensions."
        )
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ConfigurationError(
            "attention needs query and key of the same last dimension, and key and value of the same length; "
            f"got {_shapes(query, key, value)}. Transpose or project them to match."
        )
    if not query.is_floating_point() or not query.dtype == key.dtype == value.dtype:
        raise ConfigurationError(
            "attention needs query, key and value of one floating dtype; "
            f"got {query.dtype}, {key.dtype} and {value.dtype}. Convert them to the same one."
        )
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise ConfigurationError(
            f"attention got attn_mask of {mask.dtype}; it must be torch.bool, torch.float32 or the dtype of the "
            f"query ({query.dtype}). Convert the mask."
        )


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)


def _broadcast(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grouped: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Expands leading dimensions, by stride 0, to a common shape; heads too unless they are grouped."""
    heads, key_heads, value_heads = query.shape[-3], key.shape[-3], value.shape[-3]
    try:
        if grouped:
            if min(key_heads, value_heads) < 1 or heads % key_heads or heads % value_heads:
                raise RuntimeError("query heads are not a multiple of the key and value heads")
            if key_heads != value_heads:
                key = key.repeat_interleave(heads // key_heads, -3)
                value = value.repeat_interleave(heads // value_heads, -3)
            lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
            shapes = [(*lead, *t.shape[-3:]) for t in (query, key, value)]
        else:
            lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
            shapes = [(*lead, *t.shape[-2:]) for t in (query, key, value)]
        query, key, value = (t.expand(s) for t, s in zip((query, key, value), shapes, strict=True))
        if mask is not None:
            mask = mask.expand(*query.shape[:-1], key.shape[-2])
    except RuntimeError as error:
        shown = _shapes(query, key, value) + ("" if mask is None else f" and mask {tuple(mask.shape)}")
        raise ConfigurationError(
            f"attention cannot broadcast {shown} together ({error}). Leading dimensions must be equal or 1, the mask "
            "must broadcast to (..., Hq, L, S), and enable_gqa=True needs Hq to be a multiple of the key heads."
        ) from error
    return query, key, value, mask


def _is_differentiated(x: Tensor) -> bool:
    return (x.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(x).tangent is not None


# --- autograd -----------------------------------------------------------------------------------------------------
# Tensors come first in every signature. `settings` is (scale, causal). Each rule for vmap moves the mapped dimension
# to the front as one more leading dimension; a tensor without it is expanded by stride 0 and not copied.

_Settings = tuple[float, bool]


def _inputs(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, statistics: Tensor, settings: _Settings
) -> AttentionInputs:
    return AttentionInputs(query, key, value, mask, statistics, *settings)


def _to_front(batch_size: int, tensors: tuple[Tensor | None, ...], in_dims: tuple[Any, ...]) -> list[Tensor | None]:
    return [
        None if t is None else t.expand(batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, in_dims, strict=False)
    ]


def _keep(ctx: Any, inputs: tuple[Any, ...], *tensors: Tensor | None) -> None:
    ctx.set_materialize_grads(False)
    ctx.is_tensor = tensor_arguments(inputs)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _present(results: list[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(r for r in results if r is not None)


def _spread(values: tuple[Tensor | None, ...], wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Undoes `_present`: puts the values back to the wanted places, None elsewhere."""
    rest = iter(values)
    return [next(rest) if want else None for want in wanted]


def _third_derivative() -> NoReturn:
    raise SecondDerivativeError(
        "hvp_engine.ops.attention has first and second derivatives; a third one was asked for. "
        "Use hvp_engine.ops.attention_ref there, which has derivatives of every order."
    )


class _Forward(BatchedFunction):
    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        statistics = statistics_like(query)
        return attention_forward(_inputs(query, key, value, mask, statistics, settings)), statistics

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, mask, ctx.settings = inputs
        ctx.mark_non_differentiable(output[1])
        _keep(ctx, inputs, query, key, value, mask, output[1])

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = tuple(wanted_gradients(ctx, ctx.is_tensor)[:3])
        if grad_out is None or not any(wanted):
            return (None,) * 5
        grads = _Backward.apply(grad_out, *ctx.saved_tensors, ctx.settings, wanted)
        return (*_spread(grads, wanted), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, None]:
        query, key, value, mask, statistics = ctx.saved_tensors
        if all(t is None for t in tangents[:3]):
            return None, None
        return _Tangent.apply(query, key, value, *tangents[:3], mask, statistics, ctx.settings), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return _Forward.apply(*_to_front(info.batch_size, args[:4], in_dims), args[4]), (0, 0)


class _Backward(BatchedFunction):
    @staticmethod
    def forward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        statistics: Tensor,
        settings: _Settings,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor, ...]:
        inputs = _inputs(query, key, value, mask, statistics, settings)
        return _present(attention_backward(inputs, grad_out, wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.settings, ctx.wanted = inputs
        _keep(ctx, inputs, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = wanted_gradients(ctx, ctx.is_tensor)[:4]
        if all(g is None for g in grads) or not any(needed):
            return (None,) * 8
        grad_out, query, key, value, mask, statistics = ctx.saved_tensors
        wanted = (*needed[1:], needed[0])
        second = _Second.apply(
            grad_out, query, key, value, *_spread(grads, ctx.wanted), mask, statistics, ctx.settings, wanted
        )
        *of_inputs, of_grad_out = _spread(second, wanted)
        return (of_grad_out, *of_inputs, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, grad_out_tangent: Tensor | None, *tangents: Any) -> tuple[Tensor | None, ...]:
        grad_out, query, key, value, mask, statistics = ctx.saved_tensors
        results: list[tuple[Tensor, ...]] = []
        if any(t is not None for t in tangents[:3]):  # the second derivative is symmetric
            results.append(
                _Second.apply(
                    grad_out, query, key, value, *tangents[:3], mask, statistics, ctx.settings, (*ctx.wanted, False)
                )
            )
        if grad_out_tangent is not None:
            results.append(
                _Backward.apply(grad_out_tangent, query, key, value, mask, statistics, ctx.settings, ctx.wanted)
            )
        if not results:
            return (None,) * sum(ctx.wanted)
        return results[0] if len(results) == 1 else tuple(a + b for a, b in zip(*results, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _Backward.apply(*_to_front(info.batch_size, args[:6], in_dims), *args[6:])
        return outputs, (0,) * len(outputs)


class _Tangent(BatchedFunction):
    """The forward-mode derivative of attention."""

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_tangent: Tensor | None,
        key_tangent: Tensor | None,
        value_tangent: Tensor | None,
        mask: Tensor | None,
        statistics: Tensor,
        settings: _Settings,
    ) -> Tensor:
        inputs = _inputs(query, key, value, mask, statistics, settings)
        tangents = (query_tangent, key_tangent, value_tangent)
        return _present(attention_second(inputs, None, tangents, (False, False, False, True)))[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.settings = inputs
        _keep(ctx, inputs, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        query, key, value, *tangents, mask, statistics = ctx.saved_tensors
        needed = wanted_gradients(ctx, ctx.is_tensor)
        of_inputs, of_tangents = tuple(needed[:3]), tuple(needed[3:6])
        second: tuple[Tensor, ...] = ()
        first: tuple[Tensor, ...] = ()
        if any(of_inputs):
            wanted = (*of_inputs, False)
            second = _Second.apply(grad, query, key, value, *tangents, mask, statistics, ctx.settings, wanted)
        if any(of_tangents):
            first = _Backward.apply(grad, query, key, value, mask, statistics, ctx.settings, of_tangents)
        return (*_spread(second, of_inputs), *_spread(first, of_tangents), None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise SecondDerivativeError(
            "hvp_engine.ops.attention has no forward-over-forward derivative. Take forward-over-reverse "
            "(torch.func.jvp of torch.func.grad), or use hvp_engine.ops.attention_ref there."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _Tangent.apply(*_to_front(info.batch_size, args[:8], in_dims), args[8]), 0


class _Second(BatchedFunction):
    @staticmethod
    def forward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_tangent: Tensor | None,
        key_tangent: Tensor | None,
        value_tangent: Tensor | None,
        mask: Tensor | None,
        statistics: Tensor,
        settings: _Settings,
        wanted: tuple[bool, bool, bool, bool],
    ) -> tuple[Tensor, ...]:
        inputs = _inputs(query, key, value, mask, statistics, settings)
        tangents = (query_tangent, key_tangent, value_tangent)
        return _present(attention_second(inputs, grad_out, tangents, wanted))

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps nothing: the derivatives end here."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        _third_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _third_derivative()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _Second.apply(*_to_front(info.batch_size, args[:9], in_dims), *args[9:])
        return outputs, (0,) * len(outputs)
