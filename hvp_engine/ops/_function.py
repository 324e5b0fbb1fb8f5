"""What the native operations share: when they apply, how they enter autograd, how tensors become operands."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _functorch, _len_torch_dispatch_stack
from torch.autograd import Function
from torch.nn import Parameter

from hvp_engine.errors import SecondDerivativeError
from hvp_engine.kernels.registry import backend_for

__all__ = [
    "ELEMENT_TYPES",
    "address",
    "apply",
    "batch_first",
    "elementwise_operands",
    "native_applies",
    "no_third_derivative",
    "with_grads_batched",
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


def apply(function: type[Function], *args: Any) -> Any:
    """Calls `function.apply` without its signature binding, which costs more than a small kernel.

    Args:
        function: An autograd function with setup_context.
        args: All of its arguments, in order.

    Returns:
        What `function.apply` returns.
    """
    if _are_functorch_transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*args)  # type: ignore[misc]


@dataclass(frozen=True)
class _VmapInfo:
    """What a vmap rule is told about the vmapped dimension."""

    batch_size: int


def _through_vmap_rule(function: type[Any], args: tuple[Any, ...]) -> Any:
    """Runs the vmap rule of an autograd function on the innermost level of torch.autograd's own vmap."""
    level = torch._C._vmapmode_increment_nesting() - 1
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
    torch._C._vmapmode_decrement_nesting()
    try:
        outputs, _ = function.vmap(
            _VmapInfo(size), tuple(0 if is_batched else None for is_batched in batched), *plain
        )
    finally:
        torch._C._vmapmode_increment_nesting()
    if isinstance(outputs, Tensor):
        return torch._add_batch_dim(outputs, 0, level)
    return tuple(None if output is None else torch._add_batch_dim(output, 0, level) for output in outputs)


def with_grads_batched(function: type[Any]) -> type[Any]:
    """Makes an autograd function's vmap rule serve `torch.autograd.grad(..., is_grads_batched=True)` too.

    That option still uses an older vmap than torch.func does. It knows no rules of autograd functions: it passes its
    batched tensors, which have no address, straight into `forward`.

    Args:
        function: An autograd function with setup_context and a vmap rule whose outputs have the batch in front.

    Returns:
        The same class.
    """
    compute = function.forward

    @functools.wraps(compute)
    def forward(*args: Any) -> Any:
        for arg in args:
            if isinstance(arg, Tensor) and _functorch.is_legacy_batchedtensor(arg):
                return _through_vmap_rule(function, args)
        return compute(*args)

    function.forward = staticmethod(forward)
    return function


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
    """Gives every tensor of a vmap rule the batch as leading dimension; an unbatched one is expanded, not copied.

    Args:
        batch_size: Size of the vmapped dimension.
        in_dims: Where each tensor has it; None for a tensor without.
        tensors: The tensors, in the same order; None stands for an absent one.

    Returns:
        The tensors of shape (batch_size, ...).
    """
    return [
        None
        if tensor is None
        else tensor.expand(batch_size, *tensor.shape)
        if dim is None
        else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


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
        Number of groups, elements per group, (address, batch stride) of every input one after the other, and the
        tensors that own the addresses.
    """
    first = next(tensor for tensor in tensors if tensor is not None)
    for tensor in tensors:
        if tensor is not None and not tensor.is_contiguous():
            break
    else:
        arguments = []
        for tensor in tensors:
            arguments += (0 if tensor is None else tensor.data_ptr(), 0)
        return 1, first.numel(), arguments, list(tensors)
    batch = first.shape[0] if first.dim() else 1
    size = first.numel() // batch
    owners: list[Tensor | None] = []
    arguments = []
    for tensor in tensors:
        shared = tensor is not None and is_shared(tensor)
        owner = tensor if tensor is None or shared else tensor.contiguous()
        owners.append(owner)
        arguments += (address(owner), 0 if shared else size)
    return batch, size, arguments, owners


def is_shared(tensor: Tensor) -> bool:
    """Says whether one contiguous group of values serves the whole leading dimension."""
    return tensor.dim() > 0 and tensor.stride(0) == 0 and tensor.shape[0] > 1 and tensor[0].is_contiguous()
