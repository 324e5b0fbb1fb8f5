"""The second derivative of the fused head and cross-entropy, written out in differentiable PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.class_targets import ClassTargets
from hvp_engine.ops.head.by_tokens import Wanted
from hvp_engine.ops.head.curvature import HeadCurvature
from hvp_engine.ops.written_out import cross_entropy_hvp

__all__ = ["linear_cross_entropy_hvp"]


def linear_cross_entropy_hvp(
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
    options: ClassTargets,
    curvature: HeadCurvature | None,
    wanted: Wanted,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what the autograd function of the head's second derivative does, with all logits at once.

    Args:
        hidden: Hidden states (R, d).
        weight: Weights (V, d).
        bias: Bias (V) or None.
        scale: Upstream gradient (R) of the losses.
        statistics: Not used, as are ``logits``, ``mean_weight`` and ``curvature``: constants to autograd.
        logits: Not used.
        target: Class indices (R).
        class_weight: Class weights (V) or None.
        mean_weight: Not used.
        hidden_t: Directions (K, R, d) or None.
        weight_t: Directions (K, V, d) or None.
        bias_t: Directions (K, V) or None.
        options: Options of the targets.
        curvature: Not used.
        wanted: Derivatives to compute; the others are empty.

    Returns:
        Derivatives of the gradients with respect to hidden (K, R, d), weight (K, V, d) and bias (K, V), and of the
        losses (K, R).
    """
    del statistics, logits, mean_weight, curvature
    acc, dtype = accumulator(hidden.dtype), hidden.dtype
    rows = hidden.shape[0]
    count = next(t.shape[0] for t in (hidden_t, weight_t, bias_t) if t is not None)
    wide, w = hidden.to(acc), weight.to(acc)
    tangent = wide.new_zeros(count, rows, w.shape[0])
    if hidden_t is not None:
        tangent = tangent + hidden_t.to(acc) @ w.t()
    if weight_t is not None:
        tangent = tangent + wide @ weight_t.to(acc).transpose(-2, -1)
    if bias_t is not None:
        tangent = tangent + bias_t.to(acc)[:, None]
    z = F.linear(wide, w, None if bias is None else bias.to(acc))
    product, slope, gradient = cross_entropy_hvp(
        z, scale.repeat(count), tangent.flatten(0, 1), target, class_weight, options
    )
    product = torch.unflatten(product, 0, (count, rows))
    scaled = scale.to(acc)[:, None] * gradient
    of_hidden = of_weight = of_bias = None
    if wanted.hidden:
        of_hidden = product @ w if weight_t is None else product @ w + scaled @ weight_t.to(acc)
    if wanted.weight:
        of_weight = product.transpose(-2, -1) @ wide
        if hidden_t is not None:
            of_weight = of_weight + scaled.t() @ hidden_t.to(acc)
    if wanted.bias:
        of_bias = product.sum(1)
    empty = weight.new_empty(count, 0, hidden.shape[1])
    return (
        empty if of_hidden is None else of_hidden.to(dtype),
        empty.clone() if of_weight is None else of_weight.to(dtype),
        weight.new_empty(count, 0) if of_bias is None else of_bias.to(dtype),
        torch.unflatten(slope, 0, (count, rows)) if wanted.slope else scale.new_empty(count, 0),
    )
