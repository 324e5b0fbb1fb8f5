"""The bars that a spectrum has, and whether each of them holds what is true of its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.coverage.matrices import Floats, Matrix
from hvp_engine.errors import ConfigurationError
from hvp_engine.results import smoothing
from hvp_engine.results.bands import density_band
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.smooth_cdf import SmoothCdf
from hvp_engine.results.smoothed import Smoother
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.wasserstein import distance_from_truth

_SLACK = 1e-9  # of the range: rounding of what is exact


@dataclass(frozen=True)
class Bar:
    """One bar of one spectrum.

    Attributes:
        name: Of the quantity.
        held: Share of its truths that it holds: 0 or 1, or in between for a band.
        width: Half of its length, relative to what the study says of the quantity.
        bound: Whether it is a bound, which may hold more often than 95 %.
    """

    name: str
    held: float
    width: float
    bound: bool = False


def scalar_bars(matrix: Matrix, spectrum: Spectrum) -> Iterator[Bar]:
    """Compare every number of one block with the truth; numbers that are refused give no bar."""
    values, counts, scale = matrix.values, matrix.counts, float(abs(matrix.values).max())
    frobenius = float(np.sqrt(counts @ values**2))
    yield _bar("trace", spectrum.trace(), float(counts @ values), frobenius)
    for k in (3, 4):
        size = float(counts @ abs(values) ** k) / matrix.numel
        yield _bar(f"moment {k}", spectrum.moment(k), float(counts @ values**k) / matrix.numel, size)
    yield _bar("Frobenius norm", spectrum.frobenius_norm(), frobenius, frobenius)

    def logarithm(x: Floats) -> Floats:
        return np.asarray(np.log1p((x / matrix.sd) ** 2))

    truth = float(counts @ logarithm(values))
    yield _bar("tr log(1 + H^2/sd^2)", spectrum.apply(logarithm), truth, truth)
    yield _bar("outliers", spectrum.outliers(), float(_outliers(matrix)), 1.0)
    for k in (1, 5):
        yield from _asked(f"lambda_{k}", lambda k=k: spectrum.largest(k), float(matrix.top(k)[-1]), scale)
    yield from _asked("lambda_min", spectrum.smallest, float(values[0]), scale)


def _asked(name: str, ask: Callable[[], Estimate], truth: float, scale: float) -> Iterator[Bar]:
    try:
        estimate = ask()
    except ConfigurationError:
        return
    yield _bar(name, estimate, truth, scale, bound=True)


def _bar(name: str, estimate: Estimate, truth: float, scale: float, bound: bool = False) -> Bar:
    slack = _SLACK * scale
    held = estimate.low - slack <= truth <= estimate.high + slack
    return Bar(name, float(held), 0.5 * (estimate.high - estimate.low) / scale, bound)


def _outliers(matrix: Matrix) -> int:
    """Count the eigenvalues beyond six standard deviations of the others, which are left out again and again."""
    inside = np.ones(len(matrix.values), dtype=bool)
    while True:
        counts = np.where(inside, matrix.counts, 0)
        mean = counts @ matrix.values / counts.sum()
        deviation = np.sqrt(counts @ (matrix.values - mean) ** 2 / counts.sum())
        now = abs(matrix.values - mean) <= 6.0 * deviation
        if (now == inside).all() or not now.any():
            return int(matrix.counts[~inside].sum())
        inside = now


def shape_bars(matrix: Matrix, spectrum: Spectrum) -> Iterator[Bar]:
    """Compare the distribution and the density of one block with the truth.

    A band holds the share of its points where it holds; points without an eigenvalue nearby do not count.
    """
    below = np.concatenate(([0], matrix.counts.cumsum())) / matrix.numel
    truth = SmoothCdf(matrix.values, below[:-1], below[1:])
    bar = distance_from_truth(spectrum.reading)
    held = spectrum.reading.smooth.distance(truth) <= bar + _SLACK * matrix.sd
    yield Bar("W1 from the truth", float(held), bar / matrix.sd)
    block = Smoother(spectrum.reading, matrix.name)
    band = density_band(block, matrix.numel, None, None)
    weights = matrix.counts[None] / matrix.numel
    density = smoothing.shared_masses(matrix.values, weights, band.points, block.sigma)[0]
    density /= smoothing.cell_widths(band.points)
    seen = density > 0.1 / (matrix.numel * math.sqrt(2.0 * math.pi) * block.sigma)
    holds = (band.low <= density) & (density <= band.high)
    inside = seen & (band.low > 0.0)
    width = 0.5 * float(np.log10(band.high[inside] / band.low[inside]).mean()) if inside.any() else math.nan
    yield Bar("density", float(holds[seen].mean()), width)
