"""Grouped matrix products of mixtures of experts in dtypes that PyTorch's kernel does not have."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grouped_mm_ref"]


def grouped_mm_ref(a: Tensor, b: Tensor, ends: list[int]) -> Tensor:
    """Multiply groups of rows by a matrix each, in plain PyTorch.

    Args:
        a: Rows (S, K), those of a group together.
        b: Matrices (G, K, N).
        ends: Where each of the G groups of rows ends, ascending.

    Returns:
        (S, N); zeros in rows behind the last group.
    """
    starts = [0, *ends[:-1]]
    parts = [a[start:end] @ matrix for start, end, matrix in zip(starts, ends, b, strict=True)]
    rest = a.shape[0] - (ends[-1] if ends else 0)
    if rest:
        parts.append(a.new_zeros(rest, b.shape[-1]))
    return torch.cat(parts)
