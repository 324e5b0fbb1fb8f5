"""What this installation runs with: versions, backends, instruction set, threads, devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hvp_engine.errors import BackendError
from hvp_engine.kernels import loader
from hvp_engine.kernels.registry import available_backends, backend_for
from hvp_engine.system.versions import version_of, versions

__all__ = ["config", "show_config"]


def _libgomp_copies() -> list[str] | None:
    """Return the OpenMP libraries mapped into this process, or None where /proc does not tell."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    return sorted({line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line})


def _used_backend(device: torch.device) -> str:
    """Name the backend in use, or the reason why the one asked for cannot run on this device."""
    try:
        return backend_for(device)
    except BackendError as error:
        return f"none: {error}"


def config() -> dict[str, Any]:
    """Collect the facts that decide which code runs.

    Returns:
        A dict with the keys `versions`, `backends` (per device: those available and the one used), `isa` and
        `native_missing_reason` (one of them is None), `cuda_missing_reason` (None where the CUDA kernels can run),
        `threads`, `libgomp_shared` (None if unknown) and `cuda_devices`.
    """
    cuda_devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(len(cuda_devices)))]
    copies = _libgomp_copies()
    return {
        "versions": {**versions(), "triton": version_of("triton")},
        "backends": {
            str(device): {"available": available_backends(device), "used": _used_backend(device)} for device in devices
        },
        "isa": None if loader.missing_reason else loader.native.isa(),
        "native_missing_reason": loader.missing_reason,
        "cuda_missing_reason": loader.cuda_missing_reason(),
        "threads": torch.get_num_threads(),
        "libgomp_shared": None if copies is None or loader.missing_reason else len(copies) == 1,
        "cuda_devices": cuda_devices,
    }


def show_config() -> None:
    """Print `config()`, one fact per line."""
    facts = config()
    for name, version in facts["versions"].items():
        print(f"{name:<16}{version or 'not installed'}")
    for device, backends in facts["backends"].items():
        print(f"{'backend ' + device:<16}{backends['used']} (available: {', '.join(backends['available'])})")
    print(f"{'isa':<16}{facts['isa'] or facts['native_missing_reason']}")
    print(f"{'cuda kernels':<16}{facts['cuda_missing_reason'] or 'available'}")
    print(f"{'threads':<16}{facts['threads']}")
    print(f"{'libgomp shared':<16}{facts['libgomp_shared']}")
    print(f"{'cuda devices':<16}{', '.join(facts['cuda_devices']) or 'none'}")
