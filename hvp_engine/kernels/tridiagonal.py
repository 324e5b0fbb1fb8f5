"""Gauss quadrature of many tridiagonal matrices at once (Golub and Welsch, Math. Comp. 23, 1969)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError, HvpEngineError
from hvp_engine.kernels.registry import host_implementation, optional_implementation

__all__ = ["tridiagonal_quadrature", "tridiagonal_quadrature_ref"]

Doubles = NDArray[np.float64]


def tridiagonal_quadrature(
    alphas: Doubles, betas: Doubles, steps: NDArray[np.int64], device: torch.device | None = None
) -> tuple[Doubles, Doubles]:
    """Compute eigenvalues and squared first eigenvector components of tridiagonal matrices.

    Implicit QL with Wilkinson shifts (Parlett, The Symmetric Eigenvalue Problem, 1998) on the first row of
    the eigenvectors alone, many matrices at once: O(m^2) each. A matrix is scaled by its norm first.

    Args:
        alphas: (matrices, m) float64 diagonals.
        betas: (matrices, m - 1) float64 off-diagonals.
        steps: (matrices,) int64 in 1..m: matrix s consists of its leading steps[s] entries.
        device: Where the vectors of the job live, whose kernels serve if it has any of this family; None for the host.

    Returns:
        Nodes (matrices, m), ascending, and weights (matrices, m) whose rows sum to 1. Entries past steps[s]
        repeat the largest node with weight 0. What a matrix gives does not depend on the others.

    Raises:
        ConfigurationError: Shapes or steps do not fit, or an entry in use is not finite.
        HvpEngineError: The iteration did not converge.
        BackendError: HVP_ENGINE_BACKEND asks for a backend that cannot run here, or a launch failed.
    """
    alphas, betas, steps = _checked(alphas, betas, steps)
    kernels = None
    if device is not None and device.type != "cpu":
        kernels = optional_implementation("tridiagonal", device)
    if kernels is None:
        kernels = host_implementation("tridiagonal")
    if kernels is None:
        return _by_eigh(alphas, betas, steps)
    nodes, weights = np.empty_like(alphas), np.empty_like(alphas)
    failed = kernels.tridiagonal_quadrature(alphas, betas, steps, device, nodes, weights)
    if failed >= 0:
        raise HvpEngineError(
            f"The eigenvalue iteration of tridiagonal matrix {failed} or of one solved with it did not "
            "converge; check alphas and betas, or set HVP_ENGINE_BACKEND=torch."
        )
    return nodes, weights


def tridiagonal_quadrature_ref(alphas: Doubles, betas: Doubles, steps: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
    """Do the same as `tridiagonal_quadrature` with one dense eigendecomposition per matrix.

    Args:
        alphas: As in `tridiagonal_quadrature`.
        betas: As in `tridiagonal_quadrature`.
        steps: As in `tridiagonal_quadrature`.

    Returns:
        As `tridiagonal_quadrature`.

    Raises:
        ConfigurationError: As in `tridiagonal_quadrature`.
    """
    return _by_eigh(*_checked(alphas, betas, steps))


def _by_eigh(alphas: Doubles, betas: Doubles, steps: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
    nodes, weights = np.empty_like(alphas), np.zeros_like(alphas)
    for s, n in enumerate(steps):
        diagonal, off = alphas[s, :n], betas[s, : n - 1]
        _, exponent = np.frexp(max(np.abs(diagonal).max(), np.abs(off).max(initial=0.0)))
        dense = np.diag(np.ldexp(diagonal, -exponent)) + np.diag(np.ldexp(off, -exponent), -1)
        values, vectors = np.linalg.eigh(dense)
        nodes[s, :n] = np.ldexp(values, exponent)
        nodes[s, n:] = nodes[s, n - 1]
        weights[s, :n] = vectors[0] ** 2 / np.sum(vectors[0] ** 2)
    return nodes, weights


def _checked(alphas: Doubles, betas: Doubles, steps: NDArray[np.int64]) -> tuple[Doubles, Doubles, NDArray[np.int64]]:
    """Return the arguments as contiguous arrays of the right dtypes, or say what is wrong with them."""
    alphas, betas = np.ascontiguousarray(alphas, np.float64), np.ascontiguousarray(betas, np.float64)
    steps = np.ascontiguousarray(steps, np.int64)
    if alphas.ndim != 2 or alphas.shape[1] < 1:
        raise ConfigurationError(f"alphas has shape {alphas.shape}; give (matrices, m) with m >= 1.")
    num, m = alphas.shape
    if betas.shape != (num, m - 1) or steps.shape != (num,):
        raise ConfigurationError(
            f"betas {betas.shape} and steps {steps.shape} do not fit alphas {alphas.shape}; "
            f"give ({num}, {m - 1}) and ({num},)."
        )
    wrong = np.flatnonzero((steps < 1) | (steps > m))
    if wrong.size > 0:
        raise ConfigurationError(f"steps[{wrong[0]}] is {steps[wrong[0]]}; it must be in 1..{m}.")
    used = np.arange(m) < steps[:, None]
    finite = (np.isfinite(alphas) | ~used).all(axis=1) & (np.isfinite(betas) | ~used[:, 1:]).all(axis=1)
    if not finite.all():
        raise ConfigurationError(
            f"Tridiagonal matrix {np.flatnonzero(~finite)[0]} has a NaN or infinite entry among its leading "
            "steps; the Hessian-vector products it came from are not finite."
        )
    return alphas, betas, steps
