"""The smoothed density of one block: between its averaged quadrature and its smooth distribution function.

The nodes of a quadrature are spikes until there are as many of them as Gaussians have room for; the smooth distribution
function has the right shape after few steps, and never the fine structure that many steps find. So the density lies
between the two, nearer to the quadrature the less the two differ, as they do after many steps, and with many probes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hvp_engine.results import smoothing
from hvp_engine.results.reading import Quadrature, Reading
from hvp_engine.results.resampling import resampled_weights
from hvp_engine.results.smooth_cdf import SmoothCdf
from hvp_engine.results.smoothing import FloatArray

_BACK = 10  # steps between a quadrature and the earlier one it is compared with; half of them where there are fewer
_FEWEST = 4  # steps, below which half of them are no reading to compare with
_SETTLED = 1e-6  # divergence of two densities that are the same
_BLUR = 0.1  # root of a divergence between two densities, in units of which that from a third block differs
_FINE = 0.25  # cells of a grid, in sigmas, in which a density may be taken as constant before it is smoothed
_ALIKE = 2.0  # standard deviations of Gaussians that overlap
_WEIGHT = 1e-12  # too little to be compared


@dataclass(frozen=True, eq=False)
class Smoothed:
    """Masses of one block in the cells of a grid, each row of which sums to 1.

    Attributes:
        grid: Points that own the cells, strictly increasing, float64 of shape (points,).
        sigma: Standard deviation of the Gaussians.
        masses: The blend of the averaged quadrature and the smooth distribution function, shape (points,).
        resampled: The same with weights drawn again, shape (RESAMPLINGS, points).
        earlier: The same blend with what one of the two was before: the quadrature ten steps ago, and the smooth
            function, which converges as a power of the steps, after half of them; shape (2, points).
        reach: Over which distance errors are alike: two sigmas, or half of that of two nodes on average.
    """

    grid: FloatArray
    sigma: float
    masses: FloatArray
    resampled: FloatArray
    earlier: FloatArray
    reach: float

    @property
    def both_earlier(self) -> FloatArray:
        """The blend of what both were before, shape (points,)."""
        both: FloatArray = np.maximum(self.earlier.sum(axis=0) - self.masses, 0.0)
        return both


class Smoother:
    """Smooths one block, on any grid."""

    def __init__(self, reading: Reading, name: str) -> None:
        """Prepare a block.

        Args:
            reading: The readings of its coefficients.
            name: Its name, which seeds what is drawn.

        Raises:
            ConfigurationError: Its eigenvalues are so large or so small that densities leave the range of doubles.
        """
        found = reading.found
        most = int(found.steps.max())
        self._reading = reading
        self._settled = reading.exact or not (found.residuals > 0.0).any()
        self._before = reading if self._settled else Reading(found.truncated(max(1, most - _BACK, most // 2)))
        self._half = reading.half or reading
        drawn = resampled_weights(reading.averaged, name)
        self._weights = np.concatenate((reading.averaged.weights[None], drawn))
        gauss = reading.gauss.nodes
        self.sigma = smoothing.smoothing_sigma(float(gauss.min()), float(gauss.max()))
        every = np.concatenate((gauss, reading.averaged.nodes, self._before.averaged.nodes))
        self._span = float(every.min()), float(every.max())
        self.grid = self.grid_for(self.sigma)

    @property
    def exact(self) -> bool:
        """Whether every eigenvalue is known."""
        return self._reading.exact

    @property
    def unknown(self) -> bool:
        """Whether there are too few steps to say what more of them would change."""
        return not self._settled and int(self._reading.found.steps.max()) < _FEWEST

    def grid_for(self, sigma: float) -> FloatArray:
        """Make a uniform grid over all nodes and the tails of their Gaussians."""
        return smoothing.smoothing_grid(*self._span, sigma)

    @cached_property
    def share(self) -> float:
        """Share of the smooth function in the blend: that which makes a block look neither further apart nor nearer.

        Spikes are errors of all signs, which add to divergences from other blocks by their square, of which the
        divergence from the smooth function is a measure; it falls with the probes, whose nodes lie between each other.
        In a blend the spikes are lower by ``1 - share``. What the smooth function blurs moves divergences in proportion
        to the share and, as a divergence is the square of a difference, to its root.
        """
        change = float(divergence(self._spiky[0], self._was))
        if change <= _SETTLED:
            return 0.0
        apart = float(divergence(self._spiky[0], self._smooth))
        spikes, blur = min(apart, change), _BLUR * math.sqrt(apart)
        if spikes <= _SETTLED:
            return 0.0
        ratio = blur / spikes  # of which (1 - share)^2 = ratio share
        return 1.0 / (1.0 + 0.5 * ratio + math.sqrt(ratio + 0.25 * ratio**2))

    @cached_property
    def default(self) -> Smoothed:
        """The block on its own grid, with its own sigma."""
        return self._blend(self.grid, self.sigma, self._spiky, self._was)

    def on(self, grid: FloatArray, sigma: float) -> Smoothed:
        """Smooth on another grid, or with another sigma."""
        rule, was = self._reading.averaged, self._before.averaged
        spiky = smoothing.shared_masses(rule.nodes, self._weights, grid, sigma)
        return self._blend(grid, sigma, spiky, smoothing.shared_masses(was.nodes, was.weights[None], grid, sigma)[0])

    def _blend(self, grid: FloatArray, sigma: float, spiky: FloatArray, was: FloatArray) -> Smoothed:
        share = self.share
        found = self._reading.found
        reach = max(_ALIKE * sigma, 0.5 * float(np.ptp(self._reading.gauss.nodes)) / int(found.steps.max()))
        if share == 0.0:
            return Smoothed(grid, sigma, spiky[0], spiky[1:], np.stack((was, spiky[0])), reach)
        lines, atoms = _lines_and_atoms(self._reading.curve, grid, sigma)
        drawn = _reweighted(lines, atoms, grid, sigma, self._reading.averaged, self._weights)
        before = np.add(*_lines_and_atoms(self._half.curve, grid, sigma))
        masses = (1.0 - share) * spiky[0] + share * (lines + atoms)
        earlier = np.stack((masses + (1.0 - share) * (was - spiky[0]), masses + share * (before - lines - atoms)))
        return Smoothed(grid, sigma, masses, (1.0 - share) * spiky[1:] + share * drawn, np.maximum(earlier, 0.0), reach)

    @cached_property
    def _spiky(self) -> FloatArray:
        return smoothing.shared_masses(self._reading.averaged.nodes, self._weights, self.grid, self.sigma)

    @cached_property
    def _was(self) -> FloatArray:
        was = self._before.averaged
        return np.asarray(smoothing.shared_masses(was.nodes, was.weights[None], self.grid, self.sigma)[0])

    @property
    def _smooth(self) -> FloatArray:
        return np.add(*_lines_and_atoms(self._reading.curve, self.grid, self.sigma))


def divergence(p: FloatArray, q: FloatArray) -> FloatArray:
    """Compute the Jensen-Shannon divergence of distributions over the same cells, along the last axis, base 2."""
    mean = 0.5 * (p + q)
    total = np.zeros(mean.shape[:-1])
    for masses in (p, q):
        logarithms = np.log2(
            np.divide(masses, mean, out=np.ones_like(mean), where=np.broadcast_to(masses, mean.shape) > 0.0)
        )
        total += (masses * logarithms).sum(axis=-1)
    return np.clip(0.5 * total, 0.0, 1.0)


def _lines_and_atoms(function: SmoothCdf, grid: FloatArray, sigma: float) -> tuple[FloatArray, FloatArray]:
    """Compute the masses in the cells of a grid of a distribution function's smooth part, and of its atoms."""
    jumps = function.above - function.below
    at = jumps > 0.0
    atoms = smoothing.shared_masses(function.knots[at], jumps[None, at], grid, sigma)[0]
    knots = function.knots
    values = np.maximum.accumulate(function.below - np.concatenate(([0.0], jumps[:-1].cumsum())))
    if values[-1] <= 0.0:
        return np.zeros_like(atoms), atoms
    covered = grid[0] <= knots[0] and knots[-1] <= grid[-1] and float(np.diff(grid).max()) <= _FINE * sigma
    if covered and knots.size > grid.size:
        knots, values = grid, np.interp(grid, knots, values, left=0.0)
    return smoothing.line_masses(knots, values, grid, sigma), atoms


