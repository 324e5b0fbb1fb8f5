"""Vmap rules for row-wise kernels, and which gradients a backward pass must really compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["fold_rows", "tensor_arguments", "vmap_by_loop", "wanted_gradients"]


def _front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Moves the batch dimension to the front, or makes one without copying."""
    return tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def fold_rows(
    size: int,
    base: Sequence[tuple[Tensor, int | None]],
    rows: Sequence[tuple[Tensor, int | None]],
) -> tuple[list[Tensor], list[Tensor], Callable[[Tensor], Tensor]]:
    """Folds a vmapped dimension into the rows of a kernel whose row r reads base row r % base_rows.

    Args:
        size: Length B of the vmapped dimension.
        base: Tensors of shape (R, ...) with the position of their batch dimension or None.
        rows: Tensors of shape (K * R, ...), likewise.

    Returns:
        The folded base tensors, the folded row tensors, and the function that turns an output with the folded
        rows into one of shape (B, K * R, ...). Base tensors are not copied when none of them is batched.
    """
    if all(dim is None for _, dim in base):
        folded = [_front(t, dim, size).flatten(0, 1) for t, dim in rows]
        return [t for t, _ in base], folded, lambda out: torch.unflatten(out, 0, (size, -1))
    base_rows = max(t.shape[0] if dim is None else t.movedim(dim, 0).shape[1] for t, dim in base)
    wide_base = [_front(t, dim, size).flatten(0, 1) for t, dim in base]
    wide_rows = [
        torch.unflatten(_front(t, dim, size), 1, (-1, base_rows)).transpose(0, 1).flatten(0, 2) for t, dim in rows
    ]

    def unfold(out: Tensor) -> Tensor:
        return torch.unflatten(out, 0, (-1, size, base_rows)).transpose(0, 1).flatten(1, 2)

    return wide_base, wide_rows, unfold


def vmap_by_loop(
    apply: Callable[..., Any], size: int, in_dims: Sequence[int | None], arguments: Sequence[Any]
) -> tuple[Any, Any]:
    """Batches an autograd function by one call per example: for inputs whose rows cannot be folded.

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


def tensor_arguments(inputs: Sequence[Any]) -> tuple[bool, ...]:
    """Records which arguments of an autograd function are tensors; `wanted_gradients` needs it."""
    return tuple(isinstance(value, Tensor) for value in inputs)


def wanted_gradients(ctx: Any, is_tensor: Sequence[bool]) -> list[bool]:
    """Tells for each argument whether the running backward pass will use its gradient.

    `ctx.needs_input_grad` is fixed when the forward runs: a weight that requires grad is "needed" even by
    `torch.autograd.grad` to the hidden states alone. The engine knows better which edges it will follow.

    Args:
        ctx: Context of the running backward.
        is_tensor: `tensor_arguments` of the forward's inputs.

    Returns:
        One flag per argument. Falls back to `ctx.needs_input_grad` where the engine cannot tell.
    """
    needed = list(ctx.needs_input_grad)
    edges = getattr(ctx, "next_functions", None)
    if edges is None or len(edges) != sum(is_tensor):
        return needed
    remaining = iter(edges)
    followed = [_is_followed(next(remaining)[0]) if tensor else False for tensor in is_tensor]
    return [wanted and use for wanted, use in zip(needed, followed, strict=True)]


def _is_followed(node: Any) -> bool:
    if node is None:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a leaf among the inputs of autograd.grad, or no backward pass is running
        return True
