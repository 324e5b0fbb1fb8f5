"""What a block's spectrum is: every eigenvalue of small blocks, the best reading of long streams of larger ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvp_engine.results import smoothing
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.reading import Reading
from hvp_engine.results.resampling import RESAMPLINGS
from hvp_engine.results.smooth_cdf import SmoothCdf, smooth_cdf
from hvp_engine.results.smoothed import Smoothed

from .streams import Streams, exact, judged, long
from .zoo import Network

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Atoms:
    """Weighted eigenvalues, float64 of shape (N,) each; the weights sum to 1."""

    nodes: Array
    weights: Array


@dataclass(eq=False)
class Truth:
    """A block's spectrum as estimates are judged by it.

    Attributes:
        numel: The block's number of parameters.
        exact: Whether it is made of all eigenvalues.
        atoms: For densities.
        cdf: For Wasserstein distances.
        mean: Mean of the eigenvalues.
        square: Mean of their squares.
    """

    numel: int
    exact: bool
    atoms: Atoms
    cdf: SmoothCdf
    mean: float
    square: float
    unknown = False  # as divergences ask

    @cached_property
    def default(self) -> Smoothed:
        """The block as divergences compare it: nothing of it is left to chance, or to more steps."""
        sigma = smoothing.smoothing_sigma(*self.range)
        grid = smoothing.smoothing_grid(*self.range, sigma)
        masses = self.masses(grid, sigma)
        return Smoothed(grid, sigma, masses, np.tile(masses, (RESAMPLINGS, 1)), np.tile(masses, (2, 1)), 0.0)

    def masses(self, grid: Array, sigma: float) -> Array:
        """Smooth into the cells of a grid."""
        return smoothing.shared_masses(self.atoms.nodes, self.atoms.weights[None], grid, sigma)[0]

    @property
    def deviation(self) -> float:
        """Standard deviation of the eigenvalues."""
        return float(np.sqrt(self.square - self.mean**2))

    @property
    def frobenius(self) -> float:
        """Frobenius norm of the block."""
        return float(np.sqrt(self.numel * self.square))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue."""
        return float(self.atoms.nodes.min()), float(self.atoms.nodes.max())


def coefficients(streams: Streams, probes: NDArray[np.int64], steps: int) -> Coefficients:
    """Return some probes of a block's streams, truncated to some steps."""
    found = Coefficients(
        streams.numel,
        streams.alphas[probes],
        streams.betas[probes, :-1],
        streams.steps[probes],
        streams.betas[probes, streams.steps[probes] - 1],
    )
    return found.truncated(steps)


def of_eigenvalues(values: Array) -> Truth:
    """Return the truth of a block whose eigenvalues are all known, ascending."""
    weights = np.full(values.size, 1.0 / values.size)
    cdf = smooth_cdf(values, weights, np.ones(values.size, dtype=np.bool_))
    return Truth(values.size, True, Atoms(values, weights), cdf, float(values.mean()), float((values**2).mean()))


def of_long(streams: Streams) -> Truth:
    """Return what long streams say, each quantity by the reading that is best for it."""
    reading = Reading(coefficients(streams, np.arange(len(streams.alphas)), streams.alphas.shape[1]))
    shape, moments = reading.averaged, reading.variance_reduced
    mean, square = (float(moments.weights @ moments.nodes**k) for k in (1, 2))
    return Truth(streams.numel, False, Atoms(shape.nodes, shape.weights), reading.smooth, mean, square)


def truths(network: Network, cache: Path) -> Mapping[str, Truth]:
    """Return the truth of every block of a network, in its order."""
    known, estimated = exact(network, cache), long(network, cache)
    return {
        name: of_eigenvalues(known[name]) if name in known else of_long(estimated[name])
        for name in judged(network, cache)
    }
