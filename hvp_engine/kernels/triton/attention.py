"""Launches the Triton attention kernels: the native passes' operands and results, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from hvp_engine.kernels.triton import attention_derivatives as derivatives
from hvp_engine.kernels.triton import attention_forward as forward
from hvp_engine.kernels.triton.attention_tiling import tiling

if TYPE_CHECKING:
    from hvp_engine.kernels.attention import AttentionInputs

__all__ = ["attention_backward", "attention_forward", "attention_second"]

_Views = list[Tensor | None]


def attention_forward(x: AttentionInputs, out: Tensor) -> None:
    """Computes attention into `out`, fills `x.statistics`."""
    for *inputs, result in _launches((x.query, x.key, x.value, x.mask, x.statistics, out)):
        _launch(forward.attention_forward, x, inputs, [result])


def attention_backward(x: AttentionInputs, grad_out: Tensor, grads: Sequence[Tensor | None]) -> None:
    """Computes the gradients of query, key and value into those of `grads` that are present.

    With a tangent of the value that is the value itself, and no others, the second backward pass is the first.
    """
    _derivatives(x, grad_out, (None, None, x.value), (*grads, None))


def attention_second(
    x: AttentionInputs, grad_out: Tensor | None, tangents: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
) -> None:
    """Computes the derivatives of <tangents, gradients> into those of `outputs` that are present."""
    out_query, out_key, out_value, out_grad_out = outputs
    if out_value is not None and tangents[0] is tangents[1] is None:
        out_value.zero_()  # the gradient of the query and key alone depends on the value
        out_value = None
    _derivatives(x, grad_out, tangents, (out_query, out_key, out_value, out_grad_out))


def _derivatives(
    x: AttentionInputs, grad_out: Tensor | None, tangents: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
) -> None:
    means = x.query.new_empty((*x.query.shape[:-1], 3), dtype=torch.float32)
    scores = outputs[0] is not None or outputs[1] is not None
    tangent_scores = tangents[0] is not None or tangents[1] is not None
    given = (x.query, x.key, x.value, x.mask, x.statistics, grad_out, *tangents, means)
    for views in _launches((*given, *outputs)):
        *inputs, means_view, out_query, out_key, out_value, out_grad_out = views
        for_queries = [*inputs[:5], inputs[5] if out_query is not None else None, *inputs[6:]]
        if scores or tangent_scores:
            for_means = [*inputs[:5], inputs[5] if scores else None, *inputs[6:]]
            _launch(derivatives.attention_means, x, for_means, [means_view])
        if out_query is not None or out_grad_out is not None:
            _launch(derivatives.attention_queries, x, for_queries, [means_view, out_query, out_grad_out])
        if out_key is not None or out_value is not None:
            _launch(derivatives.attention_keys, x, inputs, [means_view, out_key, out_value])


def _launches(tensors: Sequence[Tensor | None]) -> Iterator[_Views]:
    """Views tensors (..., heads, rows, columns) as (batch, heads, rows, columns).

    Leading dimensions that do not merge in every tensor, such as a vmapped one that some lack, take one launch
    per entry.
    """
    try:
        views = [None if t is None else t.view(-1, *t.shape[-3:]) for t in tensors]
    except RuntimeError:
        for entry in range(tensors[0].shape[0]):  # type: ignore[union-attr]  # the query is always there
            yield from _launches([None if t is None else t[entry] for t in tensors])
    else:
        yield views


def _launch(kernel: Any, x: AttentionInputs, inputs: _Views, outputs: _Views) -> None:
    query, _, value, *_ = inputs
    assert query is not None
    assert value is not None
    batch, heads, queries, width = query.shape
    key_heads, keys, value_width = value.shape[1:]
    tile = tiling(kernel.__name__, query.dtype, max(width, value_width))
    rows = (
        key_heads * triton.cdiv(keys, tile.keys)
        if kernel is derivatives.attention_keys
        else heads * triton.cdiv(queries, tile.queries)
    )
    parts = 1 if kernel is derivatives.attention_means else triton.cdiv(max(width, value_width), tile.out)
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        kernel[(batch * rows, parts)](
            *(_argument(t) for t in (*inputs, *outputs)), heads, heads // key_heads, queries, keys, x.scale,
            CAUSAL=x.causal, WIDTH=width, VALUE_WIDTH=value_width, **tile.constants(),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


def _argument(tensor: Tensor | None) -> tuple[Any, ...]:
    """A tensor as the kernels take it."""
    if tensor is None:
        return (None, 0, 0, 0, 0)
    return (tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, *tensor.stride())
