"""Second derivatives of the fused operations, written out in differentiable PyTorch: the way to a third derivative.

Every function takes the arguments of the autograd function that it stands for, gives the same outputs, and computes
again, from the operation's inputs, what the fused passes keep (probabilities, statistics), so that nothing is constant
that depends on them. bfloat16 and float16 are computed in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.class_targets import ClassTargets

__all__ = [
    "attention_second",
    "centred",
    "cross_entropy_hvp",
    "gelu_slopes",
    "normalize_second",
    "silu_slopes",
    "softmax_second",
]


def silu_slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and second derivative of x sigmoid(x)."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s)), s * (1 - s) * (2 + x * (1 - 2 * s))


def gelu_slopes(x: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """Return the first and second derivative of the Gaussian error linear unit or of its tanh approximation."""
    if approximate == "none":
        density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density, density * (2 - x * x)
    k, a = math.sqrt(2 / math.pi), 0.044715
    z1, z2 = k * (1 + 3 * a * x * x), 6 * k * a * x
    t = torch.tanh(k * (x + a * x * x * x))
    d = 1 - t * t
    return 0.5 * (1 + t + x * d * z1), d * z1 + 0.5 * x * (d * z2 - 2 * t * d * z1 * z1)


def centred(p: Tensor, *values: Tensor) -> list[Tensor]:
    """Take their mean under the probabilities p off rows of values."""
    return [value - (p * value).sum(-1, keepdim=True) for value in values]


def _softmax_curvature(p: Tensor, g: Tensor, u: Tensor) -> Tensor:
    """Differentiate the covariance of g and u under p = softmax(x) with respect to x.

    That is p (gu - E gu) - E g p (u - E u) - E u p (g - E g), without the differences of large numbers.
    """
    g, u = centred(p, g, u)
    (product,) = centred(p, g * u)
    return p * product


def softmax_second(x: Tensor, g: Tensor, u: Tensor, wants_x: bool, wants_g: bool) -> tuple[Tensor, Tensor]:
    """Differentiate <u, p (g - <p, g>)>, p = softmax(x), with respect to x and to g; empty where not wanted.

    Args:
        x: (R, C).
        g: (K R, C).
        u: (K R, C).
        wants_x: Whether the first is wanted, (K R, C).
        wants_g: Whether the second is wanted, (K R, C).
    """
    acc = accumulator(x.dtype)
    p = torch.softmax(x.to(acc), -1).repeat(u.shape[0] // max(x.shape[0], 1), 1)
    wide_g, wide_u = g.to(acc), u.to(acc)
    empty = u.new_empty(u.shape[0], 0)
    wrt_x = _softmax_curvature(p, wide_g, wide_u).to(u.dtype) if wants_x else empty
    wrt_g = (p * centred(p, wide_u)[0]).to(u.dtype) if wants_g else empty
    return wrt_x, wrt_g


def cross_entropy_hvp(
    logits: Tensor,
    scale: Tensor,
    tangent: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    options: ClassTargets,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate row losses and scale times their gradient along a tangent of the logits.

    Args:
        logits: (R, C).
        scale: (K R), or what broadcasts with it.
        tangent: (K R, C).
        target: (R).
        class_weight: (C) or None.
        options: Ignored target and smoothing.

    Returns:
        The derivative of the gradient (K R, C), that of the losses (K R), and the gradient itself (R, C) for a scale
        of 1; all in the accumulator type.
    """
    acc, classes = accumulator(logits.dtype), logits.shape[1]
    times = tangent.shape[0] // max(logits.shape[0], 1)
    factor, index = options.hit(target, class_weight)
    mass = options.mass(target, class_weight, classes).to(acc)
    p = torch.softmax(logits.to(acc), -1)
    spread = options.label_smoothing / classes * (target != options.ignore_index).to(acc)[:, None]
    expected = spread * (torch.ones(classes, dtype=acc, device=p.device) if class_weight is None else class_weight)
    expected = expected.scatter_add(1, index[:, None], factor.to(acc)[:, None])
    gradient = mass[:, None] * p - expected
    wide = tangent.to(acc)
    repeated = p.repeat(times, 1)
    product = (scale.to(acc) * mass.repeat(times))[:, None] * repeated * centred(repeated, wide)[0]
    return product, (gradient.repeat(times, 1) * wide).sum(-1), gradient


