"""Base class of the fused operations: autograd functions that `is_grads_batched=True` can batch, too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function

from hvp_engine.errors import SecondDerivativeError

__all__ = ["BatchedFunction", "raise_third_derivative"]


def _is_legacy_batched(value: Any) -> bool:
    """Recognises the tensors of `torch.autograd.grad(..., is_grads_batched=True)`.

    Those of torch.func.vmap are of another kind, and only for them does autograd.Function call `vmap` by
    itself.
    """
    return isinstance(value, Tensor) and torch._C._functorch.is_legacy_batchedtensor(value)


def raise_third_derivative(operation: str) -> NoReturn:
    """Raises the error of every operation here that is asked for a third derivative."""
    raise SecondDerivativeError(
        f"hvp_engine.ops.{operation} has first and second derivatives only. For a third one use "
        f"hvp_engine.ops.{operation}_ref, which PyTorch differentiates any number of times."
    )


class BatchedFunction(Function):
    """An autograd function whose `vmap` staticmethod serves both of PyTorch's batching mechanisms."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Applies the function to all of its arguments, in order; batched ones go through `vmap`.

        The rule is chosen here, not in the forward, so that its outputs keep their graph (create_graph=True).
        Function.apply would bind the arguments to the signature first, longer than a small kernel takes.
        """
        if _are_functorch_transforms_active():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        if any(_is_legacy_batched(value) for value in args):
            return _through_vmap_rule(cls, args)
        # What torch.func.vjp returns runs after its transform has ended: its tensors may be dead wrappers.
        return super(Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def _through_vmap_rule(function: type[BatchedFunction], args: tuple[Any, ...]) -> Any:
    """Runs the vmap rule of a function on the innermost level of the older vmap."""
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # A tensor without this level comes back with a leading dimension of 1, which broadcasts.
    batched = [_is_legacy_batched(value) for value in args]
    plain = [
        torch._remove_batch_dim(value, level, 1, 0) if is_batched else value
        for value, is_batched in zip(args, batched, strict=True)
    ]
    size = max(value.shape[0] for value, is_batched in zip(plain, batched, strict=True) if is_batched)
    plain = [
        value.expand(size, *value.shape[1:]) if is_batched else value
        for value, is_batched in zip(plain, batched, strict=True)
    ]
    in_dims = tuple(0 if is_batched else None for is_batched in batched)
    info = SimpleNamespace(batch_size=size, randomness="error")
    torch._C._vmapmode_decrement_nesting()
    try:
        outputs, out_dims = function.vmap(info, in_dims, *plain)  # type: ignore[no-untyped-call]
    finally:
        torch._C._vmapmode_increment_nesting()
    if isinstance(outputs, Tensor):
        return torch._add_batch_dim(outputs, out_dims, level)
    return tuple(
        output if dim is None else torch._add_batch_dim(output, dim, level)
        for output, dim in zip(outputs, out_dims, strict=True)
    )
