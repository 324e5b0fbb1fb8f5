"""Twice-differentiable cross-entropy: forward, gradient and Hessian-vector product in one fused pass each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.cross_entropy import cross_entropy_backward, cross_entropy_forward, cross_entropy_hvp
from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.applies import fused_applies
from hvp_engine.ops.arguments import check_operands, check_tensor, run_plain
from hvp_engine.ops.autograd import BatchedFunction
from hvp_engine.ops.class_targets import ClassTargets, check_options, check_targets, reduce_rows
from hvp_engine.ops.third import LastDerivative, keep_arguments
from hvp_engine.ops.vmap import fold_rows, vmap_by_loop
from hvp_engine.ops.written_out import cross_entropy_hvp as plain_hvp

__all__ = ["cross_entropy", "cross_entropy_ref"]


class _CrossEntropy(BatchedFunction):
    """Losses of rows (R), and their statistics (R, 2): largest logit m and 1 / sum(exp(z - m)).

    Logits and statistics are what the derivatives need; log-sum-exps would round the probabilities of large
    logits.
    """

    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, class_weight: Tensor | None, options: ClassTargets
    ) -> tuple[Tensor, Tensor]:
        logits, target = logits.contiguous(), target.contiguous()
        options.check(target, logits.shape[1])
        statistics = logits.new_empty(logits.shape[0], 2, dtype=accumulator(logits.dtype))
        loss = statistics.new_empty(logits.shape[0])
        cross_entropy_forward(options.rows(logits, target, class_weight), statistics, loss)
        return loss, statistics

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        logits, target, class_weight, options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, output[1], target, class_weight)
        ctx.save_for_forward(logits, output[1], target, class_weight)
        ctx.options = options

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_loss = grads[0]
        if grad_loss is None:
            return None, None, None, None
        logits, statistics, target, class_weight = ctx.saved_tensors
        return (
            _CrossEntropyBackward.apply(logits, statistics, grad_loss, target, class_weight, ctx.options),
            None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, logits_t: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
        if logits_t is None:
            return None, None
        logits, statistics, target, class_weight = ctx.saved_tensors
        scale = torch.ones_like(statistics[:, 0])
        slope = _CrossEntropyHvp.apply(
            logits, statistics, scale, logits_t.to(logits.dtype), target, class_weight, ctx.options, False, True
        )[1]
        return slope, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        logits, target, class_weight, options = args
        if in_dims[2] is not None:
            return vmap_by_loop(_CrossEntropy.apply, info.batch_size, in_dims, args)
        base = [(logits, in_dims[0]), (target, in_dims[1])]
        folded, _, unfold = fold_rows(info.batch_size, base, [])
        loss, statistics = _CrossEntropy.apply(folded[0], folded[1], class_weight, options)
        return (unfold(loss), unfold(statistics)), (0, 0)


CROSS_ENTROPY = _CrossEntropy  # to be known by in a graph


class _CrossEntropyBackward(BatchedFunction):
    """Gradient wrt the logits; row r of `scale` and of the result belongs to row r % R of the logits."""

    @staticmethod
    def forward(
        logits: Tensor,
        statistics: Tensor,
        scale: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        options: ClassTargets,
    ) -> Tensor:
        logits, statistics, scale, target = (t.contiguous() for t in (logits, statistics, scale, target))
        grad = logits.new_empty(scale.shape[0], logits.shape[1])
        cross_entropy_backward(options.rows(logits, target, class_weight, scale.shape[0]), statistics, scale, grad)
        return grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:5])
        ctx.save_for_forward(*inputs[:5])
        ctx.options = inputs[5]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        cotangent = grads[0]
        wants_logits, _, wants_scale = ctx.needs_input_grad[:3]
        if cotangent is None or not (wants_logits or wants_scale):
            return (None,) * 6
        logits, statistics, scale, target, class_weight = ctx.saved_tensors
        product, slope = _CrossEntropyHvp.apply(
            logits, statistics, scale, cotangent, target, class_weight, ctx.options, wants_logits, wants_scale
        )
        if wants_logits and scale.shape[0] != logits.shape[0]:
            product = product.unflatten(0, (-1, logits.shape[0])).sum(0)
        return product if wants_logits else None, None, slope if wants_scale else None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        logits_t, _, scale_t = tangents[:3]
        logits, statistics, scale, target, class_weight = ctx.saved_tensors
        result = None
        if logits_t is not None:
            repeated = logits_t.repeat(scale.shape[0] // max(logits.shape[0], 1), 1)
            result = _CrossEntropyHvp.apply(
                logits, statistics, scale, repeated, target, class_weight, ctx.options, True, False
            )[0]
        if scale_t is not None:
            part = _CrossEntropyBackward.apply(logits, statistics, scale_t, target, class_weight, ctx.options)
            result = part if result is None else result + part
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        logits, statistics, scale, target, class_weight, options = args
        if in_dims[4] is not None:
            return vmap_by_loop(_CrossEntropyBackward.apply, info.batch_size, in_dims, args)
        base, rows, unfold = fold_rows(
            info.batch_size,
            [(logits, in_dims[0]), (statistics, in_dims[1]), (target, in_dims[3])],
            [(scale, in_dims[2])],
        )
        return unfold(_CrossEntropyBackward.apply(base[0], base[1], rows[0], base[2], class_weight, options)), 0


class _CrossEntropyHvp(LastDerivative):
    """Derivatives along a tangent of the gradient (product) and the loss (slope); empty if not wanted."""

    @staticmethod
    def forward(
        logits: Tensor,
        statistics: Tensor,
        scale: Tensor,
        tangent: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        options: ClassTargets,
        wants_product: bool,
        wants_slope: bool,
    ) -> tuple[Tensor, Tensor]:
        logits, statistics, scale, tangent, target = (
            t.contiguous() for t in (logits, statistics, scale, tangent, target)
        )
        count = tangent.shape[0]
        product = torch.empty_like(tangent) if wants_product else tangent.new_empty(count, 0)
        slope = statistics.new_empty(count if wants_slope else 0)
        rows = options.rows(logits, target, class_weight, count)
        cross_entropy_hvp(
            rows, statistics, scale, tangent, product if wants_product else None, slope if wants_slope else None
        )
        return product, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        keep_arguments(ctx, inputs, _second)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        logits, statistics, scale, tangent, target, class_weight, options, wants_product, wants_slope = args
        if in_dims[5] is not None:
            return vmap_by_loop(_CrossEntropyHvp.apply, info.batch_size, in_dims, args)
        base, rows, unfold = fold_rows(
            info.batch_size,
            [(logits, in_dims[0]), (statistics, in_dims[1]), (target, in_dims[4])],
            [(scale, in_dims[2]), (tangent, in_dims[3])],
        )
        product, slope = _CrossEntropyHvp.apply(
            base[0], base[1], rows[0], rows[1], base[2], class_weight, options, wants_product, wants_slope
        )
        return (
            (unfold(product) if wants_product else product, unfold(slope) if wants_slope else slope),
            (0 if wants_product else None, 0 if wants_slope else None),
        )


def _second(
    logits: Tensor,
    statistics: Tensor,
    scale: Tensor,
    tangent: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    options: ClassTargets,
    wants_product: bool,
    wants_slope: bool,
) -> tuple[Tensor, Tensor]:
    """Do what `_CrossEntropyHvp` does, in plain PyTorch."""
    product, slope, _ = plain_hvp(logits, scale, tangent, target, class_weight, options)
    return (
        product.to(tangent.dtype) if wants_product else tangent.new_empty(tangent.shape[0], 0),
        slope if wants_slope else statistics.new_empty(0),
    )


def cross_entropy_ref(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute `cross_entropy` in plain PyTorch."""
    return F.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy of logits, with fused first and second derivatives.

    Semantics of `torch.nn.functional.cross_entropy`. Two numbers per row are saved (log-sum-exp in two
    parts), never probabilities; the gradient and its derivative p * (u - <p, u>) are one pass over the logits
    each. Class-probability targets (floating point, shape of the input), dtypes other than float32, float64
    and bfloat16, and devices without fused kernels run `cross_entropy_ref`.

    Args:
        input: Logits (C), (N, C) or (N, C, d1, ...); bfloat16 is accumulated in float32. Classes in the last
            dimension of a contiguous (N, C) input need no copy.
        target: Class indices () or (N) or (N, d1, ...), integers.
        weight: Class weights (C).
        ignore_index: Target value that contributes neither loss nor gradient.
        reduction: "none", "sum" or "mean" (over the weights of kept targets; NaN if none is kept).
        label_smoothing: Share of the target distribution spread evenly over the classes.

    Returns:
        A scalar, or the losses in the target's shape for "none"; the input's dtype, float32 under autocast.

    Raises:
        ConfigurationError: Unknown reduction, label smoothing outside of [0, 1], or shapes, dtypes or class
            indices that do not fit.
    """
    check_operands("cross_entropy", {"input": input, "weight": weight}, ("weight",))
    check_tensor("cross_entropy", "target", target)
    if input.dim() == 0:
        raise ConfigurationError("The logits are a scalar; their shape must be (C), (N, C) or (N, C, d1, ...).")
    if target.is_floating_point() or not fused_applies("cross_entropy", input):
        return run_plain(
            "cross_entropy",
            lambda: cross_entropy_ref(input, target, weight, ignore_index, reduction, label_smoothing),
            {"input": input, "weight": weight},
            ("weight",),
        )
    class_dim = 0 if input.dim() == 1 else 1
    classes = input.shape[class_dim]
    check_options(reduction, label_smoothing, weight, classes)
    check_targets(target, input.shape[:class_dim] + input.shape[class_dim + 1 :])
    logits = input.movedim(class_dim, -1).reshape(-1, classes)
    flat = target.reshape(-1).long()
    acc = accumulator(input.dtype)
    class_weight = None if weight is None else weight.to(acc).contiguous()
    options = ClassTargets(ignore_index, float(label_smoothing))
    loss = reduce_rows(
        _CrossEntropy.apply(logits, flat, class_weight, options)[0], flat, class_weight, options, reduction
    )
    loss = loss if reduction != "none" else loss.reshape(target.shape)
    return loss if torch.is_autocast_enabled(input.device.type) else loss.to(input.dtype)
