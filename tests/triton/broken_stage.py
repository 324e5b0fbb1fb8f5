"""A stage whose kernel does not compile, for test_compile_only.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def broken(x, COUNT: tl.constexpr):
    """Counts to what is no power of two."""
    tl.store(x + tl.arange(0, COUNT), 0.0)


def run(emit, device, small):
    """Launches it, and ends with an error of its own."""
    broken[(1,)](torch.empty(8, device=device), COUNT=3)
    emit(what="launched", numbers=torch.empty(1 << 35, device=device).numel())
    raise KeyError("the stage's own mistake")
