"""What the machine itself can do: the read bandwidth that memory-bound kernels are measured against."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from hvp_engine.kernels.loader import native


def seconds(function: Callable[[], object]) -> float:
    """Returns the wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class ReadFloor:
    """A plain multi-threaded read of a large array, by torch.sum and by a native loop."""

    def __init__(self, gigabytes: float = 0.5) -> None:
        self._data = torch.ones(int(gigabytes * 1e9 / 4))

    def bandwidth(self) -> float:
        """Returns the bytes per second of the faster of the two reads."""
        address, size = self._data.data_ptr(), self._data.numel()
        times = (seconds(self._data.sum), seconds(lambda: native.read_sum(address, size)))
        return self._data.nbytes / min(times)


def basis_streams(count: int, n: int, blocks: int, dtype: torch.dtype):
    """Bases of `count` rows and vectors for equal blocks of n elements."""
    torch.manual_seed(0)
    bases = [torch.empty(count, n, dtype=dtype).uniform_(-1, 1).mul_(n**-0.5) for _ in range(blocks)]
    vectors = [torch.randn(n) for _ in range(blocks)]
    return bases, vectors, np.full(blocks, count).tolist()
