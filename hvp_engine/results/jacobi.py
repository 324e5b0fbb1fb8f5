"""The Jacobi matrix of a known spectrum: the tridiagonal matrix whose quadrature has given nodes, equally weighted."""

from __future__ import annotations

import numpy as np

from hvp_engine.results.smoothing import FloatArray


def jacobi_matrix(nodes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute the tridiagonal matrix that Lanczos gives in n steps, for a start vector with equal parts of all n nodes.

    Householder reflections (Golub and Van Loan, Matrix Computations, 8.3.1), which no multiplicity disturbs: repeated
    nodes give an off-diagonal of zero. O(n^3).

    Args:
        nodes: Eigenvalues, shape (n,).

    Returns:
        Diagonal (n,) and off-diagonal (n - 1,), none of it negative.
    """
    n = nodes.size
    start = np.full(n, 1.0 / np.sqrt(n))
    start[0] += 1.0
    matrix = np.diag(nodes.astype(np.float64))
    matrix = _reflected(matrix, start)
    off = np.zeros(max(0, n - 1))
    for k in range(n - 1):
        column = matrix[k + 1 :, k].copy()
        norm = float(np.linalg.norm(column))
        off[k] = norm
        if norm > 0.0 and k < n - 2:
            column[0] += norm if column[0] >= 0.0 else -norm
            matrix[k + 1 :, k + 1 :] = _reflected(matrix[k + 1 :, k + 1 :], column)
    return np.diag(matrix).copy(), off


def _reflected(matrix: FloatArray, v: FloatArray) -> FloatArray:
    """Return H A H with H = I - 2 v v' / v'v."""
    scaled = v * (2.0 / (v @ v))
    product = matrix @ scaled
    product -= v * (0.5 * (scaled @ product))
    reflected: FloatArray = matrix - np.outer(v, product) - np.outer(product, v)
    return reflected
