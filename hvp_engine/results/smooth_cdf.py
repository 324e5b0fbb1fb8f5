"""Distribution functions that are smooth between known atoms.

Nodes of a quadrature stand for intervals, not for points: half of a node's weight lies below it. A monotone cubic goes
through those mid-ranks, in a variable that gives the centre and the tails of the distribution equal room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hvp_engine.results.ritz import BoolArray
from hvp_engine.results.smoothing import FloatArray

_PIECES = 8  # straight pieces for each cell of the cubic


@dataclass(frozen=True, eq=False)
class SmoothCdf:
    """A distribution function of straight pieces, with jumps where atoms are.

    Attributes:
        knots: Where pieces meet, strictly increasing, float64 of shape (K,).
        below: Limits from the left, shape (K,); the first is 0.
        above: Values, limits from the right, shape (K,); the last is 1.
    """

    knots: FloatArray
    below: FloatArray
    above: FloatArray

    def __call__(self, points: FloatArray) -> FloatArray:
        """Evaluate at points, in any order: the mass at or below each."""
        return self._at(points, "right")

    def left(self, points: FloatArray) -> FloatArray:
        """Evaluate the limits from the left: the mass below each point."""
        return self._at(points, "left")

    def distance(self, other: SmoothCdf) -> float:
        """Compute the Wasserstein-1 distance, exactly: the integral of the difference of both functions."""
        knots = np.union1d(self.knots, other.knots)
        start = self(knots)[:-1] - other(knots)[:-1]
        end = self.left(knots)[1:] - other.left(knots)[1:]
        crossing = start * end < 0.0
        apart = np.abs(start) + np.abs(end)
        mean = np.where(crossing, (start**2 + end**2) / np.where(apart > 0.0, apart, 1.0), apart)
        return float(0.5 * (mean @ np.diff(knots)))

    def _at(self, points: FloatArray, side: str) -> FloatArray:
        x = np.asarray(points, dtype=np.float64)
        cell = np.searchsorted(self.knots, x, side=side) - 1  # type: ignore[call-overload]
        inside = np.clip(cell, 0, max(self.knots.size - 2, 0))
        start, end = self.above[inside], self.below[np.minimum(inside + 1, self.knots.size - 1)]
        width = self.knots[np.minimum(inside + 1, self.knots.size - 1)] - self.knots[inside]
        part = np.divide(x - self.knots[inside], width, out=np.zeros_like(x), where=width > 0.0)
        value = start + np.clip(part, 0.0, 1.0) * (end - start)
        return np.asarray(np.where(cell < 0, 0.0, np.where(cell >= self.knots.size - 1, 1.0, value)))


def smooth_cdf(nodes: FloatArray, weights: FloatArray, atoms: BoolArray) -> SmoothCdf:
    """Spread what is no atom.

    Args:
        nodes: Ascending but for rounding, shape (N,).
        weights: Summing to 1, shape (N,).
        atoms: Which nodes are atoms; the mass of the others is spread between them.
    """
    places, masses = _merged(nodes[atoms], weights[atoms])
    rest = ~atoms & (weights > 0.0)
    knots, values = _spread(*_merged(nodes[rest], weights[rest]))
    every = np.union1d(places, knots)
    smooth_left = np.interp(every, knots, values, left=0.0) if knots.size else np.zeros(every.size)
    smooth_right = smooth_left.copy()
    if knots.size:  # half of the outermost weights lies at their nodes: there are jumps at both ends
        smooth_left[every <= knots[0]] = 0.0
        smooth_right[every >= knots[-1]] = weights[rest].sum()
        smooth_left[every > knots[-1]] = weights[rest].sum()
    jumps = np.concatenate(([0.0], masses.cumsum()))
    below = smooth_left + jumps[np.searchsorted(places, every, side="left")]
    above = smooth_right + jumps[np.searchsorted(places, every, side="right")]
    total = above[-1]
    return SmoothCdf(every, below / total, above / total)


def step_cdf(nodes: FloatArray, weights: FloatArray) -> SmoothCdf:
    """Leave all mass where it is.

    Args:
        nodes: In any order, shape (N,).
        weights: Summing to 1, shape (N,).
    """
    places, masses = _merged(nodes, weights)
    jumps = np.concatenate(([0.0], masses.cumsum()))
    return SmoothCdf(places, jumps[:-1] / jumps[-1], jumps[1:] / jumps[-1])


def mixture(one: SmoothCdf, other: SmoothCdf, share: float) -> SmoothCdf:
    """Average two distribution functions, of which the first counts by ``share``."""
    if share == 0.0:
        return other
    knots = np.union1d(one.knots, other.knots)
    below = share * one.left(knots) + (1.0 - share) * other.left(knots)
    return SmoothCdf(knots, below, share * one(knots) + (1.0 - share) * other(knots))


def mean_of(functions: Sequence[SmoothCdf]) -> SmoothCdf:
    """Average distribution functions."""
    if len(functions) == 1:
        return functions[0]
    knots = np.unique(np.concatenate([function.knots for function in functions]))
    below = np.mean([function.left(knots) for function in functions], axis=0)
    return SmoothCdf(knots, below, np.mean([function(knots) for function in functions], axis=0))


def _merged(nodes: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    places, index = np.unique(nodes, return_inverse=True)
    masses = np.zeros(places.size)
    np.add.at(masses, index, weights)
    return places, masses


def _spread(nodes: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return knots and values of the cubic through the mid-ranks, cut into straight pieces."""
    ranks = weights.cumsum() - 0.5 * weights
    if nodes.size < 2:
        return nodes, ranks
    middle, low, high = np.interp(np.array([0.5, 0.25, 0.75]) * weights.sum(), ranks, nodes)
    scale = high - low if high > low else nodes[-1] - nodes[0]
    position = np.arcsinh((nodes - middle) / scale)
    if not (np.diff(position) > 0.0).all():  # nodes that rounding makes one: no room for a curve
        return nodes, ranks
    width = np.diff(position)
    slopes = _slopes(width, np.diff(ranks) / width)
    t = np.arange(_PIECES) / _PIECES
    base, step = ranks[:-1, None], np.diff(ranks)[:, None]
    cubic = (
        base
        + step * (t * t * (3.0 - 2.0 * t))
        + width[:, None] * (slopes[:-1, None] * t * (1.0 - t) ** 2 - slopes[1:, None] * t * t * (1.0 - t))
    )
    inner = middle + scale * np.sinh(position[:-1, None] + width[:, None] * t)
    inner[:, 0] = nodes[:-1]
    knots, values = np.append(inner, nodes[-1]), np.append(cubic, ranks[-1])
    keep = np.concatenate(([True], np.diff(knots) > 0.0))
    return knots[keep], np.maximum.accumulate(values[keep])


def _slopes(width: FloatArray, secant: FloatArray) -> FloatArray:
    """Choose slopes for a monotone cubic: weighted harmonic means (Fritsch and Butland, SIAM J. Sci. Stat. 5, 1984)."""
    if secant.size == 1:
        return np.repeat(secant, 2)
    before, after = width[1:] + 2.0 * width[:-1], 2.0 * width[1:] + width[:-1]
    product = secant[:-1] * secant[1:]
    weighted = after * secant[1:] + before * secant[:-1]
    inner = np.divide((before + after) * product, weighted, out=np.zeros_like(product), where=product > 0.0)
    return np.concatenate(([_end(width, secant)], inner, [_end(width[::-1], secant[::-1])]))


def _end(width: FloatArray, secant: FloatArray) -> float:
    slope = ((2.0 * width[0] + width[1]) * secant[0] - width[0] * secant[1]) / (width[0] + width[1])
    return float(min(max(slope, 0.0), 3.0 * secant[0]))
