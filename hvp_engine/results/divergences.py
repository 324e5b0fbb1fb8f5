"""Jensen-Shannon divergences with bars: what chance, more steps and the shape between nodes may change of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvp_engine.results.estimate import Estimate, MatrixEstimate
from hvp_engine.results.resampling import RESAMPLINGS
from hvp_engine.results.smoothed import Smoother, divergence
from hvp_engine.results.smoothing import FloatArray, cell_widths

READING = "blended"

_CHANCE = 2.201  # standard deviations that hold 95 % where they were found from 12 resamplings: Student's t, 11 degrees
_UNSETTLED = 0.5  # share of what a block's own density changed over some steps that a divergence from it may be off
_NOTHING_KNOWN = 4.0  # what a block is said to have changed by itself, where its divergences may have any value
_ROWS = 3 + RESAMPLINGS  # the blend, resampled ones, the blends with what either of the two in it was before


@dataclass(frozen=True, eq=False)
class Divergences:
    """Divergences between all pairs of blocks by every row of their ``Smoothed``.

    Attributes:
        rows: float64 of shape (3 + RESAMPLINGS, blocks, blocks), each symmetric with a zero diagonal; nan for
            a block without distances.
        own: Divergence of each block from what was known of it before, shape (blocks,).
    """

    rows: FloatArray
    own: FloatArray

    def entries(self) -> MatrixEstimate:
        """Estimate every divergence."""
        value, chance, krylov = _parts(self.rows)
        half = chance + krylov + _UNSETTLED * (self.own[:, None] + self.own)
        np.fill_diagonal(half, 0.0)
        return MatrixEstimate(value, np.clip(value - half, 0.0, 1.0), np.clip(value + half, 0.0, 1.0), READING)

    def mean_of_pairs(self) -> Estimate:
        """Estimate the mean over distinct pairs; nan if there are none."""
        return self._mean(np.triu(np.ones_like(self.rows[0], dtype=np.bool_), k=1))

    def means_to_others(self) -> list[Estimate]:
        """Estimate the mean over the other blocks for each of them; nan if there are none."""
        others = ~np.eye(len(self.own), dtype=np.bool_)
        return [self._mean(others & (np.arange(len(self.own)) == place)[:, None]) for place in range(len(self.own))]

    def _mean(self, pairs: NDArray[np.bool_]) -> Estimate:
        """Estimate a mean over entries that count; errors of pairs that share a block are not taken as independent."""
        pairs = pairs & np.isfinite(self.rows[0])
        if not pairs.any():
            return Estimate(math.nan, math.nan, reading=READING)
        value, chance, krylov = map(float, _parts(self.rows[:, pairs].mean(axis=1)))
        unsettled = _UNSETTLED * float((self.own[:, None] + self.own)[pairs].mean())
        half = math.hypot(chance, krylov + unsettled)
        return Estimate(value, chance / _CHANCE, max(0.0, value - half), min(1.0, value + half), READING)


def divergences(blocks: Sequence[Smoother | None]) -> Divergences:
    """Compare all pairs of blocks.

    Each is smoothed with its own sigma, ``sqrt(1e-5)`` times its range, so that blocks that differ in scale are far
    apart; one sigma for both would blur the smaller block into a spike at zero, which every block has. The densities
    are constant in the cells of their own grids, and compared on the union of all cell edges. No square root is taken.

    Args:
        blocks: The blocks; None for one that has no distances.
    """
    steps = [None if block is None else _steps(block) for block in blocks]
    rows = np.full((_ROWS, len(steps), len(steps)), math.nan)
    for i, one in enumerate(steps):
        rows[:, i, i] = 0.0
        for j, other in enumerate(steps[:i]):
            if one is not None and other is not None:
                rows[:, i, j] = rows[:, j, i] = _divergence(one, other)
    return Divergences(rows, np.array([math.nan if step is None else step.own for step in steps]))


@dataclass(frozen=True, eq=False)
class _Steps:
    """Heights between edges, of shape (3 + RESAMPLINGS, K + 1): the last column is that outside, zero."""

    edges: FloatArray
    heights: FloatArray
    entropies: FloatArray  # integrals of h log h, shape (_ROWS,)
    own: float


def _steps(smoother: Smoother) -> _Steps:
    block = smoother.default
    masses = np.concatenate((block.masses[None], block.resampled, block.earlier))
    masses /= masses.sum(axis=1, keepdims=True)
    grid = block.grid
    edges = np.concatenate((grid[:1], grid[:-1] + 0.5 * np.diff(grid), grid[-1:]))
    heights = masses / cell_widths(grid)
    entropies = (masses * _log(heights)).sum(axis=1)
    own = float(divergence(block.masses, block.both_earlier))
    outside = np.zeros((len(masses), 1))
    changed = _NOTHING_KNOWN if smoother.unknown else own
    return _Steps(edges, np.concatenate((heights, outside), axis=1), entropies, changed)


def _divergence(one: _Steps, other: _Steps) -> FloatArray:
    edges = np.union1d(one.edges, other.edges)
    middle = 0.5 * (one.heights[:, _cells(one, edges)] + other.heights[:, _cells(other, edges)])
    mixed = (middle * _log(middle)) @ np.diff(edges)
    return np.clip((0.5 * (one.entropies + other.entropies) - mixed) / math.log(2.0), 0.0, 1.0)


def _cells(block: _Steps, edges: FloatArray) -> NDArray[np.int64]:
    """Say in which of a block's cells those of a finer grid are; outside, that is the last column."""
    cell = np.searchsorted(block.edges, edges[:-1], side="right") - 1
    return np.where((cell < 0) | (cell >= block.edges.size - 1), block.edges.size - 1, cell)


def _log(heights: FloatArray) -> FloatArray:
    logarithms: FloatArray = np.log(np.maximum(heights, 1e-300))
    return logarithms


def _parts(rows: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return values, what chance may change of them in 95 %, and what was changed since before.

    The quadrature and the smooth function converge from opposite sides: what either changed would cancel in the blend.
    Errors of two densities make them less alike, not more: what resampling adds on average is taken off the value.
    """
    blend, drawn, before = rows[0], rows[1:-2], rows[-2:]
    value = np.clip(2.0 * blend - drawn.mean(axis=0), 0.0, 1.0)
    return value, _CHANCE * drawn.std(axis=0, ddof=1), np.abs(blend - before).sum(axis=0)
