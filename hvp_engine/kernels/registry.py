"""Which backend runs a family of kernels: chosen per device, overridden by HVP_ENGINE_BACKEND.

A backend is a folder beside this file with one module per family that it has, named after the family, and one line in
``_BACKENDS``. Each function of such a module has the name of the one of the facade that calls it, and takes what the
facade was given, checked, and the outputs that the facade allocated.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch

from hvp_engine.errors import BackendError
from hvp_engine.kernels import loader
from hvp_engine.kernels.tensors import ELEMENT_TYPES
from hvp_engine.system.torch_private import dispatch_modes, innermost_mode

__all__ = [
    "Backend",
    "Refusal",
    "available_backends",
    "backend_for",
    "beside",
    "families_of",
    "forget_choices",
    "host_implementation",
    "implementation",
    "is_fused",
    "optional_implementation",
    "wished_implementation",
]

_TRITON_VERSION = (3, 4)  # before it, a device function takes no None for what is absent, as attention's do
_TRITON_CAPABILITY = (8, 0)  # below it, Triton's matrix products fall back to scalar code that spills registers


class Refusal(NamedTuple):
    """Why a backend cannot run on a device.

    Attributes:
        reason: The cause, as a clause.
        lasts: Whether it holds as long as the process; a driver that failed once may serve the next time.
    """

    reason: str
    lasts: bool = True


@dataclass(frozen=True)
class Backend:
    """One way to run the kernels.

    Attributes:
        name: Name of its folder, and the value of HVP_ENGINE_BACKEND that asks for it.
        why_not: Says for a device of its type why the backend cannot run there, or None when it can.
        device_type: The type of the devices that it serves; None for all.
    """

    name: str
    why_not: Callable[[torch.device], Refusal | None]
    device_type: str | None = None

    def refusal(self, device: torch.device) -> Refusal | None:
        """Say why the backend cannot run on a device, or None when it can."""
        if self.device_type not in (None, device.type):
            return Refusal(f"its kernels run on {str(self.device_type).upper()} devices only")
        return self.why_not(device)


def _triton_why_not(device: torch.device) -> Refusal | None:
    # The driver and the device first: without them nothing needs to be imported.
    if not torch.cuda.is_available():
        return Refusal("PyTorch finds no CUDA device", lasts=False)
    try:
        capability = torch.cuda.get_device_capability(device)
    except RuntimeError as error:
        return Refusal(f"PyTorch cannot use the device ({error})", lasts=False)
    if capability < _TRITON_CAPABILITY:
        needed = "the device has compute capability {}.{}, it needs {}.{}"
        return Refusal(needed.format(*capability, *_TRITON_CAPABILITY))
    reason = _triton_missing_reason()
    return None if reason is None else Refusal(reason)


def _triton_missing_reason() -> str | None:
    """Say why the triton that is installed cannot be used, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        # Not its distribution's version: nightly builds of PyTorch bring the same module under another name.
        version = str(importlib.import_module("triton").__version__)
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    digits = re.match(r"(\d+)\.(\d+)", version)
    if digits is None or tuple(map(int, digits.groups())) < _TRITON_VERSION:
        return "triton {} is installed, its kernels need {}.{} or newer".format(version, *_TRITON_VERSION)
    return None


def _cuda_why_not(device: torch.device) -> Refusal | None:
    reason = loader.cuda_missing_reason()
    if reason is None:
        return None
    return Refusal(reason, lasts=loader.missing_reason is not None or not loader.native.cuda_built)


def _native_why_not(device: torch.device) -> Refusal | None:
    return None if loader.missing_reason is None else Refusal(loader.missing_reason)


# Best first; a new backend is one line here. The PyTorch references, which run everywhere, stay last. Triton is first
# on the GPUs that it serves, but has no tridiagonal quadrature: implicit QL steers every matrix by its own data, in
# sequence, which is one CUDA thread per matrix and no work on blocks.
_BACKENDS = (
    Backend("triton", _triton_why_not, "cuda"),
    Backend("cuda", _cuda_why_not, "cuda"),
    Backend("native", _native_why_not, "cpu"),
    Backend("torch", lambda device: None),
)


