"""Quadrature of a thousand tridiagonal matrices against a loop over numpy.linalg.eigh."""

from __future__ import annotations

import numpy as np
import torch
from timing import alternate, waiting

from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature

COUNT, SIZE = 1000, 100


def test_tridiagonal_quadrature(benchmark, device):
    """Record how many times longer the loop takes; on a GPU the copies there and back are in the kernel's time."""
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    alphas, betas = rng.normal(size=(COUNT, SIZE)), np.abs(rng.normal(size=(COUNT, SIZE - 1)))
    steps = np.full(COUNT, SIZE)

    def loop() -> None:
        for alpha, beta in zip(alphas, betas, strict=True):
            np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))

    def kernel() -> object:
        return tridiagonal_quadrature(alphas, betas, steps, device)

    medians = alternate({"kernel": kernel, "loop": loop}, rounds=3, device=device)
    benchmark.extra_info.update(matrices=COUNT, m=SIZE, times_faster_than_loop=medians["loop"] / medians["kernel"])
    benchmark(waiting(kernel, device))
