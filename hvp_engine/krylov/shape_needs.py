"""How far blocks are from targets for their densities: at every point, and in the divergences of all pairs.

Their bars are sums of a part by chance and a part by steps, where a need takes the root of the sum of squares: a need
that is met by a factor of the root of two is a bar that meets the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from hvp_engine.krylov.needs import Need
from hvp_engine.results.bands import LEFT, density_band
from hvp_engine.results.divergences import divergences
from hvp_engine.results.reading import Reading
from hvp_engine.results.resampling import RESAMPLINGS
from hvp_engine.results.smoothed import Smoother
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.sphere import student

_SUM = math.sqrt(2.0)


def density(reading: Reading, name: str, tolerance: float) -> Need:
    """Measure a block against a target for its density, in decades.

    The error is the mean half-width of the band, over the points where at least one eigenvalue is expected within the
    width of a Gaussian.

    Args:
        reading: What is known.
        name: Of the block.
        tolerance: Half-width, in decades.
    """
    block = Smoother(reading, name)
    band = density_band(block, reading.found.numel, None, None)
    seen = band.low > 0.0
    if not seen.any():
        return Need(tolerance / _SUM, math.inf, math.inf, bar=math.inf)
    bar = 0.5 * float(np.log10(band.high[seen] / band.low[seen]).mean())
    now, before = block.default.masses[seen], block.default.both_earlier[seen]
    least = float(now.min())
    krylov = LEFT * float(np.abs(np.log10((now + least) / (before + least))).mean())
    krylov = min(krylov, bar)
    return Need(tolerance / _SUM, krylov, (bar - krylov) * math.sqrt(len(reading.found.steps)), bar=bar)


def divergence(readings: Mapping[str, Reading], tolerance: float) -> dict[str, Need]:
    """Measure blocks against a target for the divergences of all pairs.

    What a pair lacks is shared out between its two: by what each changed over the last steps, and by how many
    parameters and probes it has, with whose number chance falls.

    Args:
        readings: What is known of every block.
        tolerance: Half-width of every divergence.
    """
    found = divergences([Smoother(reading, name) for name, reading in readings.items()])
    bars = found.entries()
    half = np.maximum(bars.high - bars.value, bars.value - bars.low)
    chance = np.minimum(student(RESAMPLINGS - 1) * found.rows[1 : 1 + RESAMPLINGS].std(axis=0, ddof=1), half)
    probes = np.array([len(reading.found.steps) for reading in readings.values()])
    sizes = probes * np.array([reading.found.numel for reading in readings.values()])
    krylov = _largest((half - chance) * _share(found.own))
    spread = _largest(chance * np.sqrt(_share(1.0 / sizes)))
    # Both blocks of a pair have a part: twice the one, and the root of twice the square of the other.
    return {
        name: Need(tolerance / _SUM, 2.0 * krylov[i], _SUM * spread[i] * math.sqrt(probes[i]), bar=float(half[i].max()))
        for i, name in enumerate(readings)
    }


def _share(parts: FloatArray) -> FloatArray:
    """Return the share of each block (rows) in its sum with each other one (columns)."""
    total = parts[:, None] + parts
    return np.divide(parts[:, None] + np.zeros_like(total), total, out=np.full_like(total, 0.5), where=total > 0.0)


def _largest(parts: FloatArray) -> list[float]:
    np.fill_diagonal(parts, 0.0)
    return [float(row.max()) for row in parts]
