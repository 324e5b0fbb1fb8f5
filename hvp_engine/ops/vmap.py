"""What the vmap rules of fused operations share: the batch in front, folded into rows, or taken one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["batch_first", "fold_rows", "to_front", "vmap_by_loop"]


def to_front(size: int, dim: int | None, tensor: Tensor) -> Tensor:
    """Move the batch of a vmap rule to the front of a tensor; an unbatched one is expanded, not copied.

    Args:
        size: Size of the vmapped dimension.
        dim: Where the tensor has it; None for a tensor without.
        tensor: The tensor.

    Returns:
        The tensor of shape (size, ...).
    """
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def batch_first(size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Move the batch to the front of several tensors, as `to_front`.

    Args:
        size: Size of the vmapped dimension.
        in_dims: Where each tensor has it; those of further arguments may follow.
        tensors: The tensors, in the same order; None stands for an absent one.

    Returns:
        The tensors of shape (size, ...), and None in their places.
    """
    return [
        None if tensor is None else to_front(size, dim, tensor) for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


def fold_rows(
    size: int,
    base: Sequence[tuple[Tensor, int | None]],
    rows: Sequence[tuple[Tensor, int | None]],
) -> tuple[list[Tensor], list[Tensor], Callable[[Tensor], Tensor]]:
    """Fold a vmapped dimension into the rows of a kernel whose row r reads base row r % base_rows.

    Args:
        size: Length B of the vmapped dimension.
        base: Tensors of shape (R, ...) with the position of their batch dimension or None.
        rows: Tensors of shape (K * R, ...), likewise.

    Returns:
        The folded base tensors, the folded row tensors, and the function that turns an output with the folded
        rows into one of shape (B, K * R, ...). Base tensors are not copied when none of them is batched.
    """
    if all(dim is None for _, dim in base):
        folded = [to_front(size, dim, t).flatten(0, 1) for t, dim in rows]
        return [t for t, _ in base], folded, lambda out: torch.unflatten(out, 0, (size, -1))
    base_rows = max(t.shape[0] if dim is None else t.movedim(dim, 0).shape[1] for t, dim in base)
    wide_base = [to_front(size, dim, t).flatten(0, 1) for t, dim in base]
    wide_rows = [
        torch.unflatten(to_front(size, dim, t), 1, (-1, base_rows)).transpose(0, 1).flatten(0, 2) for t, dim in rows
    ]

    def unfold(out: Tensor) -> Tensor:
        return torch.unflatten(out, 0, (-1, size, base_rows)).transpose(0, 1).flatten(1, 2)

    return wide_base, wide_rows, unfold


def vmap_by_loop(
    apply: Callable[..., Any], size: int, in_dims: Sequence[int | None], arguments: Sequence[Any]
) -> tuple[Any, Any]:
    """Batch an autograd function by one call per example: for inputs whose rows cannot be folded.

    Args:
        apply: The function's `apply`.
        size: Length of the vmapped dimension.
        in_dims: Position of the batch dimension per argument, None where it has none.
        arguments: The arguments of `apply`.

    Returns:
        Outputs stacked along a new first dimension, and their batch dimensions.
    """
    outputs = []
    for index in range(size):
        picked = [
            argument if dim is None else argument.select(dim, index)
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        outputs.append(apply(*picked))
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))
    return stacked, (0,) * len(stacked)
