"""Load the compiled extension, or say once why the PyTorch reference serves instead."""

from __future__ import annotations

import importlib
import threading
import warnings
from types import ModuleType
from typing import TYPE_CHECKING

# Before the extension: torch brings its own libgomp, and the extension then binds to that same copy, so that
# torch.set_num_threads governs both.
import torch

from hvp_engine.errors import BackendError

__all__ = ["ABI_VERSION", "cuda_missing_reason", "missing_reason", "native", "take_thread_count", "warn_if_missing"]

ABI_VERSION = 6  # must equal kAbiVersion in csrc/bindings/module.cpp

_warned = False


class _Thread(threading.local):
    """What is known of a thread.

    Attributes:
        counted: Whether OpenMP knows how many threads PyTorch works with there.
    """

    counted = False


_thread = _Thread()


def _load() -> tuple[ModuleType | None, str | None]:
    """Return the extension, or None and the reason why it cannot be used."""
    try:
        module = importlib.import_module("hvp_engine._native")
    except ImportError as error:
        return None, f"the extension hvp_engine._native cannot be imported ({error})"
    found = getattr(module, "abi_version", None)
    if found != ABI_VERSION:
        return (
            None,
            f"the extension hvp_engine._native has ABI version {found}, this package needs {ABI_VERSION}",
        )
    try:
        module.isa()
    except ValueError as error:
        raise BackendError(str(error)) from error
    return module, None


if TYPE_CHECKING:  # the stub types the functions; at run time `native` is None without a usable extension
    from hvp_engine import _native as native

    missing_reason: str | None
else:
    native, missing_reason = _load()


def cuda_missing_reason() -> str | None:
    """Say why the CUDA kernels cannot run in this process, or None; asks the driver, so not before it is needed."""
    if missing_reason is not None:
        return missing_reason
    if not native.cuda_built:
        return "the extension was built without CUDA (nvcc was not found, or HVP_ENGINE_CUDA=off)"
    reason = native.cuda_why_not()
    return None if reason is None else f"the CUDA runtime reports: {reason}"


def warn_if_missing() -> None:
    """Warn, the first time only, that native kernels are replaced by their PyTorch reference."""
    global _warned  # noqa: PLW0603
    if missing_reason is None or _warned:
        return
    _warned = True
    warnings.warn(
        f"hvp_engine runs its slower PyTorch reference kernels: {missing_reason}. "
        "Reinstall the package with a C++17 compiler present (pip install --force-reinstall .), "
        "or set HVP_ENGINE_BACKEND=torch to choose the reference without this warning.",
        RuntimeWarning,
        stacklevel=3,
    )


def take_thread_count() -> None:
    """Have `torch.set_num_threads` hold in this thread too: PyTorch tells OpenMP when it is first asked there."""
    if not _thread.counted:
        torch.get_num_threads()
        _thread.counted = True
