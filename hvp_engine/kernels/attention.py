"""Attention on the kernels of the device: allocates the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from hvp_engine.errors import BackendError
from hvp_engine.kernels.records import AttentionInputs, AttentionSizes, AttentionWork
from hvp_engine.kernels.registry import (
    beside,
    implementation,
    is_fused,
    optional_implementation,
    wished_implementation,
)
from hvp_engine.kernels.tensors import accumulator

__all__ = [
    "AttentionCounts",
    "attention_backward",
    "attention_forward",
    "attention_second",
    "can_run",
    "counts_of",
    "counts_on",
    "statistics_like",
]


class AttentionCounts(Protocol):
    """Counts a backend's passes."""

    def forward(self, sizes: AttentionSizes) -> AttentionWork:
        """Count the forward pass."""

    def backward(self, wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
        """Count the backward pass to the wanted ones of query, key and value."""

    def second(self, given: Sequence[bool], wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
        """Count the backward of the backward, from given tangents to wanted operands and (last) cotangent."""


def counts_of(backend: str) -> AttentionCounts:
    """Return what counts the tile products of a backend's kernels, whether or not it can run here."""
    return cast(AttentionCounts, beside("attention_products", backend))


def counts_on(device: torch.device) -> AttentionCounts | None:
    """Return what counts the tile products of the kernels that serve a device; None where plain PyTorch does."""
    kernels = optional_implementation("attention", device)
    return None if kernels is None else counts_of(kernels.__name__.split(".")[-2])


def can_run(query: Tensor, mask: Tensor | None) -> bool:
    """Say whether the kernels to be used take these dtypes and the number of leading dimensions.

    Never raises: where HVP_ENGINE_BACKEND asks for what cannot run on the device, it says what those kernels take, so
    that plain PyTorch serves the rest and a call with what they take is refused.
    """
    try:
        kernels = optional_implementation("attention", query.device)
    except BackendError:
        kernels = wished_implementation("attention")
        if kernels is None:
            return is_fused("attention", query)
    return kernels is not None and bool(kernels.can_run(query, mask))


def statistics_like(query: Tensor) -> Tensor:
    """Allocate the row statistics of a query, in the accumulation type."""
    return query.new_empty((*query.shape[:-1], 2), dtype=accumulator(query.dtype))


def _dense_like(like: Tensor, columns: int) -> Tensor:
    """Allocate (*like.shape[:-1], columns) with the dimensions in the memory order of `like`.

    Heads split off a (batch, length, heads x width) tensor then give results that merge back without a copy.
    """
    rows = list(range(like.dim() - 1))
    expanded = any(like.stride(d) == 0 for d in rows)  # such a tensor has no order of its own
    order = [*(rows if expanded else sorted(rows, key=like.stride, reverse=True)), like.dim() - 1]
    shape = (*like.shape[:-1], columns)
    dense = like.new_empty([shape[d] for d in order])
    return dense.permute([order.index(d) for d in range(like.dim())])


def attention_forward(x: AttentionInputs) -> Tensor:
    """Compute attention (..., heads, L, Ev) and fill `x.statistics`."""
    out = _dense_like(x.query, x.value.shape[-1])
    implementation("attention", x.query.device).attention_forward(x, out)
    return out


def attention_backward(x: AttentionInputs, grad_out: Tensor, wanted: tuple[bool, bool, bool]) -> list[Tensor | None]:
    """Compute the gradients of query, key and value; None for those not wanted."""
    like = (x.query, x.key, x.value)
    grads = [_dense_like(t, t.shape[-1]) if want else None for t, want in zip(like, wanted, strict=True)]
    implementation("attention", x.query.device).attention_backward(x, grad_out, grads)
    return grads


def attention_second(
    x: AttentionInputs,
    grad_out: Tensor | None,
    tangents: Sequence[Tensor | None],
    wanted: tuple[bool, bool, bool, bool],
) -> list[Tensor | None]:
    """Compute the derivatives of <tangents, gradients of query, key and value>.

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
    implementation("attention", x.query.device).attention_second(x, grad_out, tangents, outputs)
    return outputs
