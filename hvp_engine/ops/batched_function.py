"""Base class of the fused operations: cheap autograd functions that every kind of vmap can batch."""

# ruff: noqa: ANN401 - autograd functions take and return anything.
from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _functorch
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function

__all__ = ["BatchedFunction"]


class BatchedFunction(Function):
    """An autograd function whose `vmap` staticmethod serves both of PyTorch's batching mechanisms.

    `torch.autograd.grad(..., is_grads_batched=True)` uses an older vmap than torch.func does. That one knows
    no rules of autograd functions: its batched tensors, which have no address, would reach `forward`.
    Subclasses use setup_context, and their vmap rules return outputs with the batch in front.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Sends forward calls with tensors of the older vmap through the vmap rule."""
        super().__init_subclass__(**kwargs)
        compute = cls.forward

        @functools.wraps(compute)
        def forward(*args: Any) -> Any:
            for arg in args:
                if isinstance(arg, Tensor) and _functorch.is_legacy_batchedtensor(arg):
                    return _through_vmap_rule(cls, args)
            return compute(*args)

        cls.forward = staticmethod(forward)  # type: ignore[method-assign]

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Applies the function to all of its arguments, in order.

        Function.apply binds the arguments to the signature first, which takes longer than a small kernel.
        """
        if _are_functorch_transforms_active():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        # What torch.func.vjp returns runs after its transform has ended: its tensors may be dead wrappers.
        return super(Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def _through_vmap_rule(function: type[BatchedFunction], args: tuple[Any, ...]) -> Any:
    """Runs the vmap rule of a function on the innermost level of the older vmap."""
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # A tensor without this level comes back with a leading dimension of 1, which broadcasts.
    plain = [
        torch._remove_batch_dim(arg, level, 1, 0)
        if isinstance(arg, Tensor) and _functorch.is_legacy_batchedtensor(arg)
        else arg
        for arg in args
    ]
    batched = [new is not old for new, old in zip(plain, args, strict=True)]
    size = max(tensor.shape[0] for tensor, is_batched in zip(plain, batched, strict=True) if is_batched)
    plain = [
        arg.expand(size, *arg.shape[1:]) if is_batched else arg
        for arg, is_batched in zip(plain, batched, strict=True)
    ]
    in_dims = tuple(0 if is_batched else None for is_batched in batched)
    info = SimpleNamespace(batch_size=size, randomness="error")
    torch._C._vmapmode_decrement_nesting()
    try:
        outputs, _ = function.vmap(info, in_dims, *plain)  # type: ignore[no-untyped-call]
    finally:
        torch._C._vmapmode_increment_nesting()
    if isinstance(outputs, Tensor):
        return torch._add_batch_dim(outputs, 0, level)
    return tuple(None if output is None else torch._add_batch_dim(output, 0, level) for output in outputs)
