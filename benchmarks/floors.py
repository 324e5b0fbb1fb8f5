"""What the machine itself can do: the read bandwidth that memory-bound kernels are measured against."""

from __future__ import annotations

import numpy as np
import torch
from timing import CPU, seconds

from hvp_engine.kernels.loader import native


class ReadFloor:
    """A plain read of a large array: on a CPU by torch.sum and a native loop, on a GPU by torch.sum."""

    def __init__(self, device: torch.device = CPU, gigabytes: float = 0.5) -> None:
        self._data = torch.ones(int(gigabytes * 1e9 / 4), device=device)

    def bandwidth(self) -> float:
        """Return the bytes per second of the fastest read."""
        address, size, device = self._data.data_ptr(), self._data.numel(), self._data.device
        reads = [self._data.sum]
        if device.type == "cpu":
            reads.append(lambda: native.read_sum(address, size))
        return self._data.nbytes / min(seconds(read, device) for read in reads)


def basis_streams(count: int, n: int, blocks: int, dtype: torch.dtype, device: torch.device = CPU):
    """Make bases of `count` rows and vectors for equal blocks of n elements."""
    torch.manual_seed(0)
    bases = [torch.empty(count, n, dtype=dtype, device=device).uniform_(-1, 1).mul_(n**-0.5) for _ in range(blocks)]
    vectors = [torch.randn(n, device=device) for _ in range(blocks)]
    return bases, vectors, np.full(blocks, count).tolist()
