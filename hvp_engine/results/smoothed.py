"""The smoothed density of one block: between its averaged quadrature and its smooth distribution function.

The nodes of a quadrature are spikes until there are as many of them as Gaussians have room for; the smooth distribution
function has its shape after few steps, and never the fine structure that many steps find. So the density lies between
the two, nearer to the quadrature the less that one still changes from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hvp_engine.results import smoothing
from hvp_engine.results.reading import Quadrature, Reading
from hvp_engine.results.resampling import resampled_weights
from hvp_engine.results.smooth_cdf import SmoothCdf
from hvp_engine.results.smoothing import FloatArray

_BACK = 10  # steps between a reading and the earlier one it is compared with; half of them where there are fewer
_SETTLED = 1e-6  # divergence between two readings below which they are the same


@dataclass(frozen=True, eq=False)
class Smoothed:
    """Masses of one block in the cells of a grid, by several readings; every row sums to 1.

    Attributes:
        grid: Points that own the cells, strictly increasing, float64 of shape (points,).
        sigma: Standard deviation of the Gaussians.
        masses: The blend of the averaged quadrature and the smooth distribution function, shape (points,).
        resampled: The same with weights drawn again, shape (RESAMPLINGS, points).
        smooth: By the smooth distribution function alone, shape (points,).
        earlier: The same blend of what was known some steps before, shape (points,).
        share: Share of the smooth distribution function in the blend.
    """

    grid: FloatArray
    sigma: float
    masses: FloatArray
    resampled: FloatArray
    smooth: FloatArray
    earlier: FloatArray
    share: float


def default_grid(reading: Reading) -> tuple[FloatArray, float]:
    """Choose the grid and the sigma of a block: those of the Gauss nodes, wide enough for all others."""
    gauss, before = reading.gauss.nodes, earlier(reading)
    sigma = smoothing.smoothing_sigma(float(gauss.min()), float(gauss.max()))
    every = np.concatenate((gauss, reading.averaged.nodes, before.averaged.nodes))
    return smoothing.smoothing_grid(float(every.min()), float(every.max()), sigma), sigma


def earlier(reading: Reading) -> Reading:
    """Read what was known some steps before."""
    most = int(reading.found.steps.max())
    return Reading(reading.found.truncated(max(1, most - _BACK, most // 2)))


def smoothed(reading: Reading, name: str, grid: FloatArray | None = None, sigma: float | None = None) -> Smoothed:
    """Smooth a block.

    Args:
        reading: The readings of its coefficients.
        name: Its name.
        grid: Strictly increasing points; None for its ``default_grid``.
        sigma: Standard deviation of the Gaussians; None for the default one.
    """
    own_grid, own_sigma = default_grid(reading)
    share = _share(reading, name, own_grid, own_sigma)
    points, width = own_grid if grid is None else grid, own_sigma if sigma is None else sigma
    rule, before = reading.averaged, earlier(reading)
    drawn = resampled_weights(rule, name)
    spiky = _atom_masses(rule.nodes, np.concatenate((rule.weights[None], drawn)), points, width)
    smooth = smooth_masses(reading.smooth, points, width)
    was = _atom_masses(before.averaged.nodes, before.averaged.weights[None], points, width)[0]
    return Smoothed(
        points,
        width,
        (1.0 - share) * spiky[0] + share * smooth,
        (1.0 - share) * spiky[1:] + share * _reweighted(reading.smooth, points, width, rule, drawn),
        smooth,
        (1.0 - share) * was + share * smooth_masses(before.smooth, points, width),
        share,
    )


def smooth_masses(function: SmoothCdf, grid: FloatArray, sigma: float) -> FloatArray:
    """Smooth a distribution function further, by Gaussians, and integrate over the cells of a grid."""
    lines, atoms = _lines_and_atoms(function, grid, sigma)
    return lines + atoms


def divergence(p: FloatArray, q: FloatArray) -> FloatArray:
    """Compute the Jensen-Shannon divergence of distributions over the same cells, along the last axis, base 2."""
    mean = 0.5 * (p + q)
    total = np.zeros(np.broadcast(p, q).shape[:-1])
    for masses in (p, q):
        ratio = np.divide(masses, mean, out=np.ones(np.broadcast(p, q).shape), where=masses > 0.0)
        total += np.einsum("...i,...i->...", masses, np.log2(ratio, out=ratio))
    return np.clip(0.5 * total, 0.0, 1.0)


def _share(reading: Reading, name: str, grid: FloatArray, sigma: float) -> float:
    """Choose the share of the smooth function: the divergence that is left of the quadrature against its own from it.

    What is left is taken to be what changed over some steps, beyond what chance moves.
    """
    rule, before = reading.averaged, earlier(reading)
    weights = np.concatenate((rule.weights[None], resampled_weights(rule, name)))
    spiky = _atom_masses(rule.nodes, weights, grid, sigma)
    was = _atom_masses(before.averaged.nodes, before.averaged.weights[None], grid, sigma)[0]
    chance = float(divergence(spiky[:1], spiky[1:]).mean())
    left = max(float(divergence(spiky[0], was)) - chance, 0.0)
    if left < _SETTLED:
        return 0.0
    return left**2 / (left**2 + float(divergence(spiky[0], smooth_masses(reading.smooth, grid, sigma))) ** 2)


def _atom_masses(nodes: FloatArray, weights: FloatArray, grid: FloatArray, sigma: float) -> FloatArray:
    return smoothing.cell_masses(np.broadcast_to(nodes, weights.shape), weights, grid, sigma)


def _lines_and_atoms(function: SmoothCdf, grid: FloatArray, sigma: float) -> tuple[FloatArray, FloatArray]:
    """Compute the masses in the cells of a grid of the smooth part, and of the atoms."""
    jumps = function.above - function.below
    at = jumps > 0.0
    atoms = smoothing.cell_masses(function.knots[None, at], jumps[None, at], grid, sigma)[0]
    values = np.maximum.accumulate(function.below - np.concatenate(([0.0], jumps[:-1].cumsum())))
    if values[-1] <= 0.0:
        return np.zeros_like(atoms), atoms
    return smoothing.line_masses(function.knots, values, grid, sigma), atoms


def _reweighted(
    function: SmoothCdf, grid: FloatArray, sigma: float, rule: Quadrature, drawn: FloatArray
) -> FloatArray:
    """Smooth a distribution function that changes as drawing weights again changes those of the nodes around."""
    lines, atoms = _lines_and_atoms(function, grid, sigma)
    ratios = np.zeros((len(drawn), grid.size))
    for probe in range(len(rule.free)):
        own = (rule.probe == probe) & ~rule.accepted
        nodes, weights = rule.nodes[own], np.maximum(rule.weights[own], 1e-300)
        for row, again in zip(ratios, drawn[:, own], strict=True):
            row += np.interp(grid, nodes, again / weights, left=1.0, right=1.0) if nodes.size else 1.0
    ratios /= len(rule.free)
    order = np.argsort(rule.nodes, kind="stable")
    nodes = rule.nodes[order]
    sums = np.cumsum(np.concatenate((rule.weights[None], drawn))[:, order], axis=1)
    sums = np.concatenate((np.zeros((len(sums), 1)), sums), axis=1)
    first, last = np.searchsorted(nodes, grid - sigma), np.searchsorted(nodes, grid + sigma, side="right")
    near = sums[:, last] - sums[:, first]
    atoms_ratios = np.divide(near[1:], near[0], out=np.ones((len(drawn), grid.size)), where=near[0] > 1e-12)
    changed = lines * ratios + atoms * atoms_ratios
    return np.asarray(changed / changed.sum(axis=1, keepdims=True))
