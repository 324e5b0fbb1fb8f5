"""How work is queued on a CUDA device.

On torch's current stream of the tensors' device, whose caching allocator keeps workspaces alive until the kernels that
use them have run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvp_engine.errors import BackendError, ConfigurationError
from hvp_engine.kernels import loader
from hvp_engine.system.failures import pass_on

__all__ = ["Queue", "queue", "to_device"]


class Queue(NamedTuple):
    """Where the extension queues its launches.

    Attributes:
        device: Index of the device.
        stream: Handle of the stream.
    """

    device: int
    stream: int


@contextmanager
def queue(device: torch.device) -> Iterator[Queue]:
    """Make a CUDA device current and give its queue; turn launch errors into BackendError.

    Raises:
        ConfigurationError: The device is not a CUDA device.
        BackendError: The CUDA kernels cannot run, or a launch failed.
    """
    if device.type != "cuda":
        raise ConfigurationError(f"The CUDA kernels take tensors on a CUDA device, not on {device}.")
    reason = loader.cuda_missing_reason()
    if reason is not None:
        raise BackendError(f"The CUDA kernels cannot run: {reason}; set HVP_ENGINE_BACKEND=torch to do without them.")
    with torch.cuda.device(device):
        try:
            yield Queue(_index(device), torch.cuda.current_stream(device).cuda_stream)
        except RuntimeError as error:
            pass_on(error)  # the scheduler answers a lack of memory with smaller batches
            raise BackendError(
                f"A CUDA kernel of this package could not be launched on {device}: {error}. Set "
                "HVP_ENGINE_BACKEND=torch to do without these kernels."
            ) from error


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def to_device(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy a small table without waiting: from pinned memory, which torch keeps until the copy is done."""
    return torch.from_numpy(array).pin_memory().to(device, non_blocking=True)
