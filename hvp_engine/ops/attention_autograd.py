"""Autograd functions of fused attention: forward, backward, its backward, and the forward-mode derivative.

Tensors come first in every signature. `settings` is (scale, causal). Each rule for vmap moves the mapped
dimension to the front as one more leading dimension; a tensor without it is expanded by stride 0, not copied.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hvp_engine.kernels.attention import (
    attention_backward,
    attention_forward,
    attention_second,
    statistics_like,
)
from hvp_engine.kernels.records import AttentionInputs
from hvp_engine.ops.autograd import (
    BatchedFunction,
    tensor_arguments,
    wanted_gradients,
)
from hvp_engine.ops.third import LastDerivative, keep_arguments
from hvp_engine.ops.vmap import batch_first
from hvp_engine.ops.written_out import attention_second as plain_second

__all__ = ["fused_attention"]

_Settings = tuple[float, bool]


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """Compute attention with the kernels of the device; arguments as in `AttentionInputs`, checked and expanded.

    Args:
        query: (..., heads, L, E).
        key: (..., key heads, S, E).
        value: (..., key heads, S, Ev).
        mask: (..., heads, L, S) or None.
        scale: Factor of the scores.
        causal: Whether query i sees only the keys up to i.

    Returns:
        (..., heads, L, Ev).
    """
    out: Tensor
    out, _ = _Attention.apply(query, key, value, mask, (scale, causal))
    return out


def _inputs(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, statistics: Tensor, settings: _Settings
) -> AttentionInputs:
    return AttentionInputs(query, key, value, mask, statistics, *settings)


def _keep(ctx: Any, inputs: tuple[Any, ...], *tensors: Tensor | None) -> None:
    ctx.set_materialize_grads(False)
    ctx.is_tensor = tensor_arguments(inputs)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _present(results: list[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(r for r in results if r is not None)


def _spread(values: tuple[Tensor | None, ...], wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Undo `_present`: put the values back to the wanted places, None elsewhere."""
    rest = iter(values)
    return [next(rest) if want else None for want in wanted]


def _second(
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
) -> tuple[Tensor | None, ...]:
    """Do what `_AttentionDoubleBackward` does, in plain PyTorch."""
    tangents = (query_tangent, key_tangent, value_tangent)
    found = plain_second(grad_out, (query, key, value), tangents, mask, *settings)
    return tuple(part.to(query.dtype) for part, want in zip(found, wanted, strict=True) if want)


class _Attention(BatchedFunction):
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
        grads = _AttentionBackward.apply(grad_out, *ctx.saved_tensors, ctx.settings, wanted)
        return (*_spread(grads, wanted), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, None]:
        query, key, value, mask, statistics = ctx.saved_tensors
        if all(t is None for t in tangents[:3]):
            return None, None
        return _AttentionTangent.apply(query, key, value, *tangents[:3], mask, statistics, ctx.settings), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return _Attention.apply(*batch_first(info.batch_size, in_dims, args[:4]), args[4]), (0, 0)


class _AttentionBackward(BatchedFunction):
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
        second = _AttentionDoubleBackward.apply(
            grad_out, query, key, value, *_spread(grads, ctx.wanted), mask, statistics, ctx.settings, wanted
        )
        *of_inputs, of_grad_out = _spread(second, wanted)
        return (of_grad_out, *of_inputs, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, grad_out_tangent: Tensor | None, *tangents: Any) -> tuple[Tensor | None, ...]:
        grad_out, *primals, mask, statistics = ctx.saved_tensors
        rest = (mask, statistics, ctx.settings)
        parts: list[tuple[Tensor, ...]] = []
        if any(t is not None for t in tangents[:3]):  # the second derivative is symmetric
            parts.append(_AttentionDoubleBackward.apply(grad_out, *primals, *tangents[:3], *rest, (*ctx.wanted, False)))
        if grad_out_tangent is not None:
            parts.append(_AttentionBackward.apply(grad_out_tangent, *primals, *rest, ctx.wanted))
        if not parts:
            return tuple(None for want in ctx.wanted if want)
        total: tuple[Tensor | None, ...] = tuple(sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True))
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _AttentionBackward.apply(*batch_first(info.batch_size, in_dims, args[:6]), *args[6:])
        return outputs, (0,) * len(outputs)


class _AttentionTangent(BatchedFunction):
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
            second = _AttentionDoubleBackward.apply(
                grad, query, key, value, *tangents, mask, statistics, ctx.settings, wanted
            )
        if any(of_tangents):
            first = _AttentionBackward.apply(grad, query, key, value, mask, statistics, ctx.settings, of_tangents)
        return (*_spread(second, of_inputs), *_spread(first, of_tangents), None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _AttentionTangent.apply(*batch_first(info.batch_size, in_dims, args[:8]), args[8]), 0


class _AttentionDoubleBackward(LastDerivative):
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
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep_arguments(ctx, inputs, _second)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _AttentionDoubleBackward.apply(*batch_first(info.batch_size, in_dims, args[:9]), *args[9:])
        return outputs, (0,) * len(outputs)
