"""Eigenpairs one after the other by power iteration with deflation, the way of PyHessian (Yao et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def power_iteration(
    multiply: Callable[[Tensor], Tensor], numel: int, k: int, residual: float, most: int, seed: int = 0
) -> tuple[list[float], int]:
    """Find the k eigenvalues of largest magnitude.

    PyHessian ends an eigenvalue when it changes by less than a share; here its residual ends it, which the same product
    gives for nothing, so that all methods reach the same.

    Args:
        multiply: Multiplies a vector (numel,).
        numel: Its length.
        k: How many.
        residual: ||Hv - lambda v|| at which an eigenpair is found.
        most: Products at which it gives up.
        seed: Of the start vectors.

    Returns:
        The eigenvalues found, and the products.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    values: list[float] = []
    products = 0
    while len(values) < k and products < most:
        vector = torch.randn(numel, generator=generator)
        while products < most:
            for other in found:
                vector -= (other @ vector) * other
            vector /= vector.norm()
            product = multiply(vector)
            products += 1
            value = float(vector @ product)
            if float((product - value * vector).norm()) <= residual:
                found.append(vector)
                values.append(value)
                break
            vector = product
    return values, products
