"""Quadrature of a thousand tridiagonal matrices against a loop over numpy.linalg.eigh."""

from __future__ import annotations

import numpy as np
import torch
from timing import alternate

from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature

COUNT, SIZE = 1000, 100


def test_tridiagonal_quadrature(benchmark):
    """Records how many times longer the loop takes."""
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    alphas, betas = rng.normal(size=(COUNT, SIZE)), np.abs(rng.normal(size=(COUNT, SIZE - 1)))
    steps = np.full(COUNT, SIZE)

    def loop() -> None:
        for alpha, beta in zip(alphas, betas, strict=True):
            np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))

    medians = alternate({"native": lambda: tridiagonal_quadrature(alphas, betas, steps), "loop": loop}, rounds=3)
    benchmark.extra_info.update(matrices=COUNT, m=SIZE, times_faster_than_loop=medians["loop"] / medians["native"])
    benchmark(tridiagonal_quadrature, alphas, betas, steps)