def _reweighted(
    lines: FloatArray, atoms: FloatArray, grid: FloatArray, sigma: float, rule: Quadrature, weights: FloatArray
) -> FloatArray:
    """Change a smooth density as drawing weights again changes those of the nodes around.

    Args:
        lines: Masses of its smooth part, which change as the nodes to the left and to the right do, shape (points,).
        atoms: Masses of its atoms, which change as all weight within a sigma does, shape (points,).
        grid: The points.
        sigma: Standard deviation of the Gaussians.
        rule: The quadrature.
        weights: Its weights, and those drawn again, shape (1 + rows, N).

    Returns:
        Masses, shape (rows, points).
    """
    changes = np.zeros((len(weights) - 1, grid.size))
    for probe in range(len(rule.free)):
        own = (rule.probe == probe) & ~rule.accepted & (rule.weights > 0.0)
        for number, again in enumerate(weights[1:, own]):
            ratio = again / rule.weights[own]
            changes[number] += np.interp(grid, rule.nodes[own], ratio, 1.0, 1.0) if own.any() else 1.0
    order = np.argsort(rule.nodes, kind="stable")
    sums = np.concatenate((np.zeros((len(weights), 1)), weights[:, order].cumsum(axis=1)), axis=1)
    first, last = (np.searchsorted(rule.nodes[order], grid + sign * sigma) for sign in (-1.0, 1.0))
    near = sums[:, last] - sums[:, first]
    jumps = np.divide(near[1:], near[0], out=np.ones_like(changes), where=near[0] > _WEIGHT)
    changed = lines * changes / len(rule.free) + atoms * jumps
    return np.asarray(changed / changed.sum(axis=1, keepdims=True))