# What can run on a device is asked once, for asking may mean asking the driver. Refusals that may pass are not kept,
# nor are the choices that they led to. The key of a choice is family, device and wish.
_refusals: dict[tuple[Backend, torch.device], Refusal | None] = {}
_choices: dict[tuple[str, torch.device, str], ModuleType | None] = {}


def available_backends(device: torch.device) -> list[str]:
    """Name the backends that can run on a device, best first; "torch" is always the last one."""
    return [backend.name for backend in _BACKENDS if _refusal(backend, device) is None]


def families_of(backend: str) -> frozenset[str]:
    """Name the families that a backend has kernels of: the modules of its folder that are named after a facade."""
    folder = importlib.util.find_spec(f"{__package__}.{backend}")
    paths = [] if folder is None else folder.submodule_search_locations
    facades = {module.name for module in pkgutil.iter_modules(importlib.import_module(str(__package__)).__path__)}
    return frozenset(module.name for module in pkgutil.iter_modules(paths) if module.name in facades)


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
    wish = _wish()
    if wish:
        return _wished(wish, device).name
    if device.type == "cpu":
        loader.warn_if_missing()
    return available_backends(device)[0]


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
    module = _watched(family, _module(family, device, wish))
    if module is not None:
        return module
    if wish:
        raise BackendError(
            f"HVP_ENGINE_BACKEND={wish} has no {family} kernels for {device}. Use the plain PyTorch operation there, "
            "or unset HVP_ENGINE_BACKEND to choose by itself."
        )
    raise BackendError(f"No backend has {family} kernels for {device}. Use the plain PyTorch operation there.")


def optional_implementation(family: str, device: torch.device) -> ModuleType | None:
    """Return what `implementation` does, but None where a family's plain PyTorch reference must serve.

    Raises:
        BackendError: HVP_ENGINE_BACKEND names an unknown backend, or one that cannot run on the device.
    """
    return _watched(family, _module(family, device, _wish()))


def host_implementation(family: str) -> ModuleType | None:
    """Return the module that serves a job's scalars on the host, wherever its vectors live; None for the reference.

    A wish for a backend that serves no CPU is about the vectors, and leaves the choice for scalars free.

    Raises:
        BackendError: HVP_ENGINE_BACKEND names an unknown backend, or one of the CPU that cannot run.
    """
    wish, cpu = _wish(), torch.device("cpu")
    if any(backend.name == wish and backend.device_type not in (None, "cpu") for backend in _BACKENDS):
        return _choose(family, cpu, "")[0]
    return _module(family, cpu, wish)


def wished_implementation(family: str) -> ModuleType | None:
    """Return the module of the backend that HVP_ENGINE_BACKEND names, whether or not it can run anywhere.

    For predicates that must say what a call that will be refused would have taken.

    Returns:
        The module; None where the backend is unknown, has no such family, or needs what is not installed.
    """
    wish = _wish()
    if not _is_known(wish) or not _has(wish, family):
        return None
    try:
        return _imported(wish, family)
    except ImportError:
        return None


def beside(module: str, backend: str) -> ModuleType:
    """Return a module of a backend's folder that describes its kernels and needs nothing that they run on."""
    return _imported(backend, module)


def is_fused(family: str, *tensors: torch.Tensor) -> bool:
    """Say whether fused operations are to serve these tensors: one device that has the family, dtypes supported.

    Never raises. It is also true where HVP_ENGINE_BACKEND asks for kernels that cannot run on the device: calling them
    then raises BackendError, which plain operations in their place would hide.

    Args:
        family: Name of the family, such as "softmax".
        tensors: What the operation reads; without any the answer is no.
    """
    if not tensors:
        return False
    device = tensors[0].device
    for tensor in tensors:
        if tensor.dtype not in ELEMENT_TYPES or tensor.device != device:
            return False
    wish = _wish()
    try:
        return _module(family, device, wish) is not None
    except BackendError:
        return not _is_known(wish) or _has(wish, family)


