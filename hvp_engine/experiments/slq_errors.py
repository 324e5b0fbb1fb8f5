"""How far SLQ is from an exact spectrum, over steps and probes, and whether its bars of the trace hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hvp_engine.experiments.exact import FloatArray
from hvp_engine.results import smoothing
from hvp_engine.results.spectrum import Spectrum


@dataclass(frozen=True)
class Sizes:
    """What is compared.

    Attributes:
        steps: Numbers of Lanczos steps.
        probes: Numbers of probes.
        repeats: How often the trace is estimated, with other probes.
        layers: Of the zoo's MLP, counted from the last one.
    """

    steps: tuple[int, ...]
    probes: tuple[int, ...]
    repeats: int
    layers: int


@dataclass(frozen=True)
class Comparison:
    """A block's spectrum by SLQ, beside the exact one.

    Attributes:
        eigenvalues: All of them, (n,).
        spectrum: By SLQ, with as many steps and probes as are compared.
        sigma: Standard deviation of the Gaussians, that of the exact spectrum.
        errors: E1 (steps, probes).
        covered: Share of repeats whose bar holds the exact trace.
    """

    eigenvalues: FloatArray
    spectrum: Spectrum
    sigma: float
    errors: FloatArray
    covered: float


def comparison(sizes: Sizes, eigenvalues: FloatArray, spectrum: Spectrum, repeats: Sequence[Spectrum]) -> Comparison:
    """Measure E1 for every number of steps and probes, and how often bars of the trace hold the exact one."""
    low, high, trace = float(eigenvalues[0]), float(eigenvalues[-1]), float(eigenvalues.sum())
    sigma = smoothing.smoothing_sigma(low, high)
    grid = smoothing.smoothing_grid(low, high, sigma)
    exactly = smoothing.cell_masses(
        eigenvalues[None], np.full((1, eigenvalues.size), 1.0 / eigenvalues.size), grid, sigma
    )
    errors = np.empty((len(sizes.steps), len(sizes.probes)))
    for row, steps in enumerate(sizes.steps):
        short = shortened(spectrum, steps)
        masses = smoothing.cell_masses(short.nodes, short.weights, grid, sigma)
        for column, probes in enumerate(sizes.probes):
            groups = masses[: len(masses) // probes * probes].reshape(-1, probes, grid.size).mean(axis=1)
            errors[row, column] = np.abs(groups - exactly).sum(axis=1).mean()
    bars = [repeated.trace() for repeated in repeats]
    covered = float(np.mean([bar.low <= trace <= bar.high for bar in bars]))
    return Comparison(eigenvalues, spectrum, sigma, errors, covered)


def shortened(spectrum: Spectrum, steps: int) -> Spectrum:
    """Return what a spectrum's probes had found after so many steps."""
    count = np.minimum(spectrum.steps, steps)
    alphas, betas = spectrum.alphas[:, :steps], spectrum.betas[:, : steps - 1]
    return Spectrum.from_tridiagonal(spectrum.name, spectrum.numel, alphas, betas, count)


def slope(sizes: Sizes, found: Comparison) -> float:
    """Fit E1 = c probes^slope at the most steps."""
    return float(np.polyfit(np.log(sizes.probes), np.log(found.errors[-1]), 1)[0])
