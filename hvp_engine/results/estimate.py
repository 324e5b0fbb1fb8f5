"""What a Monte-Carlo method gives: a value and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hvp_engine.results.smoothing import FloatArray


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
