"""Gauss quadrature of tridiagonal matrices on a CUDA device, a thread for each of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvp_engine.kernels import loader
from hvp_engine.kernels.cuda.queue import queue

__all__ = ["tridiagonal_quadrature"]


def tridiagonal_quadrature(
    alphas: NDArray[np.float64],
    betas: NDArray[np.float64],
    steps: NDArray[np.int64],
    device: torch.device,
    nodes: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> int:
    """Fill nodes and weights; arguments as in `hvp_engine.kernels.tridiagonal`. Waits for the device.

    Returns:
        The first matrix whose iteration did not converge, or -1.

    Raises:
        ConfigurationError: The device is not a CUDA device.
        BackendError: The CUDA kernels cannot run, or a launch failed.
    """
    if not len(alphas):
        return -1
    moved = (torch.tensor(array).to(device) for array in (alphas, betas, steps))
    nodes[:], weights[:], failed = (found.numpy(force=True) for found in _on_device(*moved))
    return int(failed)


def _on_device(alphas: Tensor, betas: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queue the quadrature of matrices on the device, and wait for nothing.

    Args:
        alphas: (matrices, m) float64 diagonals, contiguous; at least one matrix.
        betas: (matrices, m - 1) float64 off-diagonals, contiguous.
        steps: (matrices,) int64; matrix s consists of its leading steps[s] entries (at least 1, at most m).

    Returns:
        Nodes (matrices, m), ascending, weights (matrices, m) and an int64 scalar: the first matrix whose iteration did
        not converge (a NaN does not), or -1. Entries past steps[s] repeat the largest node with weight 0.

    Raises:
        ConfigurationError: The device is not a CUDA device.
        BackendError: The CUDA kernels cannot run, or a launch failed.
    """
    (num, m), device = alphas.shape, alphas.device
    with queue(device) as on:
        nodes, weights = torch.empty_like(alphas), torch.empty_like(alphas)
        failed = torch.empty((), dtype=torch.int64, device=device)
        size = loader.native.cuda_tridiagonal_workspace_bytes(num, m)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        arrays = [t.data_ptr() for t in (alphas, betas, steps, nodes, weights, failed, workspace)]
        loader.native.cuda_tridiagonal_quadrature(num, m, arrays, *on)
    return nodes, weights, failed
