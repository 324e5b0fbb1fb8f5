"""Slices and shapes of logits (..., V) as slices and shapes of the hidden states (..., d) that they are computed from.

Each function returns the hidden states whose logits are wanted, or NotImplemented where the classes are touched.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

__all__ = ["flattened", "indexed", "reshaped"]


def indexed(hidden: Tensor, index: Any) -> Any:
    """Index leading dimensions."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(entry, list) for entry in entries):
        return NotImplemented
    rank = hidden.dim()
    consumed = sum(_consumed(entry) for entry in entries)
    ellipses = [i for i, entry in enumerate(entries) if isinstance(entry, EllipsisType)]
    if len(ellipses) == 1:
        entries[ellipses[0] : ellipses[0] + 1] = [slice(None)] * (rank - consumed)
        consumed = rank
    if consumed == rank and isinstance(entries[-1], slice) and entries[-1] == slice(None):
        entries, consumed = entries[:-1], rank - 1
    return NotImplemented if consumed >= rank else hidden[tuple(entries)]


def _consumed(entry: Any) -> int:
    """Return how many dimensions an index entry takes."""
    if entry is None or isinstance(entry, EllipsisType):
        return 0
    return entry.dim() if isinstance(entry, Tensor) and entry.dtype == torch.bool else 1


def reshaped(hidden: Tensor, classes: int, *shape: Any) -> Any:
    """Reshape leading dimensions to what logits of a shape have."""
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    if not sizes or isinstance(sizes[0], torch.dtype):
        return NotImplemented
    rows = hidden.shape[:-1].numel()
    leading = sizes[:-1]
    last_is_classes = sizes[-1] == classes or (
        sizes[-1] == -1 and -1 not in leading and torch.Size(leading).numel() == rows
    )
    if not last_is_classes or (-1 not in leading and torch.Size(leading).numel() != rows):
        return NotImplemented
    return hidden.reshape(*leading, hidden.shape[-1])


def flattened(hidden: Tensor, start_dim: int, end_dim: int) -> Any:
    """Flatten leading dimensions."""
    last = hidden.dim() - 1
    end = end_dim % (last + 1)
    return NotImplemented if end == last else hidden.flatten(start_dim, end)
