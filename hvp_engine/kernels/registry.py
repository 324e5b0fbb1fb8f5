"""Which backend runs a family of kernels: chosen per device, overridden by HVP_ENGINE_BACKEND.

A backend is a folder beside this file with one module per family that it has, named after the family, and one line in
``_BACKENDS``. Each function of such a module has the name of the one of the facade that calls it, and takes what the
facade was given, checked, and the outputs that the facade allocated.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from hvp_engine.errors import BackendError
from hvp_engine.kernels import loader
from hvp_engine.kernels.tensors import ELEMENT_TYPES

__all__ = [
    "Backend",
    "available_backends",
    "backend_for",
    "forget_choices",
    "host_implementation",
    "implementation",
    "is_fused",
    "optional_implementation",
]

# The families that are operations of a model; the others are Lanczos's own.
_OPERATIONS = (
    "activations",
    "attention",
    "cross_entropy",
    "embedding",
    "normalize",
    "packed_symmetric",
    "softmax",
)
_TRITON_VERSION = (3, 4)  # before it, a device function takes no None for what is absent, as attention's do
_TRITON_CAPABILITY = (8, 0)  # below it, Triton's matrix products fall back to scalar code that spills registers


@dataclass(frozen=True)
class Backend:
    """One way to run the kernels.

    Attributes:
        name: Name of its folder, and the value of HVP_ENGINE_BACKEND that asks for it.
        why_not: Says for a device of its type why the backend cannot run there, or None when it can.
        device_type: The type of the devices that it serves; None for all.
    """

    name: str
    why_not: Callable[[torch.device], str | None]
    device_type: str | None = None

    def refusal(self, device: torch.device) -> str | None:
        """Say why the backend cannot run on a device, or None when it can."""
        if self.device_type not in (None, device.type):
            return f"its kernels run on {str(self.device_type).upper()} devices only"
        return self.why_not(device)


def _triton_why_not(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    version = importlib.import_module("triton").__version__
    if tuple(map(int, version.split(".")[:2])) < _TRITON_VERSION:
        return "triton {} is installed, its kernels need {}.{} or newer".format(version, *_TRITON_VERSION)
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < _TRITON_CAPABILITY:
        return "the device has compute capability {}.{}, it needs {}.{}".format(*capability, *_TRITON_CAPABILITY)
    return None


# Best first; a new backend is one line here. The PyTorch references, which run everywhere, stay last. Triton is first
# on the GPUs that it serves, but has no tridiagonal quadrature: implicit QL steers every matrix by its own data, in
# sequence, which is one CUDA thread per matrix and no work on blocks.
_BACKENDS = (
    Backend("triton", _triton_why_not, "cuda"),
    Backend("cuda", lambda device: loader.cuda_missing_reason(), "cuda"),
    Backend("native", lambda device: loader.missing_reason, "cpu"),
    Backend("torch", lambda device: None),
)


def available_backends(device: torch.device) -> list[str]:
    """Name the backends that can run on a device, best first; "torch" is always the last one."""
    return [backend.name for backend in _BACKENDS if backend.refusal(device) is None]


def backend_for(device: torch.device) -> str:
    """Name the backend of choice for a device.

    HVP_ENGINE_BACKEND, when set, is read at every call and must be met exactly. Otherwise the best available
    backend is taken; a CPU without the compiled extension warns once and takes the PyTorch references.

    Args:
        device: The device that holds the tensors.

    Returns:
        The backend's name. A family that it has no kernels of may be served by another one, see `implementation`.

    Raises:
        BackendError: HVP_ENGINE_BACKEND names an unknown backend, or one that cannot run on the device.
    """
    return _candidates(device, _wish())[0]


def implementation(family: str, device: torch.device) -> ModuleType:
    """Return the module whose kernels of a family serve a device.

    Args:
        family: Name of the family, such as "softmax".
        device: The device that holds the tensors.

    Returns:
        The module of that name of the backend that HVP_ENGINE_BACKEND asks for; where it is not set, of the best
        available backend that has the family.

    Raises:
        BackendError: HVP_ENGINE_BACKEND names an unknown backend, or one that cannot run on the device; or no backend
            in question has the family.
    """
    wish = _wish()
    module = _module(family, device, wish)
    if module is None:
        asked = f"HVP_ENGINE_BACKEND={wish}" if wish else "No backend"
        raise BackendError(
            f"{asked} has no {family} kernels for {device}. Use the plain PyTorch operation there, or unset "
            "HVP_ENGINE_BACKEND to choose by itself."
        )
    return module


def optional_implementation(family: str, device: torch.device) -> ModuleType | None:
    """Return what `implementation` does, but None where a family's plain PyTorch reference must serve.

    Raises:
        BackendError: HVP_ENGINE_BACKEND names an unknown backend, or one that cannot run on the device.
    """
    return _module(family, device, _wish())


def host_implementation(family: str) -> ModuleType | None:
    """Return the module that serves a job's scalars on the host, wherever its vectors live; None for the reference.

    A wish for a backend that serves no CPU is about the vectors, and leaves the choice for scalars free.

    Raises:
        BackendError: HVP_ENGINE_BACKEND names an unknown backend, or one of the CPU that cannot run.
    """
    wish = _wish()
    if any(backend.name == wish and backend.device_type not in (None, "cpu") for backend in _BACKENDS):
        wish = ""
    return _module(family, torch.device("cpu"), wish)


def is_fused(*tensors: torch.Tensor) -> bool:
    """Say whether fused operations are to serve these tensors: one device that has kernels of them, dtypes supported.

    Never raises. It is also true where HVP_ENGINE_BACKEND asks for kernels that cannot run on the device: calling them
    then raises BackendError, which plain operations in their place would hide.
    """
    if not tensors:
        return False
    device = tensors[0].device
    for tensor in tensors:
        if tensor.dtype not in ELEMENT_TYPES or tensor.device != device:
            return False
    return _has_operations(device, _wish())


def forget_choices() -> None:
    """Make the next calls choose anew: for tests that change what can run in the middle of a process."""
    for cached in (_candidates, _module, _has_operations):
        cached.cache_clear()


def _wish() -> str:
    return os.environ.get("HVP_ENGINE_BACKEND", "")


# What can run does not change within a process, and asking may mean asking the driver: once per device and wish. An
# exception is not kept, so that a refusal is looked into again.
@functools.cache
def _candidates(device: torch.device, wish: str) -> tuple[str, ...]:
    """Name the backends that may serve a device, best first: the one wished for alone, else all that can run."""
    available = available_backends(device)
    if not wish:
        if device.type == "cpu":
            loader.warn_if_missing()
        return tuple(available)
    if wish in available:
        return (wish,)
    reason = next(
        (backend.refusal(device) for backend in _BACKENDS if backend.name == wish), "this build has no such backend"
    )
    raise BackendError(
        f"HVP_ENGINE_BACKEND={wish} cannot be used on {device}: {reason}. "
        f"Available there: {', '.join(available)}. Unset HVP_ENGINE_BACKEND to choose by itself."
    )


@functools.cache
def _module(family: str, device: torch.device, wish: str) -> ModuleType | None:
    """Import the family's module of the best candidate that has one; None where the PyTorch references serve."""
    name = next((name for name in _candidates(device, wish) if _has(name, family)), None)
    return None if name is None else importlib.import_module(f"{__package__}.{name}.{family}")


@functools.cache
def _has_operations(device: torch.device, wish: str) -> bool:
    """Say whether the backend wished for, or one that can run on the device, has kernels of operations."""
    if wish and all(backend.name != wish for backend in _BACKENDS):
        return True  # the call will be refused
    names = (wish,) if wish else _candidates(device, wish)
    return any(_has(name, family) for name in names for family in _OPERATIONS)


def _has(backend: str, family: str) -> bool:
    """Say whether a backend's folder has a module of a family, without importing it."""
    folder = f"{__package__}.{backend}"
    return importlib.util.find_spec(folder) is not None and importlib.util.find_spec(f"{folder}.{family}") is not None
