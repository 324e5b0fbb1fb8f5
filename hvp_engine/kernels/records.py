"""What the kernels of operations read, as the facades hand it to every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "AttentionInputs",
    "AttentionSizes",
    "AttentionWork",
    "CrossEntropyRows",
    "NormalizeShape",
    "Operand",
    "is_shared",
]

Operand = tuple[Tensor | None, int]
"""A tensor or None, and its batch stride: groups that follow each other at it, or 0 for one group that serves all."""


class AttentionSizes(NamedTuple):
    """Sizes of attention's operands, from which its work follows.

    Attributes:
        dtype: Of all operands.
        batch: All leading dimensions before the heads.
        heads: Of the query.
        key_heads: Of key and value.
        queries: Rows of the query.
        keys: Rows of key and value.
        width: Head size of query and key.
        value_width: Head size of the value.
        masked: Whether there is a mask.
    """

    dtype: torch.dtype
    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    width: int
    value_width: int
    masked: bool = False


class AttentionWork(NamedTuple):
    """What one pass of attention takes.

    Attributes:
        narrow: Products per tile of scores, with rows of the query's and key's head size.
        wide: The same with rows of the value's head size.
        launches: Kernels.
        edge: Rows of scores that are computed together: what of a causal triangle's edge is computed too.
    """

    narrow: int
    wide: int
    launches: int
    edge: int = 64

    @property
    def products(self) -> int:
        """All products per tile of scores."""
        return self.narrow + self.wide


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


@dataclass(frozen=True)
class CrossEntropyRows:
    """What every pass of cross-entropy over rows of logits reads; all tensors are contiguous.

    Attributes:
        logits: Logits (R, C).
        target: Class indices (R), int64.
        class_weight: Class weights (C) in the accumulator type, or None.
        count: Rows of the outputs, a multiple K R of R; row r belongs to row r % R of the logits.
        ignore_index: Target value whose rows have neither loss nor gradient.
        smoothing: Share of the target distribution spread evenly over the classes.
    """

    logits: Tensor
    target: Tensor
    class_weight: Tensor | None
    count: int
    ignore_index: int
    smoothing: float


class NormalizeShape(NamedTuple):
    """Extents of a normalisation of rows.

    Attributes:
        centered: True for layer norm, False for RMS norm.
        batch: Groups of rows, each with its own row of every parameter.
        rows: Rows per group.
        size: Elements per row.
    """

    centered: bool
    batch: int
    rows: int
    size: int


def is_shared(tensor: Tensor) -> bool:
    """Say whether one contiguous group of values serves the whole leading dimension."""
    return tensor.dim() > 0 and tensor.stride(0) == 0 and tensor.shape[0] > 1 and tensor[0].is_contiguous()