def _watched(family: str, module: ModuleType | None) -> ModuleType | None:
    """Return a family's module, or what tells the dispatch mode in force of its calls, if that wants to know of them.

    Such a mode has a method ``kernel_called(family, name, kernel, args)`` that makes the call.
    """
    if module is None or not dispatch_modes():
        return module
    watch = getattr(innermost_mode(), "kernel_called", None)
    return module if watch is None else _Watched(family, module, watch)


class _Watched(ModuleType):
    """A family's module whose functions are called by a dispatch mode."""

    def __init__(self, family: str, module: ModuleType, watch: Callable[..., object]) -> None:
        super().__init__(module.__name__)
        self._family, self._module, self._watch = family, module, watch

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._module, name)
        return lambda *args: self._watch(self._family, name, kernel, args)


def forget_choices() -> None:
    """Make the next calls choose anew: for tests that change what can run in the middle of a process."""
    _refusals.clear()
    _choices.clear()


def _wish() -> str:
    return os.environ.get("HVP_ENGINE_BACKEND", "")


def _is_known(name: str) -> bool:
    return any(backend.name == name for backend in _BACKENDS)


def _indexed(device: torch.device) -> torch.device:
    """Give a CUDA device without an index that of the current one, which may be another at the next call."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _refusal(backend: Backend, device: torch.device) -> Refusal | None:
    """Say why a backend cannot run on a device, or None when it can; keep what will not change."""
    key = (backend, _indexed(device))
    if key in _refusals:
        return _refusals[key]
    refusal = backend.refusal(key[1])
    if refusal is None or refusal.lasts:
        _refusals[key] = refusal
    return refusal


def _wished(wish: str, device: torch.device) -> Backend:
    """Return the backend wished for, or raise BackendError where it cannot run on the device."""
    reason = "this build has no such backend"
    for backend in _BACKENDS:
        if backend.name == wish:
            refusal = _refusal(backend, device)
            if refusal is None:
                return backend
            reason = refusal.reason
    raise BackendError(
        f"HVP_ENGINE_BACKEND={wish} cannot be used on {device}: {reason}. "
        f"Available there: {', '.join(available_backends(device))}. Unset HVP_ENGINE_BACKEND to choose by itself."
    )


def _module(family: str, device: torch.device, wish: str) -> ModuleType | None:
    """Return the module of a family that serves a device, None where the PyTorch references do; chosen once."""
    loader.take_thread_count()
    try:
        return _choices[family, device, wish]
    except KeyError:
        pass
    indexed = _indexed(device)
    if indexed != device:
        return _module(family, indexed, wish)
    if not wish and device.type == "cpu":
        loader.warn_if_missing()
    module, lasts = _choose(family, device, wish)
    if lasts:
        _choices[family, device, wish] = module
    return module


def _choose(family: str, device: torch.device, wish: str) -> tuple[ModuleType | None, bool]:
    """Choose the backend wished for, or else the best that has the family; say whether that lasts."""
    lasts = True
    for backend in (_wished(wish, device),) if wish else _BACKENDS:
        if _has(backend.name, family):
            refusal = _refusal(backend, device)
            if refusal is None:
                return _imported(backend.name, family), lasts
            lasts = lasts and refusal.lasts
    return None, lasts


def _has(backend: str, family: str) -> bool:
    """Say whether a backend's folder has a module of a family, without importing it."""
    folder = f"{__package__}.{backend}"
    return importlib.util.find_spec(folder) is not None and importlib.util.find_spec(f"{folder}.{family}") is not None


def _imported(backend: str, family: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{backend}.{family}")
