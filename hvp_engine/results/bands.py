"""Densities and distribution functions with a 95 % bar at every point."""

from __future__ import annotations

import math

import numpy as np

from hvp_engine.results import smoothing
from hvp_engine.results.estimate import Band
from hvp_engine.results.reading import Quadrature, Reading
from hvp_engine.results.smoothed import Smoothed, Smoother
from hvp_engine.results.smoothing import FloatArray

_NORMAL = 1.96
_STUDENT = 2.201  # of 95 %, with as many degrees of freedom as there are resamplings but one
_UNSEEN = 3.7  # eigenvalues that may be at a place where none was expected: the upper end of a Poisson law's bar
_SURE = 1.0  # eigenvalues within the width of a Gaussian, below which there may be none
_HARDLY = 0.1  # the same, so few that a difference does not matter
LEFT = 2.0  # what is left to change of a density is so much what the steps before changed
_NEARBY = 2.0  # standard deviations of the Gaussians over which errors of a density are much alike


def density_band(block: Smoother, numel: int, grid: FloatArray | None, sigma: float | None) -> Band:
    """Estimate a smoothed density with its bars.

    What chance moves is seen from the weights drawn again, and is a relative error like that of a chi-square law; where
    few eigenvalues are expected there may be none, or some more. What more steps would change is seen from what those
    before changed, nearby.

    Args:
        block: The block.
        numel: Its number of parameters.
        grid: Strictly increasing points; None for the block's own.
        sigma: Standard deviation of the Gaussians; None for the block's own.
    """
    if grid is None and sigma is None:
        found = block.default
    else:
        chosen = block.sigma if sigma is None else sigma
        found = block.on(block.grid_for(chosen) if grid is None else grid, chosen)
    points = found.grid
    width = smoothing.cell_widths(points)
    value = found.masses / width
    if block.exact:
        return Band(points, value, value.copy(), value.copy(), "exact")
    if block.unknown:
        return Band(points, value, np.full_like(value, math.nan), np.full_like(value, math.nan), "blended")
    single = np.minimum(1.0 / (math.sqrt(2.0 * math.pi) * found.sigma), 1.0 / width) / numel
    floor = _HARDLY * single
    scatter = _near(found, found.resampled.var(axis=0, ddof=1) / width**2, _NEARBY * found.sigma)
    deviation = np.sqrt(scatter / (_near(found, value**2, _NEARBY * found.sigma) + floor**2))
    few, many = (_quantile(deviation, sign * _STUDENT) for sign in (-1.0, 1.0))
    changed = np.exp(
        LEFT * _near(found, np.abs(np.log((value + floor) / (found.both_earlier / width + floor))), found.reach)
    )
    unseen = np.maximum(single, np.sqrt(value * single)) * _UNSEEN
    low = np.where(value > _SURE * single, value / (np.maximum(many, 1e-12) * changed), 0.0)
    high = np.minimum(value / np.maximum(few, 1e-12), value + unseen) * changed + floor
    return Band(points, value, low, high, "blended")


def _quantile(deviation: FloatArray, z: float) -> FloatArray:
    """Return a quantile of a Gamma law of mean 1 (Wilson and Hilferty, Proc. Natl. Acad. Sci. 17, 1931)."""
    return np.maximum(1.0 - deviation**2 / 9.0 + z * deviation / 3.0, 0.0) ** 3


def _near(found: Smoothed, errors: FloatArray, reach: float) -> FloatArray:
    """Average over what is nearby."""
    sums = np.concatenate(([0.0], errors.cumsum()))
    first, last = (np.searchsorted(found.grid, found.grid + sign * reach) for sign in (-1.0, 1.0))
    last = np.maximum(last, first + 1)
    return np.asarray((sums[last] - sums[first]) / (last - first))


def cdf_band(reading: Reading, points: FloatArray) -> Band:
    """Estimate the share of the eigenvalues at or below each point, with its bars.

    For every probe the Chebyshev-Markov-Stieltjes inequalities hold the share of its mass: that of the nodes below, but
    for the last and the next one. Both are known where they are single eigenvalues, and where the Krylov space is
    exhausted. Noise of the products moves the nodes.
    """
    rule = reading.variance_reduced
    value = reading.smooth(points)
    if reading.exact:
        return Band(points, value, value.copy(), value.copy(), "exact")
    probes = len(rule.free)
    moved = reading.found.noise * float(np.abs(rule.nodes).max())
    low, high, variance = (np.zeros(points.size) for _ in range(3))
    for probe in range(probes):
        own = rule.probe == probe
        weights = rule.weights[own] * probes
        unknown = weights * (~rule.accepted[own] & (reading.found.residuals[probe] > 0.0))
        below = np.concatenate(([0.0], weights.cumsum()))
        least = np.searchsorted(rule.nodes[own], points - moved, side="right")
        most = np.searchsorted(rule.nodes[own], points + moved, side="right")
        ends = below[least] - np.concatenate(([0.0], unknown))[least], below[most] + np.append(unknown, 0.0)[most]
        low, high = low + ends[0] / probes, high + ends[1] / probes
        variance += _bridge(rule, probe, *ends) / probes**2
    chance = _NORMAL * np.sqrt(variance)
    return Band(points, value, np.clip(low - chance, 0.0, value), np.clip(high + chance, value, 1.0), "smooth")


def _bridge(rule: Quadrature, probe: int, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return the largest variance of a share between two bounds, as chance moves it: ``2 F (1 - F) / (d + 2)``."""
    own = (rule.probe == probe) & rule.accepted
    free, share = float(rule.free[probe]), float(rule.free[probe]) / rule.numel
    if share == 0.0:
        return np.zeros_like(low)
    known = int(own.sum()) / rule.numel
    inside = [np.clip((end - known) / share, 0.0, 1.0) for end in (low, high + known)]
    nearest = np.clip(0.5, *inside)
    return share**2 * 2.0 / (free + 2.0) * nearest * (1.0 - nearest)
