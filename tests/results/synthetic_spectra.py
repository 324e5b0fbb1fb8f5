"""Spectra of blocks with known eigenvalues, by Lanczos on a diagonal matrix: for figures and what they must show."""

import numpy as np

from hvp_engine.results.spectrum import Spectrum


def known_block(name, bulk, outliers=(), n=1_000_000, steps=40, probes=2, seed=0):
    """Make the spectrum of a block whose ``n`` eigenvalues are ``outliers``, and as many of each of ``bulk``."""
    rng = np.random.default_rng(seed)
    share = (n - len(outliers)) / len(bulk)
    eigenvalues = np.concatenate((bulk, outliers))
    streams = []
    for _ in range(probes):
        weights = np.concatenate((rng.gamma(share / 2, 2, size=len(bulk)), rng.chisquare(1, size=len(outliers))))
        streams.append(_lanczos(eigenvalues, weights, steps))
    alphas, betas, residuals = zip(*streams, strict=True)
    return Spectrum.from_tridiagonal(name, n, alphas, betas, [steps] * probes, residuals=residuals)


def with_outlier(n=1_000_000, at=37.0, name="layer.weight", **options):
    """Make a block with a bulk in [-1, 5] and one eigenvalue far from it."""
    bulk = np.random.default_rng(1).beta(1.2, 6.0, size=600) * 6.0 - 1.0
    return known_block(name, bulk, [at], n, **options)


def _lanczos(eigenvalues, weights, steps):
    basis = np.zeros((steps + 1, eigenvalues.size))
    basis[0] = np.sqrt(weights / weights.sum())
    alphas, betas = [], []
    for step in range(steps):
        product = eigenvalues * basis[step]
        alphas.append(product @ basis[step])
        for _ in range(2):
            product = product - basis[: step + 1].T @ (basis[: step + 1] @ product)
        betas.append(np.linalg.norm(product))
        basis[step + 1] = product / betas[-1]
    return alphas, betas[:-1], betas[-1]
