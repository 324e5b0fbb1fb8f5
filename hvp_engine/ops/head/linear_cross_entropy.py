"""Twice-differentiable linear head + cross-entropy that holds the logits of one chunk of tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.applies import autocast_operands, fused_applies
from hvp_engine.ops.arguments import check_operands, check_tensor, run_plain
from hvp_engine.ops.autograd import BatchedFunction, tensor_arguments, wanted_gradients
from hvp_engine.ops.class_targets import check_options, check_targets, reduce_rows
from hvp_engine.ops.head.by_classes import head_hidden_hvp, mean_weights
from hvp_engine.ops.head.by_tokens import (
    HeadInputs,
    HeadOptions,
    Tangents,
    Wanted,
    head_backward,
    head_forward,
    head_hvp,
)
from hvp_engine.ops.head.curvature import HeadCurvature
from hvp_engine.ops.head.room import room_on
from hvp_engine.ops.head.written_out import linear_cross_entropy_hvp
from hvp_engine.ops.third import LastDerivative, keep_arguments
from hvp_engine.ops.vmap import batch_first, fold_rows, vmap_by_loop

__all__ = ["linear_cross_entropy", "linear_cross_entropy_ref"]


class _LinearCrossEntropy(BatchedFunction):
    """Row losses; row statistics and (if kept) logits come along for the derivatives."""

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        class_weight: Tensor | None,
        options: HeadOptions,
        keep_logits: bool,
        curvature: HeadCurvature | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = HeadInputs(hidden, weight, bias, target, class_weight, options)
        loss, statistics, logits = head_forward(head, keep_logits)
        if curvature is not None:
            curvature.check(statistics[:, 0] - statistics[:, 1].log(), hidden.shape[1])
        return loss, statistics, logits

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        saved = (*inputs[:3], output[1], output[2], *inputs[3:5])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.options, ctx.keep_logits, ctx.curvature = inputs[5:]
        ctx.is_tensor = tensor_arguments(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = Wanted(*wanted_gradients(ctx, ctx.is_tensor)[:3])
        if grads[0] is None or not (wanted.hidden or wanted.weight or wanted.bias):
            return (None,) * 8
        hidden, weight, bias, statistics, logits, target, class_weight = ctx.saved_tensors
        parts = _LinearCrossEntropyBackward.apply(
            hidden,
            weight,
            bias,
            grads[0],
            statistics,
            logits,
            target,
            class_weight,
            ctx.options,
            ctx.curvature,
            wanted,
        )
        return (*_only_wanted(parts, wanted), None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, None, None]:
        if all(t is None for t in tangents[:3]):
            return None, None, None
        hidden, weight, bias, statistics, logits, target, class_weight = ctx.saved_tensors
        slope = _LinearCrossEntropyHvp.apply(
            hidden,
            weight,
            bias,
            torch.ones_like(statistics[:, 0]),
            statistics,
            logits,
            target,
            class_weight,
            None,
            *_as_directions(tangents[:3]),
            ctx.options,
            None,
            Wanted(False, False, False, slope=True),
        )[3]
        return slope.squeeze(0), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        hidden, weight, bias, target, class_weight, options, keep_logits, _ = args
        if any(in_dims[i] is not None for i in (1, 2, 4)):
            return vmap_by_loop(_LinearCrossEntropy.apply, info.batch_size, in_dims, [*args[:-1], None])
        base, _, unfold = fold_rows(info.batch_size, [(hidden, in_dims[0]), (target, in_dims[3])], [])
        loss, statistics, logits = _LinearCrossEntropy.apply(
            base[0], weight, bias, base[1], class_weight, options, keep_logits, None
        )
        if keep_logits:
            return (unfold(loss), unfold(statistics), unfold(logits)), (0, 0, 0)
        return (unfold(loss), unfold(statistics), logits), (0, 0, None)


LINEAR_CROSS_ENTROPY = _LinearCrossEntropy  # to be known by in a graph


def _only_wanted(parts: tuple[Tensor, ...], wanted: Wanted) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    flags = (wanted.hidden, wanted.weight, wanted.bias)
    picked = [part if flag else None for part, flag in zip(parts, flags, strict=False)]
    return picked[0], picked[1], picked[2]


def _as_directions(cotangents: Any) -> list[Tensor | None]:
    return [None if t is None else t.unsqueeze(0) for t in cotangents]


class _LinearCrossEntropyBackward(BatchedFunction):
    """Gradients wrt hidden, weight and bias; empty where not wanted. Mean weights come along for the derivative."""

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        statistics: Tensor,
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        options: HeadOptions,
        curvature: HeadCurvature | None,
        wanted: Wanted,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kept = logits if logits.shape[0] > 0 else None
        head = HeadInputs(hidden, weight, bias, target, class_weight, options, kept)
        grads = head_backward(head, statistics, scale, wanted)
        return *grads, mean_weights(head, scale, grads[0]) if wanted.hidden else statistics.new_empty(
            0, hidden.shape[1]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.curvature, ctx.wanted = inputs[8:]
        flags = (ctx.wanted.hidden, ctx.wanted.weight, ctx.wanted.bias, False)
        ctx.mark_non_differentiable(*(out for out, flag in zip(output, flags, strict=True) if not flag))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:8], output[3])
        ctx.save_for_forward(*inputs[:8], output[3])
        ctx.is_tensor = tensor_arguments(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = wanted_gradients(ctx, ctx.is_tensor)
        wanted = Wanted(needs[0], needs[1], needs[2], slope=needs[3])
        if all(g is None for g in grads) or not any(needs[:4]):
            return (None,) * 11
        parts = _LinearCrossEntropyHvp.apply(
            *ctx.saved_tensors, *_as_directions(grads[:3]), ctx.options, ctx.curvature, wanted
        )
        parts = tuple(part.squeeze(0) for part in parts)
        slope = parts[3] if wanted.slope else None
        return (*_only_wanted(parts, wanted), slope, *(None,) * 7)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        total: list[Tensor | None] = [None, None, None]
        if any(t is not None for t in tangents[:3]):
            parts = _LinearCrossEntropyHvp.apply(
                *saved, *_as_directions(tangents[:3]), ctx.options, ctx.curvature, ctx.wanted
            )
            total = list(_only_wanted(tuple(part.squeeze(0) for part in parts), ctx.wanted))
        if tangents[3] is not None:
            rest = _LinearCrossEntropyBackward.apply(
                *saved[:3], tangents[3], *saved[4:8], ctx.options, ctx.curvature, ctx.wanted
            )
            parts = _only_wanted(rest, ctx.wanted)
            total = [b if a is None or b is None else a + b for a, b in zip(total, parts, strict=True)]
        return *total, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return vmap_by_loop(
            _LinearCrossEntropyBackward.apply, info.batch_size, in_dims, _without_curvature(args, in_dims, 9)
        )


def _without_curvature(args: Any, in_dims: Any, position: int) -> list[Any]:
    """Drop the head curvature when the hidden states or the head, whose curvature it is, are batched."""
    arguments = list(args)
    if any(in_dims[i] is not None for i in (0, 1, 2, 6)):
        arguments[position] = None
    return arguments


class _LinearCrossEntropyHvp(LastDerivative):
    """Derivatives of the gradients and the losses along K directions; empty where not wanted."""

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        statistics: Tensor,
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        mean_weight: Tensor | None,
        hidden_t: Tensor | None,
        weight_t: Tensor | None,
        bias_t: Tensor | None,
        options: HeadOptions,
        curvature: HeadCurvature | None,
        wanted: Wanted,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = next(t.shape[0] for t in (hidden_t, weight_t, bias_t) if t is not None)
        hidden_only = weight_t is None and bias_t is None and wanted == Wanted(True, False, False)
        kept = logits if logits.shape[0] > 0 else None
        head = HeadInputs(hidden, weight, bias, target, class_weight, options, kept)
        if hidden_t is not None and hidden_only and mean_weight is not None:
            row_weight = scale * options.mass(target, class_weight, weight.shape[0]).to(scale.dtype)
            if curvature is None:
                product = head_hidden_hvp(head, statistics, row_weight, mean_weight, hidden_t)
            else:
                product = curvature.matvec(hidden_t, row_weight).to(hidden.dtype)
            empty = weight.new_empty(count, 0, hidden.shape[1])
            return product, empty, weight.new_empty(count, 0), scale.new_empty(count, 0)
        return head_hvp(head, statistics, scale, Tangents(hidden_t, weight_t, bias_t), count, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep_arguments(ctx, inputs, linear_cross_entropy_hvp)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        if any(dim is not None for dim in in_dims[:9]):
            return vmap_by_loop(_LinearCrossEntropyHvp.apply, size, in_dims, _without_curvature(args, in_dims, 13))
        batched = batch_first(size, in_dims[9:12], args[9:12])
        directions = [None if t is None else t.flatten(0, 1) for t in batched]
        parts = _LinearCrossEntropyHvp.apply(*args[:9], *directions, *args[12:])
        return tuple(part.unflatten(0, (size, -1)) for part in parts), (0, 0, 0, 0)


def linear_cross_entropy_ref(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute `linear_cross_entropy` in plain PyTorch."""
    logits = F.linear(hidden, weight, bias)
    loss = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        target.reshape(-1),
        class_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return loss.reshape(target.shape) if reduction == "none" else loss


