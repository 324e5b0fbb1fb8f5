"""Build the small C modules through which Triton before 3.7 calls the driver: one per signature, kept in its cache.

They name the driver's library and are not loaded here, where there is none; building a hundred of them with a compiler
takes a minute, which a rented card should not wait for.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, patch

from triton.backends.nvidia import driver as nvidia
from triton.compiler import CompiledKernel
from triton.runtime import build, driver

_LIBRARY = "libcuda.so.1"


@contextmanager
def unloaded_launchers(folder: Path) -> Iterator[None]:
    """Let `build_launcher` work inside.

    Args:
        folder: Where a library with the driver's name and nothing in it is made, for the linker.
    """
    library = folder / _LIBRARY
    if not library.exists():
        command = ["gcc", "-shared", f"-Wl,-soname,{_LIBRARY}", "-x", "c", os.devnull, "-o", str(library)]
        subprocess.run(command, check=True)
    with ExitStack() as stack:
        for remembered in (nvidia.libcuda_dirs, nvidia.library_dirs):
            remembered.cache_clear()
            stack.callback(remembered.cache_clear)
        stack.enter_context(patch.dict(os.environ, {"TRITON_LIBCUDA_PATH": str(folder)}))
        stack.enter_context(patch.object(build, "_load_module_from_path", lambda name, path: MagicMock()))
        stack.enter_context(patch.object(driver, "_active", SimpleNamespace(utils=nvidia.CudaUtils())))
        yield


def build_launcher(kernel: CompiledKernel) -> None:
    """Build what launches a kernel, unless the cache has it."""
    nvidia.CudaLauncher(kernel.src, kernel.metadata)
