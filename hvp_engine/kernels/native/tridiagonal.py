"""Gauss quadrature of tridiagonal matrices on the CPU, several of them in lockstep."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hvp_engine.kernels.loader import native

__all__ = ["tridiagonal_quadrature"]


def tridiagonal_quadrature(
    alphas: NDArray[np.float64],
    betas: NDArray[np.float64],
    steps: NDArray[np.int64],
    device: torch.device | None,
    nodes: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> int:
    """Fill nodes and weights; arguments as in `hvp_engine.kernels.tridiagonal`, contiguous.

    Args:
        alphas: As there.
        betas: As there.
        steps: As there.
        device: Not used: the facade gives every backend the same arguments, and this one serves jobs on any device.
        nodes: Overwritten, as the facade returns them.
        weights: Overwritten, as the facade returns them.

    Returns:
        A matrix whose iteration, or that of one solved with it, did not converge; -1 if there is none.
    """
    order = np.argsort(steps, kind="stable")
    return native.tridiagonal_quadrature(alphas, betas, steps, order, nodes, weights)
