"""Runs tests in a process that has an emulated CUDA device (emulated_device.py).

The process is another one because PyTorch's C++ decides once and for all whether there is a device.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import multiprocessing
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from compiling import CSRC, EMULATION, KERNELS, compile_source, link

_TESTS = Path(__file__).parents[1]
_OPTIONS = ("-O0", "-fPIC", "-fvisibility=hidden")
_process: ProcessPoolExecutor | None = None


def build_extension(folder: Path, kernels: Path) -> tuple[Path, Path]:
    """Compiles the emulated device, and the bindings with emulated kernels that were compiled before.

    Returns:
        The two shared libraries.
    """
    import pybind11
    import torch

    python = Path(sysconfig.get_paths()["include"])
    bindings = (EMULATION, CSRC / "include", CSRC / "bindings", pybind11.get_include(), python)
    library = Path(torch.__file__).parent / "lib"
    headers = (Path(torch.__file__).parent / "include",)
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(
            lambda call: compile_source(EMULATION / call[0], folder, call[1], *_OPTIONS, include=call[2]),
            (("extension.cpp", "-std=c++17", bindings), ("device.cpp", "-std=c++20", headers)),
        )
        extension, device = parts
    objects = [extension, *(kernels / f"{name}.o" for name in (*KERNELS, "emulation.cpp"))]
    linked = link(folder / f"emulated_cuda{sysconfig.get_config_var('EXT_SUFFIX')}", objects, "-shared")
    flags = ("-shared", f"-L{library}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{library}")
    return link(folder / "device.so", [device], *flags), linked


def start(device: Path, extension: Path) -> ProcessPoolExecutor:
    """Starts the process; `shutdown` ends it."""
    global _process  # noqa: PLW0603
    context = multiprocessing.get_context("spawn")
    _process = ProcessPoolExecutor(1, context, _prepare, (str(device), str(extension)))
    return _process


def _prepare(device: str, extension: str) -> None:
    assert "torch" not in sys.modules, "PyTorch was loaded before its device"
    ctypes.CDLL(device, mode=ctypes.RTLD_GLOBAL)
    sys.path[:0] = [str(_TESTS / "triton"), str(_TESTS.parent / "benchmarks")]
    import emulated_device
    import torch

    torch.set_num_threads(1)
    found = importlib.util.spec_from_file_location("emulated_cuda", extension)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    emulated_device.install(module)


def on_device(test: Callable[..., None]) -> Callable[..., None]:
    """Lets a test run in the process with the device; its arguments and exceptions travel there and back."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        assert _process is not None, "the fixture emulated_device is missing"
        _process.submit(_call, test.__module__, test.__name__, arguments).result()

    run.in_process = test
    return run


def _call(module: str, name: str, arguments: dict[str, Any]) -> None:
    getattr(importlib.import_module(module), name).in_process(**arguments)