def _check_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if hidden.dim() == 0 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ConfigurationError(
            f"Hidden states of shape {tuple(hidden.shape)} and head weights of shape "
            f"{tuple(weight.shape)} do not fit: "
            "they must be (..., d) and (classes, d)."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ConfigurationError(
            f"The bias has shape {tuple(bias.shape)}; the head has {weight.shape[0]} classes, "
            f"so ({weight.shape[0]},) "
            "is needed."
        )
    if weight.dtype != hidden.dtype or (bias is not None and bias.dtype != hidden.dtype):
        raise ConfigurationError(
            f"Hidden states are {hidden.dtype}, but the head is {weight.dtype}; cast them to one dtype or use autocast."
        )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    keep_logits: bool = False,
    curvature: HeadCurvature | None = None,
) -> Tensor:
    """Compute the cross-entropy of `hidden @ weight.T + bias`, with chunked first and second derivatives.

    The tokens go through in chunks: logits, gradients and tangents of shape tokens x classes exist for one
    chunk at a time, and are computed again where they are needed. A pass computes the gradients that the
    running backward pass will use, no others. Dtypes other than float32, float64 and bfloat16, and devices
    without fused kernels, run `linear_cross_entropy_ref`.

    Args:
        hidden: Hidden states (..., d).
        weight: Head weights (classes, d), same dtype (or autocast). bfloat16 products have bfloat16 logits,
            as in PyTorch; statistics and losses are float32.
        target: Class indices (...), integers.
        bias: Head bias (classes).
        class_weight: Class weights (classes).
        ignore_index: Target value that contributes neither loss nor gradient.
        reduction: "none", "sum" or "mean" as in `cross_entropy`.
        label_smoothing: Share of the target distribution spread evenly over the classes.
        keep_logits: Keep the logits (tokens x classes) as long as the graph: one product of three less in
            each second backward.
        curvature: `form_head_curvature` of the same hidden states, weight and bias. A second backward that
            asks for the hidden states alone then applies it instead of the head; any other takes the general
            path.

    Returns:
        A scalar, or the losses in the target's shape for "none"; the input's dtype, float32 under autocast.

    Raises:
        ConfigurationError: Shapes, dtypes, options or class indices that do not fit, or a curvature of other
            tokens.
    """
    operands = {"hidden": hidden, "weight": weight, "bias": bias, "class_weight": class_weight}
    check_operands("linear_cross_entropy", operands, ("bias", "class_weight"))
    check_tensor("linear_cross_entropy", "target", target)
    hidden_, weight_, bias_ = autocast_operands(hidden.device, hidden, weight, bias)
    assert hidden_ is not None and weight_ is not None
    _check_shapes(hidden_, weight_, bias_)
    check_options(reduction, label_smoothing, class_weight, weight.shape[0])
    check_targets(target, hidden.shape[:-1])
    if not fused_applies("cross_entropy", hidden_, weight_):
        arguments = (hidden, weight, target, bias, class_weight, ignore_index, reduction, label_smoothing)
        return run_plain("linear_cross_entropy", lambda: linear_cross_entropy_ref(*arguments), {"hidden": hidden})
    flat = target.reshape(-1).long()
    class_weight = None if class_weight is None else class_weight.to(accumulator(hidden_.dtype)).contiguous()
    options = HeadOptions(ignore_index, float(label_smoothing), room_on(hidden_.device))
    rows = hidden_.reshape(-1, hidden_.shape[-1])
    loss = _LinearCrossEntropy.apply(rows, weight_, bias_, flat, class_weight, options, keep_logits, curvature)[0]
    loss = reduce_rows(loss, flat, class_weight, options, reduction)
    loss = loss if reduction != "none" else loss.reshape(target.shape)
    return loss if torch.is_autocast_enabled(hidden.device.type) else loss.to(hidden.dtype)
