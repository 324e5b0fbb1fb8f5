"""Gaussian smoothing of weighted atoms that keeps the total mass on every grid.

A quadrature is a sum of weighted atoms. Sampling a Gaussian mixture at grid points loses the mass of any atom
that falls between two points, so each grid point here owns a cell, and gets the exact integral of the mixture
over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.polynomial import hermite_e
from numpy.typing import ArrayLike, NDArray

from hvp_engine.errors import ConfigurationError

FloatArray = NDArray[np.float64]

RELATIVE_SIGMA = math.sqrt(1e-5)
"""Standard deviation of the smoothing Gaussian, as a fraction of the range of the atoms."""

GRID_POINTS = 2048
"""Points of a default grid: about six to a standard deviation, so that sums over cells have converged."""

_RANGE_FLOOR = 1e-4
"""Smallest range that counts, relative to the magnitude: below it, single-precision noise is all there is."""

_WINDOW = 8.0
"""Standard deviations beyond which a Gaussian has no mass left in double precision (6e-16 on each side)."""

_TAYLOR_TERMS = 11
"""Terms of a Taylor series whose argument is at most a twelfth: the next one is below 1e-15."""

_CHUNK = 1 << 14
"""Evaluations of the error function at a time: they stay in cache, and below the size that torch splits over
threads, whose start would cost more than the work."""


def smoothing_sigma(smallest: float, largest: float) -> float:
    """Default standard deviation for atoms in ``[smallest, largest]``.

    It is ``sqrt(1e-5)`` times the range, so that the smoothed spectrum of ``c * H`` is that of ``H``,
    stretched by ``c``. A range below 1e-4 of the magnitude (a single atom, say) is raised to that, and is 1
    if all atoms are zero.
    """
    magnitude = max(abs(smallest), abs(largest))
    if magnitude == 0.0:
        return RELATIVE_SIGMA
    return RELATIVE_SIGMA * max(largest - smallest, _RANGE_FLOOR * magnitude)


def smoothing_grid(smallest: float, largest: float, sigma: float) -> FloatArray:
    """Uniform grid of ``GRID_POINTS`` points over ``[smallest, largest]`` and the tails of its Gaussians."""
    pad = _WINDOW * sigma
    return np.linspace(smallest - pad, largest + pad, GRID_POINTS)


def check_sigma(sigma: float) -> float:
    """Return ``sigma`` as a float, or raise ConfigurationError unless it is positive and finite."""
    value = float(sigma)
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigurationError(f"sigma must be a positive finite number, not {sigma!r}; leave it out for the default")
    return value


def check_grid(grid: ArrayLike) -> FloatArray:
    """Return ``grid`` as a vector, or raise ConfigurationError unless it is finite and increasing."""
    points = np.asarray(grid, dtype=np.float64)
    if points.ndim != 1 or points.size < 2:
        raise ConfigurationError(f"grid must be a vector of at least 2 points, not an array of shape {points.shape}")
    if not np.isfinite(points).all():
        raise ConfigurationError("grid has points that are not finite; remove them")
    if not (np.diff(points) > 0.0).all():
        raise ConfigurationError("grid must be strictly increasing; sort it and drop repeated points (numpy.unique)")
    return points


def cell_widths(grid: FloatArray) -> FloatArray:
    """Widths of the cells, which are the weights of the trapezoidal rule on the grid."""
    half = 0.5 * np.diff(grid)
    widths = np.zeros_like(grid)
    widths[:-1] += half
    widths[1:] += half
    return widths


def cell_masses(nodes: FloatArray, weights: FloatArray, grid: FloatArray, sigma: float) -> FloatArray:
    """Mass of each row's Gaussian mixture in every cell of ``grid``.

    The cell of a grid point lies between the midpoints to its neighbours; the first and last one reach to
    infinity.

    Args:
        nodes: Centres, float64 of shape (rows, atoms).
        weights: Their masses, the same shape.
        grid: Strictly increasing points, shape (points,).
        sigma: Standard deviation of the Gaussians.

    Returns:
        Masses, float64 of shape (rows, points); a row sums to the sum of its weights.
    """
    rows = nodes.shape[0]
    edges = grid[:-1] + 0.5 * np.diff(grid)
    row, atom = np.nonzero(weights)
    centre, mass = nodes[row, atom], weights[row, atom]
    first = np.searchsorted(edges, centre - _WINDOW * sigma)
    last = np.searchsorted(edges, centre + _WINDOW * sigma)
    # An atom adds nothing to the distribution before its window, its error function inside, all of it after.
    stride = edges.size + 1
    flat = np.bincount(row * stride + last, weights=mass, minlength=rows * stride)
    below = np.cumsum(flat.reshape(rows, stride)[:, : edges.size], axis=1)
    inside = np.zeros(rows * edges.size)
    for chunk in _chunks(last - first):
        index, edge = _windows(first[chunk], last[chunk])
        argument = (edges[edge] - centre[chunk][index]) * (math.sqrt(0.5) / sigma)
        share = 0.5 + 0.5 * torch.special.erf(torch.from_numpy(argument)).numpy()
        target = row[chunk][index] * edges.size + edge
        inside += np.bincount(target, weights=share * mass[chunk][index], minlength=inside.size)
    distribution = below + inside.reshape(rows, edges.size)
    total = weights.sum(axis=1, keepdims=True)
    masses = np.diff(distribution, axis=1, prepend=0.0, append=total)
    return np.maximum(masses, 0.0, out=masses)


def default_grid_masses(nodes: FloatArray, weights: FloatArray, smallest: float, largest: float) -> FloatArray:
    """Mass of a Gaussian mixture in every cell of the default grid of a range that has all nodes.

    Gives what ``cell_masses`` gives on that grid, to about 1e-13 and ten times faster, for the many pairs of
    a matrix of distances: a Taylor series in an atom's offset from its grid point makes the mixture a sum of
    convolutions.

    Args:
        nodes: Centres, float64 of shape (atoms,).
        weights: Their masses, the same shape.
        smallest: Lower end of the range.
        largest: Upper end of the range.

    Returns:
        Masses, float64 of shape (GRID_POINTS,).
    """
    sigma = smoothing_sigma(smallest, largest)
    spacing = ((largest - smallest) / sigma + 2.0 * _WINDOW) / (GRID_POINTS - 1)
    position = ((nodes - smallest) / sigma + _WINDOW) / spacing
    point = np.rint(position)
    offset = (position - point) * spacing
    order = np.arange(_TAYLOR_TERMS)[:, None]
    index = (order * GRID_POINTS + point.astype(np.int64)).ravel()
    moments = np.bincount(
        index,
        (weights * np.vander(offset, _TAYLOR_TERMS, increasing=True).T).ravel(),
        _TAYLOR_TERMS * GRID_POINTS,
    )
    transform = np.fft.rfft(moments.reshape(_TAYLOR_TERMS, GRID_POINTS))
    # The grid has room for the tails on both sides, so that nothing wraps around.
    masses = np.fft.irfft((transform * _taylor_kernels(spacing)).sum(axis=0), GRID_POINTS)
    return np.maximum(masses, 0.0)


@lru_cache(maxsize=16)
def _taylor_kernels(spacing: float) -> NDArray[np.complex128]:
    """Transforms of the mass in a cell some grid points away, expanded in the offset, in units of sigma.

    ``Phi(z - t) = Phi(z) - sum over k >= 1 of t^k / k! He_{k-1}(z) phi(z)`` with Hermite polynomials ``He``.
    """
    distance = np.fft.ifftshift(np.arange(GRID_POINTS) - GRID_POINTS // 2)
    edges = (distance + np.array([[0.5], [-0.5]])) * spacing
    normal = np.exp(-0.5 * edges**2) / math.sqrt(2.0 * math.pi)
    distribution = 0.5 * torch.special.erfc(torch.from_numpy(-edges * math.sqrt(0.5))).numpy()
    terms = [distribution] + [
        -hermite_e.hermeval(edges, [0.0] * (k - 1) + [1.0]) * normal / math.factorial(k)
        for k in range(1, _TAYLOR_TERMS)
    ]
    return np.fft.rfft(np.array([above - below for above, below in terms]))


def _chunks(counts: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of the atoms whose windows hold about ``_CHUNK`` edges together."""
    group = np.cumsum(counts) // _CHUNK
    bounds = np.flatnonzero(np.diff(group, prepend=-1, append=-1)) if counts.size else np.zeros(1, np.int64)
    for start, stop in pairwise(bounds):
        yield slice(int(start), int(stop))


def _windows(first: NDArray[np.int64], last: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the pairs (atom, edge) of ragged windows ``first[atom] <= edge < last[atom]``."""
    counts = last - first
    atom = np.repeat(np.arange(counts.size), counts)
    offset = np.cumsum(counts) - counts
    return atom, np.arange(atom.size) + (first - offset)[atom]
