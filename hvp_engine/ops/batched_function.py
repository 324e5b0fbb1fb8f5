"""Base class of the fused operations: autograd functions that `is_grads_batched=True` can batch, too."""

# ruff: noqa: ANN401 - contexts and arguments of autograd functions have no narrower type
from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from hvp_engine.errors import ConfigurationError, SecondDerivativeError

__all__ = ["BatchedFunction", "raise_third_derivative"]


def _is_legacy_batched(value: Any) -> bool:
    """Recognises the tensors of `torch.autograd.grad(..., is_grads_batched=True)`.

    Those of torch.func.vmap are of another kind, and only for them does autograd.Function call `vmap` by
    itself.
    """
    return isinstance(value, Tensor) and torch._C._functorch.is_legacy_batchedtensor(value)


def _legacy_level() -> int:
    """Returns how many vmaps of that older kind are running."""
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


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
        """Applies the function; batched arguments go through the `vmap` staticmethod.

        Raises:
            ConfigurationError: Batched gradients are nested in each other.
        """
        if not any(_is_legacy_batched(value) for value in args):
            return super().apply(*args)  # type: ignore[no-untyped-call]
        level = _legacy_level()
        if level != 1:
            raise ConfigurationError(
                "is_grads_batched=True cannot be nested around hvp_engine operations; use "
                "torch.func.vmap instead."
            )
        in_dims = tuple(0 if _is_legacy_batched(value) else None for value in args)
        plain = [
            torch._remove_batch_dim(value, level, 0, 0) if dim == 0 else value
            for value, dim in zip(args, in_dims, strict=True)
        ]
        size = next(value.shape[0] for value, dim in zip(plain, in_dims, strict=True) if dim == 0)
        info = SimpleNamespace(batch_size=size, randomness="error")
        outputs, out_dims = cls.vmap(info, in_dims, *plain)  # type: ignore[no-untyped-call]
        if isinstance(outputs, Tensor):
            return torch._add_batch_dim(outputs, out_dims, level)
        return tuple(
            output if dim is None else torch._add_batch_dim(output, dim, level)
            for output, dim in zip(outputs, out_dims, strict=True)
        )
