"""What the fused operations share: when they apply, vmap rules, refusals."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch.nn import Parameter

from hvp_engine.errors import SecondDerivativeError
from hvp_engine.kernels.registry import is_fused

__all__ = ["autocast_operands", "batch_first", "fused_applies", "no_third_derivative", "sum_present"]

_PLAIN_TYPES = (Tensor, Parameter)


def fused_applies(*tensors: Tensor | None) -> bool:
    """Says whether fused kernels can take these tensors.

    They need plain strided tensors of a supported dtype with at least one element, on one device that has such
    kernels. Under tracing or any other dispatch mode the plain operations are used, because raw addresses would
    hide the work from the mode.

    Args:
        tensors: The operation's tensors; None stands for an absent one.

    Returns:
        True if fused kernels apply, False if the plain reference must serve; see `is_fused`.
    """
    if _len_torch_dispatch_stack() or torch.compiler.is_compiling():
        return False
    present = [tensor for tensor in tensors if tensor is not None]
    for tensor in present:
        if type(tensor) not in _PLAIN_TYPES or tensor.layout is not torch.strided or not tensor.numel():
            return False
    return is_fused(*present)


def autocast_operands(device: torch.device, *tensors: Tensor | None) -> list[Tensor | None]:
    """Casts as autocast does for operations in its lower precision; without autocast, changes nothing."""
    if not torch.is_autocast_enabled(device.type):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device.type)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def no_third_derivative(name: str) -> NoReturn:
    """Refuses to differentiate a backward-of-backward.

    Args:
        name: The public operation's name.

    Raises:
        SecondDerivativeError: Always.
    """
    raise SecondDerivativeError(
        f"hvp_engine.ops.{name} is differentiable twice, and a third derivative was asked for. "
        f"Use hvp_engine.ops.{name}_ref, which is plain PyTorch, for derivatives of any order."
    )


def batch_first(
    batch_size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Moves the batch of a vmap rule to the front of every tensor; an unbatched one is expanded, not copied.

    Args:
        batch_size: Size of the vmapped dimension.
        in_dims: Where each tensor has it; None for a tensor without.
        tensors: The tensors, in the same order; None stands for an absent one.

    Returns:
        The tensors of shape (batch_size, ...).
    """
    return [
        None if tensor is None else tensor.expand(batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


def sum_present(*terms: Tensor | None) -> Tensor | None:
    """Adds the terms that are present; None if there is none."""
    present = [term for term in terms if term is not None]
    return functools.reduce(torch.add, present) if present else None
