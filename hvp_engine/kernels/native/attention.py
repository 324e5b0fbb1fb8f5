"""Attention on the CPU: passes addresses and strides to the extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.records import AttentionInputs
from hvp_engine.kernels.tensors import ELEMENT_TYPES, dtype_number

__all__ = ["attention_backward", "attention_forward", "attention_second", "can_run"]

_MAX_BATCH_DIMS = 6  # kAttentionBatchDims in csrc/include/hvp/attention.h
_ROOM_FOR_VMAP = 3  # each vmap around a derivative adds a dimension


def can_run(query: Tensor, mask: Tensor | None) -> bool:
    """Say whether the kernels take these dtypes and the number of leading dimensions."""
    return (
        query.dtype in ELEMENT_TYPES
        and (mask is None or mask.dtype == torch.bool or mask.dtype in ELEMENT_TYPES)
        and query.dim() - 3 <= _MAX_BATCH_DIMS - _ROOM_FOR_VMAP
    )


def _address(tensor: Tensor | None) -> tuple[int, Sequence[int]] | None:
    return None if tensor is None else (tensor.data_ptr(), tensor.stride())


def _sizes(x: AttentionInputs) -> list[int]:
    *batch, heads, queries, width = x.query.shape
    key_heads, keys, value_width = x.value.shape[-3:]
    return [*batch, heads, key_heads, queries, keys, width, value_width]


def _types(x: AttentionInputs) -> tuple[int, int]:
    return dtype_number(x.query.dtype), dtype_number(torch.bool if x.mask is None else x.mask.dtype)


def _addresses(x: AttentionInputs) -> list[tuple[int, Sequence[int]] | None]:
    return [_address(t) for t in (x.query, x.key, x.value, x.mask, x.statistics)]


def attention_forward(x: AttentionInputs, out: Tensor) -> None:
    """Compute attention into `out`, and fill `x.statistics`."""
    native.attention_forward(_sizes(x), x.scale, x.causal, _types(x), _addresses(x), _address(out))


def attention_backward(x: AttentionInputs, grad_out: Tensor, grads: Sequence[Tensor | None]) -> None:
    """Compute the gradients of query, key and value into those of `grads` that are present."""
    to = [_address(t) for t in grads]
    native.attention_backward(
        _sizes(x), x.scale, x.causal, _types(x), _addresses(x), _address(grad_out), to[0], to[1], to[2]
    )


def attention_second(
    x: AttentionInputs, grad_out: Tensor | None, tangents: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
) -> None:
    """Compute the derivatives of <tangents, gradients> into those of `outputs` that are present."""
    given = [_address(t) for t in (grad_out, *tangents)]
    native.attention_second(
        _sizes(x), x.scale, x.causal, _types(x), _addresses(x), given, [_address(t) for t in outputs]
    )
