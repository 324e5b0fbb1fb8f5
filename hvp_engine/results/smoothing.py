"""Gaussian smoothing of weighted atoms that keeps the total mass on every grid.

A quadrature is a sum of weighted atoms. Sampling a Gaussian mixture at grid points loses the mass of any atom
that falls between two points, so each grid point here owns a cell, and gets the exact integral of the mixture
over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from numbers import Real

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.system.formatting import first_line

FloatArray = NDArray[np.float64]

RELATIVE_SIGMA = math.sqrt(1e-5)
"""Standard deviation of the smoothing Gaussian, as a fraction of the range of the atoms."""

GRID_POINTS = 2048
"""Points of a default grid: about six to a standard deviation, so that sums over cells have converged."""

_RANGE_FLOOR = 1e-4
"""Smallest range that counts, relative to the magnitude: below it, single-precision noise is all there is."""

_LARGEST_SIGMA = 1e290
_WIDEST = 1e6  # of a sigma over the eigenvalues' range or magnitude
"""Beyond it, and below its inverse, six decades of a density do not fit into doubles."""

_WINDOW = 8.0
"""Standard deviations beyond which a Gaussian has no mass left in double precision (6e-16 on each side)."""

_CHUNK = 1 << 14
"""Evaluations of the error function at a time: they stay in cache, and below the size that torch splits over
threads, whose start would cost more than the work."""


def smoothing_sigma(smallest: float, largest: float) -> float:
    """Choose the default standard deviation for atoms in ``[smallest, largest]``.

    It is ``sqrt(1e-5)`` times the range, so that the smoothed spectrum of ``c * H`` is that of ``H``,
    stretched by ``c``. A range below 1e-4 of the magnitude (a single atom, say) is raised to that, and is 1
    if all atoms are zero.

    Raises:
        ConfigurationError: The atoms are so large or so small that densities leave the range of doubles.
    """
    magnitude = max(abs(smallest), abs(largest))
    if magnitude == 0.0:
        return RELATIVE_SIGMA
    sigma = RELATIVE_SIGMA * max(largest - smallest, _RANGE_FLOOR * magnitude)
    if not 1.0 / _LARGEST_SIGMA < sigma < _LARGEST_SIGMA:
        raise ConfigurationError(
            f"Eigenvalues from {smallest:.3g} to {largest:.3g} cannot be smoothed, their densities leave the range of "
            "double precision; scale the loss."
        )
    return sigma


def smoothing_grid(smallest: float, largest: float, sigma: float) -> FloatArray:
    """Make a uniform grid of ``GRID_POINTS`` points over ``[smallest, largest]`` and the tails of its Gaussians.

    Raises:
        ConfigurationError: The Gaussians are so wide that rounding would decide the densities.
    """
    widest = _WIDEST * max(largest - smallest, abs(smallest), abs(largest), RELATIVE_SIGMA)
    if sigma > widest:
        raise ConfigurationError(
            f"sigma={sigma:g} is too wide for eigenvalues from {smallest:.3g} to {largest:.3g}; give at most "
            f"{widest:.3g}."
        )
    pad = _WINDOW * sigma
    return np.linspace(smallest - pad, largest + pad, GRID_POINTS)


def check_sigma(sigma: float) -> float:
    """Return ``sigma`` as a float, or raise ConfigurationError unless it is positive and finite."""
    known = isinstance(sigma, Real) and not isinstance(sigma, bool) and 1.0 / _LARGEST_SIGMA < sigma < _LARGEST_SIGMA
    if not known:
        raise ConfigurationError(
            f"sigma must be a positive finite number, not {sigma!r}; leave it out to take the default."
        )
    return float(sigma)


def check_numbers(name: str, numbers: ArrayLike) -> FloatArray:
    """Return an argument as an array, or raise ConfigurationError unless it is one of numbers."""
    try:
        return np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ConfigurationError(f"{name} must be a vector of numbers ({first_line(error)}).") from error


def check_grid(grid: ArrayLike) -> FloatArray:
    """Return ``grid`` as a vector, or raise ConfigurationError unless it is finite and increasing."""
    points = check_numbers("grid", grid)
    if points.ndim != 1 or points.size < 2:
        raise ConfigurationError(f"grid must be a vector of at least 2 points, not an array of shape {points.shape}.")
    if not np.isfinite(points).all():
        raise ConfigurationError("grid has points that are not finite; remove them.")
    if not (np.diff(points) > 1.0 / _LARGEST_SIGMA).all():
        raise ConfigurationError("grid must be strictly increasing; sort it and drop repeated points (numpy.unique).")
    return points


def cell_widths(grid: FloatArray) -> FloatArray:
    """Compute the widths of the cells, which are the weights of the trapezoidal rule on the grid."""
    half = 0.5 * np.diff(grid)
    widths = np.zeros_like(grid)
    widths[:-1] += half
    widths[1:] += half
    return widths


def cell_masses(nodes: FloatArray, weights: FloatArray, grid: FloatArray, sigma: float) -> FloatArray:
    """Integrate each row's Gaussian mixture over every cell of ``grid``.

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


