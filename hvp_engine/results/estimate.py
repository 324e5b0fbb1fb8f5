"""What a Monte-Carlo method gives: a value and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hvp_engine.results.smoothing import FloatArray

_MOST_LOG = 700.0  # of a float's exponential


@dataclass(frozen=True)
class Estimate:
    """An estimated number, its standard error and its 95 % bar; unpacks into value and standard error.

    Attributes:
        value: The estimate.
        stderr: Standard error; nan where there is none.
        low: Lower end of the 95 % bar; nan where there is none.
        high: Upper end of the 95 % bar; nan where there is none.
        reading: By which reading of the Lanczos coefficients it was made, see :mod:`hvp_engine.results.reading`.
    """

    value: float
    stderr: float
    low: float = math.nan
    high: float = math.nan
    reading: str = "gauss"

    def __iter__(self) -> Iterator[float]:
        yield self.value
        yield self.stderr


def with_noise(value: float, stderr: float, half: float, noise: float, reading: str) -> Estimate:
    """Put a bar around a value: of chance, and of the error of the products beside it.

    Args:
        value: The estimate.
        stderr: Its standard error by chance.
        half: Half-width of its 95 % bar by chance.
        noise: Standard error that the products bring.
        reading: How it was made.
    """
    wide = math.hypot(half, 2.0 * noise)
    return Estimate(value, math.hypot(stderr, noise), value - wide, value + wide, reading)


def skewed(estimate: Estimate) -> Estimate:
    """Lengthen the upper half of the bar of a mean of squares: few of them have missed what is rare and large.

    Squared lengths are about as skewed as lognormal variables, whose bar is symmetric in the logarithm.
    """
    value, stderr, low, high = *estimate, estimate.low, estimate.high
    if not 0.0 < value < math.inf:
        return estimate
    return Estimate(value, stderr, low, value * math.exp(min((high - value) / value, _MOST_LOG)), estimate.reading)


def relative(error: float, value: float) -> float:
    """Return an error as a share of a value: 0 where there is none, infinite for a value of zero."""
    if error == 0.0:
        return 0.0
    return error / abs(value) if value else math.inf


@dataclass(frozen=True, eq=False)
class Band:
    """A function estimated at points, with its 95 % bar at each of them; all arrays are float64 of shape (points,).

    Attributes:
        points: Where.
        value: The estimates.
        low: Lower ends of the bars.
        high: Upper ends of the bars.
        reading: By which reading of the Lanczos coefficients it was made.
    """

    points: FloatArray
    value: FloatArray
    low: FloatArray
    high: FloatArray
    reading: str


@dataclass(frozen=True, eq=False)
class MatrixEstimate:
    """Numbers between all pairs of blocks, with their 95 % bars; float64 of shape (blocks, blocks).

    Attributes:
        value: The estimates, symmetric with a zero diagonal.
        low: Lower ends of the bars.
        high: Upper ends of the bars.
        reading: By which reading of the Lanczos coefficients they were made.
    """

    value: FloatArray
    low: FloatArray
    high: FloatArray
    reading: str
