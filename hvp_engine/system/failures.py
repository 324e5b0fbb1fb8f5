"""What an exception tells of the machine rather than of the model: no memory left, or a device that failed.

PyTorch, cuBLAS, cuDNN, Triton and the driver all have words of their own for either. Who handles exceptions of models
asks here first, so that nothing of the machine's is taken for a fault of the model.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator

import torch

from hvp_engine.errors import DeviceError, HvpEngineError, OutOfMemoryError
from hvp_engine.system.formatting import first_line, text_of
from hvp_engine.system.torch_private import without_torch_functions

__all__ = ["failures_in_words", "is_device_failure", "is_out_of_memory", "let_go", "pass_on"]

# A handle that cannot be made ("not initialized"), or a convolution that no algorithm serves, means in practice that a
# workspace found no memory.
_NO_MEMORY = re.compile(
    r"out of memory|can(?:'t|not) allocate memory|not enough memory|bad_alloc"
    r"|ALLOC(?:ATION)?_FAILED|(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_NOT_INITIALIZED"
    r"|unable to find (?:an engine|a valid cuDNN algorithm)",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    r"CUDA error|CUDA driver error|Triton Error \[CUDA\]|CUDNN_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)"
    r"|device-side assert|illegal (?:memory access|instruction)|misaligned address|unspecified launch failure"
    r"|launch timed out|invalid program counter|hardware stack error|uncorrectable ECC error",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that an allocation failed, on any device, in any library."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _says(error, _NO_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Say whether an exception means that a GPU failed, as it may at any call after the one that is the cause."""
    return not is_out_of_memory(error) and (
        isinstance(error, (DeviceError, torch.AcceleratorError)) or _says(error, _DEVICE)
    )


def pass_on(error: BaseException) -> None:
    """Raise an exception on, as it is, that tells nothing of the model: one of ours, no memory, the device's.

    The last two are put into words where a call of the user's ends, not before: who tries whether a loss takes some
    samples catches this package's errors.

    Args:
        error: What a model, its loss or its data raised; nothing happens where it is about these.
    """
    if isinstance(error, HvpEngineError) or is_out_of_memory(error) or is_device_failure(error):
        raise error


@contextlib.contextmanager
def failures_in_words(while_: str) -> Iterator[None]:
    """Turn a lack of memory, or a device that failed, into an error of ours.

    Args:
        while_: What was going on, in words that follow "while".

    Raises:
        OutOfMemoryError: Memory ran out.
        DeviceError: The device failed.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, HvpEngineError):
            raise
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"Memory ran out while {while_} ({first_line(error)}). Give smaller batches, or free memory: other "
                "programs' or tensors of your own."
            ) from error
        if is_device_failure(error):
            raise DeviceError(
                f"The device failed while {while_} ({first_line(error)}). A GPU reports late: the cause ran before the "
                "line that raised this. Run again in a new process with the environment variable "
                "CUDA_LAUNCH_BLOCKING=1, and that line is the cause. An index out of range, in the data or in the "
                "model, is the usual one; with HVP_ENGINE_BACKEND=torch this package runs no kernels of its own."
            ) from error
        raise


def let_go(error: BaseException | None) -> None:
    """Free what a failed attempt left in the frames of its exception, and of those behind it: tensors, graphs.

    For a failure after which something else is tried, where the exception is kept, or None. Its text and lines stay.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    # A backward pass that fails leaves what it had still to do, and with that its graph, in the thread's queue, where
    # the next one finds and drops it.
    with torch.inference_mode(False), torch.enable_grad(), without_torch_functions():
        number = torch.zeros((), device="cpu", requires_grad=True)
        torch.autograd.grad(number * 1.0, number)


def _says(error: BaseException, what: re.Pattern[str]) -> bool:
    return isinstance(error, RuntimeError) and what.search(text_of(error)) is not None
