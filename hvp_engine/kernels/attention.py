"""Attention on the kernels of the device: allocates the outputs; for native ones, passes addresses and strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.registry import intended_backend
from hvp_engine.kernels.tensors import is_fused, triton_kernels

__all__ = [
    "AttentionInputs",
    "attention_backward",
    "attention_forward",
    "attention_second",
    "can_run",
    "statistics_like",
]

# The numbers of hvp::Dtype in csrc/include/hvp/dtype.h.
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.bool: 3}
_TRITON_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_BATCH_DIMS = 6  # kAttentionBatchDims in csrc/include/hvp/attention.h
_ROOM_FOR_VMAP = 3  # each vmap around a derivative adds a dimension


@dataclass(frozen=True)
class AttentionInputs:
    """What every pass of attention reads; all share the leading dimensions.

    Attributes:
        query: (..., heads, L, E).
        key: (..., key heads, S, E).
        value: (..., key heads, S, Ev).
        mask: (..., heads, L, S), boolean or added to the scores, stride 0 where it is broadcast, or None.
        statistics: (..., heads, L, 2), the largest score of each row and the inverse sum of its exponentials.
        scale: Factor of the scores.
        causal: Whether query i sees only the keys up to i.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    statistics: Tensor
    scale: float
    causal: bool


def can_run(query: Tensor, mask: Tensor | None) -> bool:
    """Says whether the kernels to be used take these dtypes and the number of leading dimensions; never raises."""
    if intended_backend(query.device) == "triton":
        return query.dtype in _TRITON_TYPES
    return (
        is_fused(query)
        and (mask is None or mask.dtype in _TYPES)
        and query.dim() - 3 <= _MAX_BATCH_DIMS - _ROOM_FOR_VMAP
    )


def statistics_like(query: Tensor) -> Tensor:
    """Allocates the row statistics of a query, in the accumulation type."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty((*query.shape[:-1], 2), dtype=dtype)


def _dense_like(like: Tensor, columns: int) -> Tensor:
    """Allocates (*like.shape[:-1], columns) with the dimensions in the memory order of `like`.

    Heads split off a (batch, length, heads x width) tensor then give results that merge back without a copy.
    """
    rows = list(range(like.dim() - 1))
    expanded = any(like.stride(d) == 0 for d in rows)  # such a tensor has no order of its own
    order = [*(rows if expanded else sorted(rows, key=like.stride, reverse=True)), like.dim() - 1]
    shape = (*like.shape[:-1], columns)
    dense = like.new_empty([shape[d] for d in order])
    return dense.permute([order.index(d) for d in range(like.dim())])


def _address(tensor: Tensor | None) -> tuple[int, Sequence[int]] | None:
    return None if tensor is None else (tensor.data_ptr(), tensor.stride())


def _sizes(x: AttentionInputs) -> list[int]:
    *batch, heads, queries, width = x.query.shape
    key_heads, keys, value_width = x.value.shape[-3:]
    return [*batch, heads, key_heads, queries, keys, width, value_width]


def _types(x: AttentionInputs) -> tuple[int, int]:
    return _TYPES[x.query.dtype], _TYPES[torch.bool if x.mask is None else x.mask.dtype]


def _addresses(x: AttentionInputs) -> list[tuple[int, Sequence[int]] | None]:
    return [_address(t) for t in (x.query, x.key, x.value, x.mask, x.statistics)]


def attention_forward(x: AttentionInputs) -> Tensor:
    """Computes attention (..., heads, L, Ev) and fills `x.statistics`."""
    out = _dense_like(x.query, x.value.shape[-1])
    triton = triton_kernels("attention", x.query)
    if triton is not None:
        triton.attention_forward(x, out)
    else:
        native.attention_forward(_sizes(x), x.scale, x.causal, _types(x), _addresses(x), _address(out))
    return out


def attention_backward(x: AttentionInputs, grad_out: Tensor, wanted: tuple[bool, bool, bool]) -> list[Tensor | None]:
    """Computes the gradients of query, key and value; None for those not wanted."""
    like = (x.query, x.key, x.value)
    grads = [_dense_like(t, t.shape[-1]) if want else None for t, want in zip(like, wanted, strict=True)]
    triton = triton_kernels("attention", x.query)
    if triton is not None:
        triton.attention_backward(x, grad_out, grads)
        return grads
    to = [_address(t) for t in grads]
    native.attention_backward(
        _sizes(x), x.scale, x.causal, _types(x), _addresses(x), _address(grad_out), to[0], to[1], to[2]
    )
    return grads


def attention_second(
    x: AttentionInputs,
    grad_out: Tensor | None,
    tangents: Sequence[Tensor | None],
    wanted: tuple[bool, bool, bool, bool],
) -> list[Tensor | None]:
    """Computes the derivatives of <tangents, gradients of query, key and value>.

    Args:
        x: Inputs of attention.
        grad_out: Gradient of the output; None only when nothing but its own derivative is wanted.
        tangents: For query, key and value; None counts as zero and costs nothing.
        wanted: Which of the derivatives for query, key, value and grad_out to compute.

    Returns:
        Those derivatives, None for those not wanted. The last is also the forward-mode derivative.
    """
    shapes = ((x.query, x.query), (x.key, x.key), (x.value, x.value), (x.query, x.value))
    outputs = [
        _dense_like(like, of.shape[-1]) if want else None for (like, of), want in zip(shapes, wanted, strict=True)
    ]
    triton = triton_kernels("attention", x.query)
    if triton is not None:
        triton.attention_second(x, grad_out, tangents, outputs)
        return outputs
    given = [_address(t) for t in (grad_out, *tangents)]
    native.attention_second(
        _sizes(x), x.scale, x.causal, _types(x), _addresses(x), given, [_address(t) for t in outputs]
    )
    return outputs
