"""Streams and matrices that the CUDA tests share."""

from __future__ import annotations

import numpy as np
import torch

BASIS_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
VECTOR_DTYPES = (torch.float32, torch.float64)
ORDERS = ("fwd", "rev", "rand:7")


def streams(sizes_and_counts, basis_dtype, vector_dtype, *, extra_columns=0, seed=0):
    """Nearly orthonormal rows whose padding is NaN, random vectors, and the counts."""
    generator = torch.Generator().manual_seed(seed)
    bases, vectors, counts = [], [], []
    for n, count in sizes_and_counts:
        rows = torch.randn(n, count, generator=generator, dtype=torch.float64)
        rows = torch.linalg.qr(rows)[0].T if 0 < count <= n else torch.nn.functional.normalize(rows.T, dim=1)
        storage = torch.full((max(count, 1), n + extra_columns), float("nan"), dtype=basis_dtype)
        storage[:count, :n] = rows
        bases.append(storage[:, :n])
        vectors.append(torch.randn(n, generator=generator, dtype=torch.float64).to(vector_dtype))
        counts.append(count)
    return bases, vectors, counts


def tridiagonals(num, m, *, seed=0):
    """Random ragged matrices, with a diagonal one, a decoupled one and extreme scales among them."""
    generator = np.random.default_rng(seed)
    alphas, betas = generator.standard_normal((num, m)), np.abs(generator.standard_normal((num, m - 1)))
    steps = generator.integers(1, m + 1, num)
    steps[-1] = m
    betas[0] = 0.0
    if num > 4:
        betas[1, m // 2 :: 3] = 0.0
        alphas[2], betas[2] = alphas[2] * 1e300, betas[2] * 1e300
        alphas[3], betas[3] = alphas[3] * 1e-300, betas[3] * 1e-300
        alphas[4], betas[4] = 1.0, 1e-9
    return alphas, betas, steps.astype(np.int64)
