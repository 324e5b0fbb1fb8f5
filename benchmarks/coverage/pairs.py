"""Distances between matrices whose spectra are known, and whether their bars hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from benchmarks.coverage.bars import Bar
from benchmarks.coverage.matrices import Floats, Matrix
from benchmarks.coverage.stops import distribution
from hvp_engine.results import smoothing
from hvp_engine.results.divergences import divergences
from hvp_engine.results.smoothed import Smoother
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.wasserstein import wasserstein_estimate


class Truth:
    """The true distances between some matrices.

    Attributes:
        divergence: Jensen-Shannon divergences, shape (matrices, matrices).
        distance: Wasserstein-1 distances, shape (matrices, matrices).
    """

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        densities, functions = [_density(matrix) for matrix in matrices], [distribution(matrix) for matrix in matrices]
        self.divergence, self.distance = np.zeros((2, len(matrices), len(matrices)))
        for i, j in combinations(range(len(matrices)), 2):
            self.divergence[i, j] = _divergence(densities[i], densities[j])
            self.distance[i, j] = functions[i].distance(functions[j])


def pair_bars(truth: Truth, spectra: Sequence[Spectrum]) -> Iterator[Bar]:
    """Compare all distances between some spectra, and their mean divergence, with the truth."""
    upper = np.triu(np.ones_like(truth.divergence, dtype=bool), 1)
    found = divergences([Smoother(spectrum.reading, spectrum.name) for spectrum in spectra])
    entries, mean = found.entries(), found.mean_of_pairs()
    distances = wasserstein_estimate([spectrum.reading for spectrum in spectra])
    for i, j in zip(*np.nonzero(upper), strict=True):
        for name, estimate, true in (("JS", entries, truth.divergence), ("W1 of pairs", distances, truth.distance)):
            low, high = float(estimate.low[i, j]), float(estimate.high[i, j])
            yield Bar(name, float(low <= true[i, j] <= high), 0.5 * (high - low))
    js0 = float(truth.divergence[upper].mean())
    yield Bar("JS0", float(mean.low <= js0 <= mean.high), 0.5 * (mean.high - mean.low))


def _density(matrix: Matrix) -> tuple[Floats, Floats]:
    """Return the edges of cells and the true density in each."""
    sigma = smoothing.smoothing_sigma(float(matrix.values[0]), float(matrix.values[-1]))
    grid = smoothing.smoothing_grid(float(matrix.values[0]), float(matrix.values[-1]), sigma)
    masses = smoothing.shared_masses(matrix.values, matrix.counts[None] / matrix.numel, grid, sigma)[0]
    edges = np.concatenate((grid[:1], grid[:-1] + 0.5 * np.diff(grid), grid[-1:]))
    return edges, masses / masses.sum() / np.diff(edges)


def _divergence(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> float:
    edges = np.union1d(one[0], other[0])
    middle = 0.5 * (edges[1:] + edges[:-1])
    p, q = (
        np.where(
            (middle > own[0]) & (middle < own[-1]),
            density[np.clip(np.searchsorted(own, middle) - 1, 0, density.size - 1)],
            0.0,
        )
        for own, density in (one, other)
    )
    mean = 0.5 * (p + q)
    total = sum(r * np.log2(np.divide(r, mean, out=np.ones_like(r), where=r > 0.0)) for r in (p, q))
    return float(0.5 * (total @ np.diff(edges)))