def shared_masses(nodes: FloatArray, weights: FloatArray, grid: FloatArray, sigma: float) -> FloatArray:
    """Integrate Gaussian mixtures with the same centres over every cell of ``grid``, as ``cell_masses`` does.

    Args:
        nodes: Centres, float64 of shape (atoms,).
        weights: Their masses in every mixture, shape (rows, atoms).
        grid: As in ``cell_masses``.
        sigma: As in ``cell_masses``.

    Returns:
        Masses, float64 of shape (rows, points); a row sums to the sum of its weights.
    """
    edges = grid[:-1] + 0.5 * np.diff(grid)
    first = np.searchsorted(edges, nodes - _WINDOW * sigma)
    last = np.searchsorted(edges, nodes + _WINDOW * sigma)
    distribution = np.zeros((len(weights), edges.size))
    for row, mass in enumerate(weights):
        distribution[row] = np.bincount(last, weights=mass, minlength=edges.size + 1)[:-1].cumsum()
    for chunk in _chunks(last - first):
        index, edge = _windows(first[chunk], last[chunk])
        argument = (edges[edge] - nodes[chunk][index]) * (math.sqrt(0.5) / sigma)
        share = 0.5 + 0.5 * torch.special.erf(torch.from_numpy(argument)).numpy()
        for row, mass in enumerate(weights[:, chunk]):
            distribution[row] += np.bincount(edge, weights=share * mass[index], minlength=edges.size)
    masses = np.diff(distribution, axis=1, prepend=0.0, append=weights.sum(axis=1, keepdims=True))
    return np.maximum(masses, 0.0, out=masses)


def line_masses(knots: FloatArray, values: FloatArray, grid: FloatArray, sigma: float) -> FloatArray:
    """Integrate a density of constant pieces, smoothed by a Gaussian, over every cell of ``grid``.

    A distribution function of straight pieces is a sum of ramps that start at its knots. A smoothed ramp differs from
    the ramp only near its knot, by ``sigma * phi(t) - |t| * Phi(-|t| / sigma)``.

    Args:
        knots: Where the pieces of the distribution function meet, strictly increasing, shape (K,).
        values: The function there, from 0, shape (K,).
        grid: As in ``cell_masses``.
        sigma: Standard deviation of the Gaussian.

    Returns:
        Masses, float64 of shape (points,); they sum to the last value.
    """
    edges = grid[:-1] + 0.5 * np.diff(grid)
    bends = np.diff(np.diff(values) / np.diff(knots), prepend=0.0, append=0.0)
    first = np.searchsorted(edges, knots - _WINDOW * sigma)
    last = np.searchsorted(edges, knots + _WINDOW * sigma)
    distribution = np.interp(edges, knots, values, left=0.0)
    for chunk in _chunks(last - first):
        index, edge = _windows(first[chunk], last[chunk])
        t = np.abs(edges[edge] - knots[chunk][index]) / sigma
        tail = 0.5 * torch.special.erfc(torch.from_numpy(t * math.sqrt(0.5))).numpy()
        bent = bends[chunk][index] * sigma * (np.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi) - t * tail)
        distribution += np.bincount(edge, weights=bent, minlength=edges.size)
    masses = np.diff(distribution, prepend=0.0, append=values[-1])
    return np.maximum(masses, 0.0, out=masses)


def _chunks(counts: NDArray[np.int64]) -> Iterator[slice]:
    """Yield slices of the atoms whose windows hold about ``_CHUNK`` edges together."""
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
