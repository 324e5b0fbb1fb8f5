"""Which tensors the fused operations take, and how autocast casts them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from hvp_engine.kernels.attention import can_run
from hvp_engine.kernels.registry import is_fused
from hvp_engine.system.torch_private import dispatch_modes, nested_forward_mode

__all__ = ["attention_applies", "autocast_operands", "fused_applies", "normalize_applies"]

_PLAIN_TYPES = (Tensor, Parameter)


def _are_addressable(*tensors: Tensor | None) -> bool:
    """Say whether a kernel may read and write these tensors at their addresses; None stands for an absent one.

    It may if they are plain strided tensors with at least one element. Under tracing or any other dispatch mode
    (counters, fake tensors, make_fx) the plain operations are used, because raw addresses would hide the work; so they
    are in nested forward mode, which no autograd function survives.
    """
    if dispatch_modes() or torch.compiler.is_compiling() or nested_forward_mode():
        return False
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in _PLAIN_TYPES or tensor.layout is not torch.strided or not tensor.numel()
        ):
            return False
    return True


def fused_applies(family: str, *tensors: Tensor | None) -> bool:
    """Say whether the fused kernels of a family are to serve these tensors.

    They need plain strided tensors of a supported dtype with at least one element, on one device that has such
    kernels; nothing may trace or simulate the operations.

    Args:
        family: Name of the family in `hvp_engine.kernels`.
        tensors: The operation's floating-point tensors, one at least; None stands for an absent one.

    Returns:
        True if fused kernels serve, False if the plain reference must; see `is_fused`.
    """
    return _are_addressable(*tensors) and is_fused(family, *(tensor for tensor in tensors if tensor is not None))


def normalize_applies(x: Tensor, w: Tensor | None, b: Tensor | None) -> bool:
    """Say whether the fused normalisations serve: as `fused_applies`, with parameters in x's dtype or float32."""
    if w is None:
        return b is None and fused_applies("normalize", x)
    if w.dtype != x.dtype and not (x.dtype == torch.bfloat16 and w.dtype == torch.float32):
        return False
    return (b is None or b.dtype == w.dtype) and fused_applies("normalize", x, w, b)


def attention_applies(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Say whether fused attention serves checked and expanded operands.

    Its kernels have dtypes of their own, a limit on leading dimensions (`can_run`), and no gradient of the mask.
    """
    return (
        _are_addressable(query, key, value, mask)
        and can_run(query, mask)
        and (mask is None or not _is_differentiated(mask))
    )


def _is_differentiated(tensor: Tensor) -> bool:
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def autocast_operands(device: torch.device, *tensors: Tensor | None) -> list[Tensor | None]:
    """Cast as autocast does for operations in its lower precision; without autocast, change nothing."""
    if not torch.is_autocast_enabled(device.type):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device.type)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]
