"""Streams on the diagonal of known eigenvalues: what a sphere probe finds of any matrix that has them."""

import numpy as np

from hvp_engine.results.spectrum import Spectrum


def stream(eigenvalues, steps, rng):
    """Run Lanczos with full reorthogonalisation: alphas, betas, and the norm that the last step left."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    basis = np.zeros((steps + 1, values.size))
    basis[0] = rng.normal(size=values.size)
    basis[0] /= np.linalg.norm(basis[0])
    alphas, betas = np.zeros(steps), np.zeros(steps)
    for j in range(steps):
        w = values * basis[j]
        alphas[j] = w @ basis[j]
        for _ in range(2):
            w -= basis[: j + 1].T @ (basis[: j + 1] @ w)
        betas[j] = np.linalg.norm(w)
        if betas[j] <= 1e-12 * np.abs(values).max():
            betas[j] = 0.0
            return alphas[: j + 1], betas[: j + 1]
        basis[j + 1] = w / betas[j]
    return alphas, betas


def spectrum_of(name, eigenvalues, steps, probes=1, seed=0):
    """Make the spectrum that probes of a seed give after so many steps."""
    rng = np.random.default_rng([seed, 7])  # not the numbers of `kinds`
    alphas, betas, count = np.zeros((probes, steps)), np.zeros((probes, steps)), np.zeros(probes, dtype=np.int64)
    for probe in range(probes):
        a, b = stream(eigenvalues, min(steps, len(eigenvalues)), rng)
        count[probe] = a.size
        alphas[probe, : a.size], betas[probe, : a.size] = a, b
    residuals = betas[np.arange(probes), count - 1]
    return Spectrum.from_tridiagonal(name, len(eigenvalues), alphas, betas[:, :-1], count, residuals=residuals)


def kinds(n=1000):
    """Sets of n eigenvalues of different shapes, by name."""
    rng = np.random.default_rng(1)
    return {
        "bulk": rng.normal(size=n),
        "outliers": np.append(0.02 * rng.normal(size=n - 12), np.linspace(0.3, 3.0, 12)),
        "clusters": np.append(np.repeat([-1.0, 0.5, 2.0], n // 5), 0.1 * rng.normal(size=n - 3 * (n // 5))),
        "indefinite": np.clip(0.02 * rng.standard_cauchy(n), -0.3, 1.6),
        "power": 1.0 / np.arange(1.0, n + 1.0),
        "low rank": np.append(np.zeros(n - 40), np.exp(rng.normal(size=40))),
    }
