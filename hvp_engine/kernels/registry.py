"""Which backend runs a kernel: chosen per device at call time, overridden by HVP_ENGINE_BACKEND."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hvp_engine.errors import BackendError
from hvp_engine.kernels import loader

__all__ = ["Backend", "available_backends", "backend_for"]


@dataclass(frozen=True)
class Backend:
    """One way to run the kernels.

    Attributes:
        name: Value of HVP_ENGINE_BACKEND that asks for it.
        why_not: Says for a device why the backend cannot run there, or None when it can.
    """

    name: str
    why_not: Callable[[torch.device], str | None]


def _native_why_not(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "its kernels run on the CPU only"
    return loader.missing_reason


_LEAST_CAPABILITY = (8, 0)  # older devices get slow, spilling code from Triton


def _triton_why_not(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "its kernels run on CUDA only"
    return _triton_on_cuda_why_not(torch.cuda.current_device() if device.index is None else device.index)


@functools.lru_cache
def _triton_on_cuda_why_not(index: int) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    capability = torch.cuda.get_device_capability(index)
    if capability < _LEAST_CAPABILITY:
        return f"its kernels need compute capability 8.0 or newer, this device has {capability[0]}.{capability[1]}"
    return None


def _torch_why_not(device: torch.device) -> str | None:
    return None


# Best first; a new backend is one line here. The PyTorch reference stays last: it runs everywhere.
_BACKENDS = (
    Backend("native", _native_why_not),
    Backend("triton", _triton_why_not),
    Backend("torch", _torch_why_not),
)


def available_backends(device: torch.device) -> list[str]:
    """Names the backends that can run on a device, best first.

    Args:
        device: The device that holds the tensors.

    Returns:
        Backend names; "torch" is always the last one.
    """
    return [backend.name for backend in _BACKENDS if backend.why_not(device) is None]


def backend_for(device: torch.device) -> str:
    """Chooses the backend for tensors on a device.

    HVP_ENGINE_BACKEND, when set, is read at every call and must be met exactly. Otherwise the best available
    backend is taken; a CPU without the compiled extension warns once and takes the PyTorch reference.

    Args:
        device: The device that holds the tensors.

    Returns:
        The backend's name.

    Raises:
        BackendError: HVP_ENGINE_BACKEND names an unknown backend, or one that cannot run on the device.
    """
    available = available_backends(device)
    wish = os.environ.get("HVP_ENGINE_BACKEND", "")
    if not wish:
        if device.type == "cpu":
            loader.warn_if_missing()
        return available[0]
    if wish in available:
        return wish
    reason = next(
        (backend.why_not(device) for backend in _BACKENDS if backend.name == wish),
        "this build has no such backend",
    )
    raise BackendError(
        f"HVP_ENGINE_BACKEND={wish} cannot be used on {device}: {reason}. "
        f"Available there: {', '.join(available)}. Unset HVP_ENGINE_BACKEND to choose by itself."
    )