def normalize_second(
    cotangents: tuple[Tensor | None, Tensor | None, Tensor | None],
    g: Tensor,
    x: Tensor,
    w: Tensor | None,
    *,
    centered: bool,
    eps: float,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Differentiate <u, dx> + <u_w, dw> + <u_b, db> of layer or RMS normalisation; see csrc/cpu/normalize.cpp.

    Args:
        cotangents: (u, u_w, u_b), of the shapes of x, w and w; None counts as zero.
        g: Upstream gradient (batch, rows, size).
        x: Rows (batch, rows, size).
        w: Scale (batch, 1, size), or None for 1.
        centered: Whether the mean is taken off.
        eps: Added to the variance (mean square).
        needs: Whether the derivatives for x and w are wanted.

    Returns:
        The derivatives with respect to g, x and w; None where not wanted.
    """
    u, u_w, u_b = cotangents

    def mean(values: Tensor) -> Tensor:
        return values.mean(-1, keepdim=True)

    shifted = x - mean(x) if centered else x
    rstd = torch.rsqrt(mean(shifted * shifted) + eps)
    xhat = shifted * rstd

    def project(values: Tensor) -> Tensor:
        along = values - xhat * mean(values * xhat)
        return along - mean(values) if centered else along

    wg = g if w is None else g * w
    u = torch.zeros_like(x) if u is None else u
    pu, pwg = project(u), project(wg)
    d_g = rstd * pu if w is None else rstd * pu * w
    if u_w is not None:
        d_g = d_g + u_w * xhat
    if u_b is not None:
        d_g = d_g + u_b
    d_x = d_w = None
    if needs[0]:
        covariance = mean(u * wg) - mean(u * xhat) * mean(wg * xhat)
        if centered:
            covariance = covariance - mean(u) * mean(wg)
        d_x = mean(wg * xhat) * pu + mean(u * xhat) * pwg + xhat * covariance
        d_x = -rstd * rstd * d_x
        if u_w is not None:
            d_x = d_x + rstd * project(u_w * g)
    if needs[1] and w is not None:
        d_w = (rstd * g * pu).sum(-2, keepdim=True)
    return d_g, d_x, d_w


def attention_second(
    grad_out: Tensor,
    operands: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None],
    mask: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate <tangents, gradients of query, key and value> of attention; memory of L x S.

    Args:
        grad_out: Gradient of the output (..., H, L, Ev).
        operands: Query (..., H, L, E), key (..., Hk, S, E) and value (..., Hk, S, Ev).
        tangents: Of the operands; None counts as zero.
        mask: (..., H, L, S), boolean or added to the scores, or None.
        scale: Factor of the scores.
        causal: Whether query i sees only the keys up to i.

    Returns:
        The derivatives with respect to the operands and to ``grad_out``, in the accumulator type.
    """
    acc = accumulator(operands[0].dtype)
    q, k, v = (t.to(acc) for t in operands)
    tq, tk, tv = (
        torch.zeros_like(operand) if t is None else t.to(acc) for operand, t in zip((q, k, v), tangents, strict=True)
    )
    groups = q.shape[-3] // max(k.shape[-3], 1)
    k, v, tk, tv = (t.repeat_interleave(groups, -3) for t in (k, v, tk, tv))
    p = _attention_weights(q, k, mask, scale, causal)
    slope = scale * (tq @ k.transpose(-2, -1) + q @ tk.transpose(-2, -1))
    p_slope = p * centred(p, slope)[0]
    g = grad_out.to(acc)
    along_v, along_tv = g @ v.transpose(-2, -1), g @ tv.transpose(-2, -1)
    first, last = centred(p, along_v, along_tv)
    of_slope = scale * p * first
    of_scores = scale * (_softmax_curvature(p, along_v, slope) + p * last)

    def ungrouped(values: Tensor) -> Tensor:
        return values if groups == 1 else torch.unflatten(values, -3, (-1, groups)).sum(-3)

    of_q = of_slope @ tk + of_scores @ k
    of_k = ungrouped(of_slope.transpose(-2, -1) @ tq + of_scores.transpose(-2, -1) @ q)
    return of_q, of_k, ungrouped(p_slope.transpose(-2, -1) @ g), p_slope @ v + p @ tv


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """Return the weights of the keys (..., H, L, S); zeros in a row that sees none."""
    scores = (q * scale) @ k.transpose(-2, -1)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return torch.softmax(scores, -1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    blind = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
