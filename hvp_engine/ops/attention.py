"""Scaled dot-product attention with fused first and second derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.applies import attention_applies, autocast_operands
from hvp_engine.ops.arguments import check_operands, check_tensor
from hvp_engine.ops.attention_autograd import fused_attention

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
    """Compute softmax(scale query key^T + mask) value, twice differentiable in memory linear in the lengths.

    Takes the arguments of `torch.nn.functional.scaled_dot_product_attention` and means the same by them,
    also in rows that see no key: they give zeros. Forward, backward and backward-of-backward are one fused
    pass each, which recomputes the probabilities, a strip of rows at a time, from two numbers per row (Dao
    et al. 2022, FlashAttention; the strips and the second derivative are this package's). Forward-mode
    derivatives, also of the backward pass, use the same kernels. Sums are in float32, for float64 inputs in
    float64; the same inputs give the same bits.

    The plain PyTorch `attention_ref`, whose memory is quadratic, runs instead when the mask needs a
    gradient, on a device or dtype without a kernel (float64 on a GPU), without the compiled extension, for empty
    tensors, and where operations are traced or simulated (make_fx, torch.compile, fake tensors, operation
    counters).

    Args:
        query: (..., Hq, L, E) float32, float64 or bfloat16, on a GPU also float16; any strides.
        key: (..., H, S, E), same dtype.
        value: (..., H, S, Ev), same dtype.
        attn_mask: Broadcastable to (..., Hq, L, S): boolean (True = attend) or floating (added to the
            scores). It is not expanded in memory.
        dropout_p: Must be 0.
        is_causal: Query i sees keys 0..i (top-left aligned when L != S). Excludes `attn_mask`.
        scale: Factor of the scores; 1 / sqrt(E) by default.
        enable_gqa: Whether groups of Hq / H query heads share a key head.

    Returns:
        (..., Hq, L, Ev) in the dtype of the inputs.

    Raises:
        ConfigurationError: Dropout, or shapes, dtypes or masks that do not fit together.
    """
    _check_kinds(query, key, value, attn_mask)
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    _check(query, key, value, attn_mask, dropout_p, is_causal)
    scale = 1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale)
    squeeze = query.dim() == key.dim() == value.dim() == 2
    query, key, value, mask = _broadcast(query, key, value, attn_mask, enable_gqa)
    if attention_applies(query, key, value, mask):
        out = fused_attention(query, key, value, mask, scale, is_causal)
    else:
        out = _reference(query, key, value, mask, is_causal, scale)
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
    """Compute `attention` in plain PyTorch: derivatives of every order, also for the mask; memory of L x S.

    Returns:
        (..., Hq, L, Ev) in the dtype of the inputs.

    Raises:
        ConfigurationError: Dropout, or shapes, dtypes or masks that do not fit together.
    """
    _check_kinds(query, key, value, attn_mask)
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    _check(query, key, value, attn_mask, dropout_p, is_causal)
    scale = 1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale)
    squeeze = query.dim() == key.dim() == value.dim() == 2
    query, key, value, mask = _broadcast(query, key, value, attn_mask, enable_gqa)
    out = _reference(query, key, value, mask, is_causal, scale)
    return out[0] if squeeze else out


def _reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    groups = query.shape[-3] // max(key.shape[-3], 1)
    if groups != 1:
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = (query * scale) @ key.transpose(-2, -1)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        # A row that sees no key gets uniform weights, so that softmax's derivatives stay finite, then zeros.
        blind = (scores == -math.inf).all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
    else:
        weights = torch.softmax(scores, -1)
    return weights.to(value.dtype) @ value


def _autocast(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cast as autocast does for scaled_dot_product_attention."""
    cast = autocast_operands(query.device, query, key, value, mask)
    assert cast[0] is not None and cast[1] is not None and cast[2] is not None
    return cast[0], cast[1], cast[2], cast[3]


def _check_kinds(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    check_operands("attention", {"query": query, "key": key, "value": value})
    if mask is not None:
        check_tensor("attention", "attn_mask", mask)
        if mask.device != query.device or mask.layout != torch.strided:
            raise ConfigurationError(
                f"attention got attn_mask on {mask.device} in layout {mask.layout}; it must be a dense tensor on "
                f"{query.device}."
            )


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, causal: bool) -> None:
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
    if min(query.dim(), key.dim(), value.dim()) < 2:
        raise ConfigurationError(
            "attention needs query (..., Hq, L, E), key (..., H, S, E) and value (..., H, S, Ev), where all "
            f"but the last two dimensions may be missing; got {_shapes(query, key, value)}. Add dimensions."
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
            f"attention got attn_mask of {mask.dtype}; it must be torch.bool, torch.float32 or the dtype of "
            f"the query ({query.dtype}). Convert the mask."
        )


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)


def _broadcast(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grouped: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Expand leading dimensions, and heads unless they are grouped, by stride 0 to a common shape."""
    query, key, value = (t[None] if t.dim() == 2 else t for t in (query, key, value))
    heads, key_heads, value_heads = query.shape[-3], key.shape[-3], value.shape[-3]
    try:
        if grouped:
            if min(key_heads, value_heads) < 1 or heads % key_heads or heads % value_heads:
                raise RuntimeError("Query heads are not a multiple of the key and value heads.")
            if key_heads != value_heads:
                key = key.repeat_interleave(heads // key_heads, -3)
                value = value.repeat_interleave(heads // value_heads, -3)
            lead = _common_shape(query.shape[:-3], key.shape[:-3], value.shape[:-3])
            shapes = [(*lead, *t.shape[-3:]) for t in (query, key, value)]
        else:
            lead = _common_shape(query.shape[:-2], key.shape[:-2], value.shape[:-2])
            shapes = [(*lead, *t.shape[-2:]) for t in (query, key, value)]
        query, key, value = (t.expand(s) for t, s in zip((query, key, value), shapes, strict=True))
        if mask is not None:
            mask = mask.expand(*query.shape[:-1], key.shape[-2])
    except RuntimeError as error:
        shown = _shapes(query, key, value) + ("" if mask is None else f" and mask {tuple(mask.shape)}")
        raise ConfigurationError(
            f"attention cannot broadcast {shown} together ({str(error).rstrip('.')}). Leading dimensions must be equal "
            "or 1, the mask must broadcast to (..., Hq, L, S), and with enable_gqa=True the query heads must be a "
            "multiple of the key heads."
        ) from error
    return query, key, value, mask


def _common_shape(*shapes: torch.Size) -> torch.Size:
    shape: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return shape
