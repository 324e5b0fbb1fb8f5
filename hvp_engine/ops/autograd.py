"""What the autograd functions of all fused operations share: their base classes, and which gradients they compute."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hvp_engine.system.torch_private import (
    add_batch_dim,
    enter_vmap,
    is_batched,
    is_zero_tensor,
    leave_vmap,
    remove_batch_dim,
    transforms_active,
    unwrap_if_dead,
    will_execute,
    without_torch_functions,
)

__all__ = [
    "BatchedFunction",
    "sum_present",
    "tensor_arguments",
    "wanted_gradients",
]


class BatchedFunction(Function):
    """An autograd function whose `vmap` staticmethod serves both of PyTorch's batching mechanisms."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Apply the function to all of its arguments, in order; batched ones go through `vmap`.

        The tensors of `torch.autograd.grad(..., is_grads_batched=True)` and those of torch.func.vmap are of two kinds,
        and only for the latter does Function.apply call `vmap` by itself. The rule is chosen here, not in the forward,
        so that its outputs keep their graph (create_graph=True). Function.apply would bind the arguments to the
        signature first, longer than a small kernel takes.
        """
        plain = []
        for value in args:
            if isinstance(value, Tensor):
                if is_batched(value):
                    with without_torch_functions():
                        return _through_vmap_rule(cls, args)
                plain.append(_with_memory(value))
            else:
                plain.append(value)
        if transforms_active():
            return super().apply(*plain)  # type: ignore[no-untyped-call]
        # A mode such as `twice_differentiable` has nothing to do inside, but would be called for every tensor method.
        with without_torch_functions():
            return super(Function, cls).apply(*plain)  # type: ignore[misc]


def _with_memory(tensor: Tensor) -> Tensor:
    """Return what a kernel can read in place of a tensor that transforms of torch.func left without an address.

    What torch.func.vjp returns runs after its transform has ended: its tensors may be dead wrappers, also of others.
    """
    while (inner := unwrap_if_dead(tensor)) is not tensor:
        tensor = inner
    return tensor.new_zeros(tensor.shape) if is_zero_tensor(tensor) else tensor


def _through_vmap_rule(function: type[BatchedFunction], args: tuple[Any, ...]) -> Any:
    """Run the vmap rule of a function on the innermost level of the older vmap."""
    nested = enter_vmap() - 1
    leave_vmap()
    # Backward passes of a GPU run on a thread of autograd's, which is not told how deep the caller's vmaps are nested;
    # is_grads_batched is the only way there, and the outermost level.
    level = nested or 1
    # A tensor without this level comes back with a leading dimension of 1, which broadcasts.
    batched = [isinstance(value, Tensor) and is_batched(value) for value in args]
    plain = [
        remove_batch_dim(value, level, 1, 0) if has_level else value
        for value, has_level in zip(args, batched, strict=True)
    ]
    size = max(value.shape[0] for value, has_level in zip(plain, batched, strict=True) if has_level)
    plain = [
        value.expand(size, *value.shape[1:]) if has_level else value
        for value, has_level in zip(plain, batched, strict=True)
    ]
    in_dims = tuple(0 if has_level else None for has_level in batched)
    info = SimpleNamespace(batch_size=size, randomness="error")
    with _outside_vmap() if nested else nullcontext():
        outputs, out_dims = function.vmap(info, in_dims, *plain)  # type: ignore[no-untyped-call]
    if isinstance(outputs, Tensor):
        return add_batch_dim(outputs, out_dims, level)
    return tuple(
        output if dim is None else add_batch_dim(output, dim, level)
        for output, dim in zip(outputs, out_dims, strict=True)
    )


@contextmanager
def _outside_vmap() -> Iterator[None]:
    """Leave the innermost level of the older vmap for a while."""
    leave_vmap()
    try:
        yield
    finally:
        enter_vmap()


def tensor_arguments(inputs: Sequence[Any]) -> tuple[bool, ...]:
    """Record which arguments of an autograd function are tensors; `wanted_gradients` needs it."""
    return tuple(isinstance(value, Tensor) for value in inputs)


def wanted_gradients(ctx: Any, is_tensor: Sequence[bool]) -> list[bool]:
    """Tell for each argument whether the running backward pass will use its gradient.

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
        return bool(will_execute(node))
    except RuntimeError:  # a leaf among the inputs of autograd.grad, or no backward pass is running
        return True


def sum_present(*terms: Tensor | None) -> Tensor | None:
    """Add the terms that are present; None if there is none."""
    present = [term for term in terms if term is not None]
    return functools.reduce(torch.add, present) if present else None
