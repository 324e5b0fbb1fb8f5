"""Launches the Triton attention kernels: the native passes' operands and results, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import triton
from torch import Tensor

from hvp_engine.kernels.records import AttentionInputs
from hvp_engine.kernels.triton import attention_derivatives as derivatives
from hvp_engine.kernels.triton import attention_forward as forward
from hvp_engine.kernels.triton import attention_joint as joint
from hvp_engine.kernels.triton import attention_outputs as outputs_
from hvp_engine.kernels.triton.attention_matrices import attention_by_matrices
from hvp_engine.kernels.triton.attention_tiling import JOINT_BYTES, JOINT_PROGRAMS, Strip, matrix_strip, tiling
from hvp_engine.kernels.triton.launching import run

__all__ = ["attention_backward", "attention_forward", "attention_second", "can_run"]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)

_Views = list[Tensor | None]


def can_run(query: Tensor, mask: Tensor | None) -> bool:
    """Say whether the kernels take these dtypes."""
    return query.dtype in _TYPES


def attention_forward(x: AttentionInputs, out: Tensor) -> None:
    """Compute attention into `out`, fills `x.statistics`."""
    for views in _launches((x.query, x.key, x.value, x.mask, x.statistics, out)):
        _launch(forward.attention_forward, x, views)


def attention_backward(x: AttentionInputs, grad_out: Tensor, grads: Sequence[Tensor | None]) -> None:
    """Compute the gradients of query, key and value into those of `grads` that are present.

    With a tangent of the value that is the value itself, and no others, the second backward pass is the first.
    """
    _derivatives(x, grad_out, (None, None, x.value), (*grads, None))


def attention_second(
    x: AttentionInputs, grad_out: Tensor | None, tangents: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
) -> None:
    """Compute the derivatives of <tangents, gradients> into those of `outputs` that are present."""
    out_query, out_key, out_value, out_grad_out = outputs
    if out_value is not None and tangents[0] is tangents[1] is None:
        out_value.zero_()  # the gradient of the query and key alone depends on the value
        out_value = None
    _derivatives(x, grad_out, tangents, (out_query, out_key, out_value, out_grad_out))


def _derivatives(
    x: AttentionInputs, grad_out: Tensor | None, tangents: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
) -> None:
    parts = _parts(x)
    means = x.query.new_empty((*x.query.shape[:-1], 1 + 2 * parts), dtype=torch.float32)
    needs_means = any(t is not None for t in (*tangents[:2], *outputs[:2]))
    tensors = (x.query, x.key, x.value, x.mask, x.statistics, grad_out, *tangents, means, *outputs)
    for views in _launches(tensors):
        *first, gradient, tangent_query, tangent_key, tangent_value, mean, query, key, value, out = views
        strip = _strip(views)
        if strip is not None:
            given = (*first, gradient, tangent_query, tangent_key, tangent_value)
            attention_by_matrices(given, (query, key, value, out), x.scale, x.causal, strip)
            continue
        rest = (tangent_query, tangent_key, tangent_value, mean)
        # Without an output gradient the kernels leave out what only the outputs of query and key need.
        scores = gradient if query is not None or key is not None else None
        if needs_means or out is not None:
            _launch(outputs_.attention_outputs, x, (*first, scores, *rest, out))
        if query is not None and key is not None and _joint(x, (*first, gradient, *rest, query, key, value)):
            continue
        if query is not None:
            _launch(derivatives.attention_queries, x, (*first, gradient, *rest, query))
        if key is not None or value is not None:
            _launch(derivatives.attention_keys, x, (*first, gradient, *rest, key, value))


def _strip(views: _Views) -> Strip | None:
    """Say whether, and how, whole matrices of scores are formed."""
    query, key = cast("tuple[Tensor, Tensor]", views[:2])
    return matrix_strip(query.dtype, *query.shape[:3], key.shape[2])


def _parts(x: AttentionInputs) -> int:
    """Say how many programs share the columns of a row's means."""
    width = x.value.shape[-1]
    widest = max(x.query.shape[-1], width)
    tile = tiling("attention_outputs", x.query.dtype, widest, masked=x.mask is not None)
    assert tile is not None
    return triton.cdiv(width, tile.out)


def _joint(x: AttentionInputs, tensors: Sequence[Tensor | None]) -> bool:
    """Compute the derivatives of queries, keys and values in one pass where that is faster; say whether it was."""
    *shared, out_query, out_key, out_value = tensors
    query, key = cast("tuple[Tensor, Tensor]", shared[:2])
    (batch, heads, queries, width), (key_heads, keys) = query.shape, key.shape[1:3]
    widest = max(width, x.value.shape[-1])
    tile = tiling("attention_joint", query.dtype, widest, masked=x.mask is not None)
    if tile is None or tile.out < widest:
        return False
    splits = min(triton.cdiv(JOINT_PROGRAMS, batch * key_heads), triton.cdiv(keys, tile.keys))
    if splits * batch * heads * queries * tile.out * 4 > JOINT_BYTES:
        return False
    parts = query.new_empty((splits, batch, heads, queries, tile.out), dtype=torch.float32)
    _launch(joint.attention_joint, x, (*shared, parts, out_key, out_value), splits)
    run(
        joint.attention_gather, (batch * heads * triton.cdiv(queries, tile.queries),), query,
        _argument(parts), _argument(out_query), heads, queries, x.scale, splits, tile.keys,
        CAUSAL=x.causal, WIDTH=width, OUT=tile.out, BLOCK_Q=tile.queries,
    )  # fmt: skip
    return True


def _launches(tensors: Sequence[Tensor | None]) -> Iterator[_Views]:
    """View tensors (..., heads, rows, columns) as (batch, heads, rows, columns).

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


def _launch(kernel: Any, x: AttentionInputs, tensors: Sequence[Tensor | None], *splits: int) -> None:
    """Run a kernel on tensors that begin with the query and the key."""
    query, key = cast("tuple[Tensor, Tensor]", tensors[:2])
    (batch, heads, queries, width), (key_heads, keys) = query.shape, key.shape[1:3]
    value_width = x.value.shape[-1]
    widest = max(width, value_width)
    tile = tiling(kernel.__name__, query.dtype, widest, masked=x.mask is not None)
    assert tile is not None
    if kernel is joint.attention_joint:
        grid = batch * key_heads * splits[0], 1
    elif kernel is derivatives.attention_keys:
        grid = batch * key_heads * triton.cdiv(keys, tile.keys), triton.cdiv(widest, tile.out)
    else:
        columns = width if kernel is derivatives.attention_queries else value_width
        grid = batch * heads * triton.cdiv(queries, tile.queries), triton.cdiv(columns, tile.out)
    constants = tile.constants()
    if "PARTS" in kernel.arg_names:
        constants["PARTS"] = _parts(x)
    run(
        kernel, grid, query,
        *(_argument(t) for t in tensors), heads, heads // key_heads, queries, keys, x.scale, *splits,
        CAUSAL=x.causal, WIDTH=width, VALUE_WIDTH=value_width, **constants,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _argument(tensor: Tensor | None) -> tuple[Any, ...]:
    """Describe a tensor as the kernels take it."""
    if tensor is None:
        return (None, 0, 0, 0, 0)
    return (tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, *tensor.stride())
