"""Lanczos streams on known spectra, in float64, for what reads coefficients.

A sphere probe is a sphere probe in any basis, so a diagonal matrix stands for every matrix with its eigenvalues.
"""

import numpy as np

from hvp_engine.results.coefficients import Coefficients


def streams(eigenvalues, steps, probes=1, seed=0, noise=0.0):
    """Run Lanczos with full reorthogonalisation; equal eigenvalues stay so, as in exact arithmetic.

    Returns:
        The coefficients, and the Lanczos vectors of probe 0 with the one that would come next, if there is one.
    """
    rng = np.random.default_rng(seed)
    rows = [_stream(eigenvalues, steps, rng, noise) for _ in range(probes)]
    most = max(len(alphas) for alphas, _, _ in rows)
    alphas, betas = np.zeros((probes, most)), np.zeros((probes, most))
    for row, (diagonal, off, _) in enumerate(rows):
        alphas[row, : len(diagonal)], betas[row, : len(off)] = diagonal, off
    count = np.array([len(diagonal) for diagonal, _, _ in rows])
    residuals = betas[np.arange(probes), count - 1].copy()
    betas[np.arange(probes), count - 1] = 0.0
    found = Coefficients(len(eigenvalues), alphas, betas[:, :-1], count, residuals, noise)
    return found, rows[0][2]


def single_products(eigenvalues, vectors, steps, count, seed=0):
    """Products with probes that are orthogonal to the first vectors, as in ``Spectrum.singles``."""
    rng = np.random.default_rng(1000 + seed)
    basis, following = vectors[:steps], vectors[steps] if len(vectors) > steps else np.zeros(len(eigenvalues))
    rows = []
    for _ in range(count):
        h = rng.standard_normal(len(eigenvalues))
        for _ in range(2):
            h -= basis.T @ (basis @ h)
        product = eigenvalues * h
        rows.append((h @ product / (h @ h), product @ product / (h @ h), (following @ h) ** 2 / (h @ h)))
    return np.array(rows)


def _stream(eigenvalues, steps, rng, noise):
    n = len(eigenvalues)
    start = rng.standard_normal(n)
    values, counts = np.unique(eigenvalues, return_counts=True)
    for value in values[counts > 1]:  # within an eigenspace a probe has one direction: let it be the first axis
        same = np.flatnonzero(eigenvalues == value)
        start[same[0]], start[same[1:]] = np.linalg.norm(start[same]), 0.0
    vectors = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    for _ in range(min(steps, n)):
        product = eigenvalues * vectors[-1]
        error = rng.standard_normal(n)
        product = product + noise * np.linalg.norm(product) * error / np.linalg.norm(error)
        alphas.append(vectors[-1] @ product)
        basis = np.array(vectors)
        for _ in range(2):
            product = product - basis.T @ (basis @ product)
        left = np.linalg.norm(product)
        if left <= 1e-13 * np.abs(eigenvalues).max() or len(alphas) == n:
            betas.append(0.0)
            break
        betas.append(left)
        vectors.append(product / left)
    return np.array(alphas), np.array(betas), np.array(vectors)


def bulk(n, seed=0, width=0.1):
    return width * np.random.default_rng(seed).standard_normal(n)


def with_outliers(n=600, seed=0):
    """A bulk with eight single eigenvalues beyond it, some of them negative."""
    return np.sort(np.concatenate((bulk(n - 8, seed), [12.0, 9.0, 7.0, 5.0, 3.0, 2.0, -3.0, -5.0])))
