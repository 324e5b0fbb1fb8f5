"""Types of the compiled extension: raw addresses and sizes; call it through hvp_engine.kernels."""

import numpy as np
from numpy.typing import NDArray

abi_version: int

# csrc/bindings/allocator.cpp
def set_malloc_thresholds(mmap_threshold: int, trim_threshold: int) -> bool: ...
def trim_heap() -> bool: ...

# csrc/bindings/runtime.cpp
def isa() -> str: ...
def num_threads() -> int: ...
def read_sum(data: int, size: int) -> int: ...

# csrc/bindings/reorthogonalize.cpp
def reorthogonalize(
    table: NDArray[np.int64],
    coefficients: NDArray[np.float64],
    norms: NDArray[np.float64],
    lost: NDArray[np.float64],
) -> None: ...

# csrc/bindings/tridiagonal.cpp
def tridiagonal_quadrature(
    alphas: NDArray[np.float64],
    betas: NDArray[np.float64],
    steps: NDArray[np.int64],
    order: NDArray[np.int64],
    nodes: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> int: ...
