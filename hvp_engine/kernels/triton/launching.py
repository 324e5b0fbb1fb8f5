"""Launches that fail, told from a model that does: they are this package's kernels, and one can do without."""

from __future__ import annotations

import subprocess
from typing import Any, NoReturn

import torch
from torch import Tensor
from triton.errors import TritonError

from hvp_engine.errors import BackendError
from hvp_engine.kernels.triton.resource_case import COMPILE_OPTIONS
from hvp_engine.system.failures import pass_on
from hvp_engine.system.formatting import raised

__all__ = ["LAUNCH_FAILURES", "refuse_launch", "run"]

# Of Triton's compiler and of ptxas; of the driver, or without a C compiler; of the cache's folder; of that compiler.
LAUNCH_FAILURES = (TritonError, RuntimeError, OSError, subprocess.SubprocessError)


def run(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of a tensor.

    Args:
        kernel: The `triton.jit` function.
        grid: Programs.
        like: The tensor.
        arguments: Arguments of the kernel.
        options: Constants of the kernel, `num_warps` and the like.

    Raises:
        BackendError: The kernel cannot be compiled or launched.
    """
    with torch.cuda.device_of(like):
        try:
            kernel[grid](*arguments, **options, **COMPILE_OPTIONS)
        except LAUNCH_FAILURES as error:
            refuse_launch(kernel, error)


def refuse_launch(kernel: Any, error: Exception) -> NoReturn:
    """Say of an exception that a kernel could not be compiled or launched.

    Args:
        kernel: The `triton.jit` function.
        error: One of `LAUNCH_FAILURES`. A lack of memory, and an earlier failure of the device, are raised as they are.

    Raises:
        BackendError: In any other case.
    """
    pass_on(error)
    own = getattr(error, "error_message", None)  # of the compiler: its text begins with twelve lines of source
    cause = f"{type(error).__name__}: {' '.join(str(own).split())}" if own else raised(error)
    raise BackendError(
        f"A Triton kernel of this package, {kernel.__name__}, could not be compiled or launched ({cause}). Set "
        "HVP_ENGINE_BACKEND=torch in the environment to do without these kernels."
    ) from error
