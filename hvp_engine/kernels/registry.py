"""Which backend runs a kernel: chosen per device at call time, overridden by HVP_ENGINE_BACKEND."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hvp_engine.errors import BackendError
from hvp_engine.kernels import loader

__all__ = ["Backend", "available_backends", "backend_for", "host_backend", "intended_backend"]

_GPU_BACKENDS = ("triton", "cuda")
_TRITON_CAPABILITY = (8, 0)  # below it, Triton's matrix products fall back to scalar code that spills registers


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


def _triton_why_not(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "its kernels run on CUDA devices only"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < _TRITON_CAPABILITY:
        return "the device has compute capability {}.{}, it needs {}.{}".format(*capability, *_TRITON_CAPABILITY)
    return None


def _cuda_why_not(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "its kernels run on CUDA devices only"
    return loader.cuda_missing_reason()


def _torch_why_not(device: torch.device) -> str | None:
    return None


# Best first; a new backend is one line here. The PyTorch reference stays last: it runs everywhere. Triton is first on
# the GPUs that it serves, but has no tridiagonal quadrature: implicit QL steers every matrix by its own data, in
# sequence, which is one CUDA thread per matrix and no work on blocks.
_BACKENDS = (
    Backend("triton", _triton_why_not),
    Backend("cuda", _cuda_why_not),
    Backend("native", _native_why_not),
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
    wish = os.environ.get("HVP_ENGINE_BACKEND", "")
    if not wish:
        if device.type == "cpu":
            loader.warn_if_missing()
        return next(backend.name for backend in _BACKENDS if backend.why_not(device) is None)
    available = available_backends(device)
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


def intended_backend(device: torch.device) -> str:
    """Names the backend that a kernel call on a device will ask for, whether or not it can run there.

    For predicates, which must not raise: what cannot be met is refused by `backend_for` when a kernel is called.

    Args:
        device: The device that holds the tensors.

    Returns:
        HVP_ENGINE_BACKEND where it is set, else as `backend_for`.
    """
    return os.environ.get("HVP_ENGINE_BACKEND", "") or backend_for(device)


def host_backend() -> str:
    """Chooses the backend for a job's scalars, which end on the CPU wherever its vectors live.

    Returns:
        As `backend_for` the CPU; but HVP_ENGINE_BACKEND=triton or cuda is a wish about vectors, and leaves the
        choice for scalars free.

    Raises:
        BackendError: HVP_ENGINE_BACKEND names an unknown backend, or one that cannot run at all.
    """
    cpu = torch.device("cpu")
    if os.environ.get("HVP_ENGINE_BACKEND", "") in _GPU_BACKENDS:
        return available_backends(cpu)[0]
    return backend_for(cpu)
