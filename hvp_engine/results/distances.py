"""Distances between spectra: Jensen-Shannon of the densities, Wasserstein-1 on the atoms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from hvp_engine.results import smoothing
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectrum import Spectrum

_LEGACY_POINTS = 50_000
_LEGACY_SIGMA = math.sqrt(1e-5)
_LEGACY_MARGIN = 1.0
_UNDERFLOW = 39.0  # standard deviations beyond which exp(-z**2 / 2) is zero in double precision


def jensen_shannon(spectra: Sequence[Spectrum]) -> FloatArray:
    """Compute the Jensen-Shannon divergences between all pairs, base 2, in [0, 1].

    Compared are the densities that ``Spectrum.density`` gives by default and figures show: each block is smoothed
    with its own sigma, ``sqrt(1e-5)`` times its range, so that blocks that differ in scale are far apart; one
    sigma for both would blur the smaller block into a spike at zero, which every block has. Both are exact integrals
    over the cells of their own grids, and are compared on the union of all cell edges. No square root is taken. The
    matrix does not change if all spectra are scaled by the same number.

    Returns:
        Symmetric matrix with a zero diagonal, float64 of shape (blocks, blocks).
    """
    distributions = [_distribution(spectrum) for spectrum in spectra]

    def distance(i: int, j: int) -> float:
        (edges_i, below_i), (edges_j, below_j) = distributions[i], distributions[j]
        edges = np.union1d(edges_i, edges_j)
        p, q = (
            np.diff(np.interp(edges, own, below, left=0.0, right=1.0))
            for own, below in ((edges_i, below_i), (edges_j, below_j))
        )
        return min(1.0, max(0.0, _divergence(p, q) / math.log(2.0)))

    return _pairwise(len(spectra), distance)


def jensen_shannon_legacy(spectra: Sequence[Spectrum]) -> FloatArray:
    """Compute the un-normalised grid sum that was published as a Jensen-Shannon distance (arXiv 2402.16788).

    Densities are sums of Gaussians of the absolute sigma ``sqrt(1e-5)``, sampled on 50,000 uniform points
    from one below the mean over probes of the smallest node to one above the mean of the largest, and scaled
    to a Riemann sum of 1. Both blocks of a pair share the union of their intervals. The sum over grid points
    of ``(p ln(p/m) + q ln(q/m)) / 2`` is not multiplied by the spacing: **it depends on the grid**, has no
    upper bound and serves comparison with published numbers only. A pair is nan if every Gaussian of a block
    falls between two points.

    Returns:
        Symmetric matrix with a zero diagonal, float64 of shape (blocks, blocks).
    """
    intervals = [
        (
            float(s.nodes.min(axis=1).mean()) - _LEGACY_MARGIN,
            float(s.nodes.max(axis=1).mean()) + _LEGACY_MARGIN,
        )
        for s in spectra
    ]

    def distance(i: int, j: int) -> float:
        low, high = min(intervals[i][0], intervals[j][0]), max(intervals[i][1], intervals[j][1])
        grid = np.linspace(low, high, _LEGACY_POINTS)
        p, q = (_sampled_density(spectra[k], grid) for k in (i, j))
        return _divergence(p, q)

    return _pairwise(len(spectra), distance)


def wasserstein(spectra: Sequence[Spectrum]) -> FloatArray:
    """Compute the Wasserstein-1 distances between all pairs, exact on the atoms: the integral of ``|F - G|``.

    Returns:
        Symmetric matrix with a zero diagonal, in the unit of the eigenvalues, float64 of shape (blocks,
        blocks).
    """
    atoms = [_atoms(spectrum) for spectrum in spectra]

    def distance(i: int, j: int) -> float:
        nodes = np.concatenate((atoms[i][0], atoms[j][0]))
        jumps = np.concatenate((atoms[i][1], -atoms[j][1]))
        order = np.argsort(nodes, kind="stable")
        gap = np.cumsum(jumps[order])[:-1]
        return float(np.abs(gap) @ np.diff(nodes[order]))

    return _pairwise(len(spectra), distance)


def mean_of_pairs(matrix: FloatArray) -> float:
    """Average a symmetric matrix of distances over its distinct pairs; nan if there are none, and without those."""
    pairs = matrix[np.triu_indices(len(matrix), k=1)]
    pairs = pairs[np.isfinite(pairs)]
    return float(pairs.mean()) if pairs.size else math.nan


def mean_to_others(matrix: FloatArray) -> FloatArray:
    """Average each row of a symmetric matrix over the other blocks, shape (blocks,); nan if none, and without those."""
    known = np.isfinite(matrix)
    others = known.sum(axis=1) - known.diagonal()
    total = np.where(known, matrix, 0.0).sum(axis=1)
    return np.asarray(np.divide(total, others, out=np.full(len(matrix), math.nan), where=others > 0))


def _sampled_density(spectrum: Spectrum, grid: FloatArray) -> FloatArray:
    """Sample Gaussians at uniform grid points, scaled to a Riemann sum of 1 (nan if all of them miss the grid)."""
    nodes, weights = _atoms(spectrum)
    step = (grid[-1] - grid[0]) / (grid.size - 1)
    # A fine grid needs no far tails; on a coarse one, they are all that is left after the scaling.
    reach = min(_UNDERFLOW, max(8.0, 2.0 * step / _LEGACY_SIGMA)) * _LEGACY_SIGMA
    first = np.searchsorted(grid, nodes - reach)
    last = np.searchsorted(grid, nodes + reach)
    density = np.zeros_like(grid)
    for node, weight, start, stop in zip(nodes, weights, first, last, strict=True):
        density[start:stop] += weight * np.exp(-0.5 * ((grid[start:stop] - node) / _LEGACY_SIGMA) ** 2)
    total = float(density.sum()) * step
    return density / total if total > 0.0 else np.full_like(grid, math.nan)


def _pairwise(count: int, distance: Callable[[int, int], float]) -> FloatArray:
    matrix = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = distance(i, j)
    return matrix


def _atoms(spectrum: Spectrum) -> tuple[FloatArray, FloatArray]:
    """Return nodes and weights of the mean over probes, as vectors; the mass is exactly that of a distribution."""
    weights = spectrum.weights.ravel()
    return spectrum.nodes.ravel(), weights / weights.sum()


def _distribution(spectrum: Spectrum) -> tuple[FloatArray, FloatArray]:
    """Compute the edges of the default grid's cells, and the smoothed mass below each of them."""
    nodes, weights = _atoms(spectrum)
    sigma = spectrum.default_sigma
    grid = smoothing.smoothing_grid(*spectrum.extremes(), sigma)
    masses = smoothing.cell_masses(nodes[None], weights[None], grid, sigma)[0]
    edges = np.concatenate((grid[:1], grid[:-1] + 0.5 * np.diff(grid), grid[-1:]))
    below = np.concatenate(([0.0], np.cumsum(masses)))
    return edges, below / below[-1]


def _divergence(p: FloatArray, q: FloatArray) -> float:
    """Sum ``(p ln(p/m) + q ln(q/m)) / 2`` with ``m = (p + q) / 2`` and ``0 ln 0 = 0``."""
    mean = 0.5 * (p + q)
    total = 0.0
    for density in (p, q):
        ratio = np.divide(density, mean, out=np.ones_like(mean), where=density > 0.0)
        total += float(density @ np.log(ratio))
    return 0.5 * total
