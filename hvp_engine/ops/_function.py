"""What the native operations share: when they apply, how tensors become operands."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch.nn import Parameter

from hvp_engine.errors import SecondDerivativeError
from hvp_engine.kernels.registry import backend_for

__all__ = [
    "ELEMENT_TYPES",
    "address",
    "batch_first",
    "elementwise_operands",
    "is_shared",
    "native_applies",
    "no_third_derivative",
    "sum_present",
]

# Element types as csrc/include/hvp/element_type.h numbers them.
ELEMENT_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_PLAIN_TYPES = (Tensor, Parameter)


def native_applies(*tensors: Tensor | None) -> bool:
    """Says whether the native kernels can take these tensors.

    They need plain CPU tensors of a supported dtype with at least one element. Under tracing or any other
    dispatch mode the plain operations are used, because raw addresses would hide the work from the mode.

    Args:
        tensors: The operation's tensors; None stands for an absent one.

    Returns:
        True if the native kernels apply, False if the plain reference must serve.

    Raises:
        BackendError: HVP_ENGINE_BACKEND names a backend that cannot run here.
    """
    if _len_torch_dispatch_stack() or torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in _PLAIN_TYPES
            and tensor.is_cpu
            and tensor.dtype in ELEMENT_TYPES
            and tensor.layout is torch.strided
            and tensor.numel()
        ):
            return False
    return backend_for(torch.device("cpu")) == "native"


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


def address(tensor: Tensor | None) -> int:
    """Returns a tensor's address, or 0 for an absent one."""
    return 0 if tensor is None else tensor.data_ptr()


def elementwise_operands(*tensors: Tensor | None) -> tuple[int, int, list[int], list[Tensor | None]]:
    """Lays out equally shaped tensors for an element-wise kernel.

    A leading dimension along which a tensor is expanded (as vmap rules make it) becomes a batch stride of 0;
    any other non-contiguous tensor is copied.

    Args:
        tensors: The inputs; None stands for an absent one.

    Returns:
        Number of groups, elements per group, (address, batch stride) of every input one after the other, and
        the tensors that own the addresses.
    """
    arguments: list[int] = []
    first = next(tensor for tensor in tensors if tensor is not None)
    for tensor in tensors:
        if tensor is not None and not tensor.is_contiguous():
            break
    else:
        for tensor in tensors:
            arguments += (0 if tensor is None else tensor.data_ptr(), 0)
        return 1, first.numel(), arguments, list(tensors)
    batch = first.shape[0] if first.dim() else 1
    size = first.numel() // batch
    owners: list[Tensor | None] = []
    for tensor in tensors:
        shared = tensor is not None and is_shared(tensor)
        owner = tensor if tensor is None or shared else tensor.contiguous()
        owners.append(owner)
        arguments += (address(owner), 0 if shared else size)
    return batch, size, arguments, owners


def is_shared(tensor: Tensor) -> bool:
    """Says whether one contiguous group of values serves the whole leading dimension."""
    return tensor.dim() > 0 and tensor.stride(0) == 0 and tensor.shape[0] > 1 and tensor[0].is_contiguous()
