"""Symmetric matrices whose eigenvalues are known: what the study of error bars runs on.

A sphere probe is a sphere probe in any basis, so a matrix is its eigenvalues. Eigenvalues that are equal count once
with their multiplicity, which makes matrices of a million rows as cheap as their distinct eigenvalues are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix as its spectrum.

    Attributes:
        name: What the tables call it.
        values: Its distinct eigenvalues in ascending order.
        counts: How often each is one.
        chosen_on: Whether the shares and factors of the rule of stopping were chosen on it.
    """

    name: str
    values: Floats
    counts: NDArray[np.int64]
    chosen_on: bool = False

    @property
    def numel(self) -> int:
        """Its number of rows."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean of the eigenvalues."""
        return float(self.counts @ self.values) / self.numel

    @property
    def sd(self) -> float:
        """Standard deviation of the eigenvalues."""
        return float(np.sqrt(self.counts @ (self.values - self.mean) ** 2 / self.numel))

    def cdf(self, points: Floats) -> Floats:
        """Compute the share of the eigenvalues at or below each point."""
        below = np.concatenate(([0], self.counts.cumsum())) / self.numel
        return np.asarray(below[np.searchsorted(self.values, points, side="right")])

    def top(self, k: int) -> Floats:
        """Return the k largest eigenvalues in descending order, with repetitions."""
        return np.repeat(self.values[::-1], np.minimum(self.counts[::-1], k))[:k]


def _times(values: Floats, times: int = 1, singles: Floats | None = None) -> tuple[Floats, NDArray[np.int64]]:
    """Distinct values and their counts, where ``values`` come ``times`` times each and ``singles`` once each."""
    single = np.empty(0) if singles is None else singles
    distinct, place = np.unique(np.concatenate((values, single)), return_inverse=True)
    counts = np.concatenate((np.full(len(values), times), np.ones(len(single), np.int64)))
    return distinct, np.bincount(place, counts).astype(np.int64)


def _quantiles(count: int) -> Floats:
    return np.asarray((np.arange(count) + 0.5) / count)


def _semicircle(count: int) -> Floats:
    angles = np.linspace(0.0, np.pi, 20_001)
    share = (angles - np.sin(2.0 * angles) / 2.0) / np.pi
    return np.asarray(-np.cos(np.interp(_quantiles(count), share, angles)))


def _laplace(count: int) -> Floats:
    q = _quantiles(count) - 0.5
    return np.asarray(-np.sign(q) * np.log1p(-2.0 * np.abs(q)))


def _power(count: int, exponent: float) -> Floats:
    return np.asarray(np.arange(1, count + 1) ** -exponent)


def chosen() -> list[Matrix]:
    """Matrices that constants were chosen on."""
    ten = np.geomspace(4.0, 40.0, 10)
    return [
        Matrix("semicircle, 2k", *_times(_semicircle(2000)), chosen_on=True),
        Matrix("semicircle + 10, 20k", *_times(_semicircle(2000), 10, ten), chosen_on=True),
        Matrix("semicircle + 10, 500k", *_times(_semicircle(2000), 250, ten), chosen_on=True),
        Matrix("laplace + 10, 5k", *_times(_laplace(5000), 1, 10.0 * ten), chosen_on=True),
        Matrix("power -1, 2k", *_times(_power(2000, 1.0)), chosen_on=True),
        Matrix("power -0.5, 50k", *_times(_power(2500, 0.5)[500:], 25, _power(500, 0.5)), chosen_on=True),
        Matrix(
            "two bands, 5k", *_times(np.concatenate((_semicircle(1000), 6.0 + _semicircle(250))), 4), chosen_on=True
        ),
        Matrix("five exact clusters, 2k", *_times(np.repeat([0.0, 1.0, 3.0, 7.0, 20.0], 400)), chosen_on=True),
    ]


def held_out() -> list[Matrix]:
    """Matrices that were looked at after the constants had been chosen."""
    rng = np.random.default_rng(11)
    centres = np.array([-6.0, -2.0, 0.0, 1.0, 5.0])
    wishart = np.linalg.eigvalsh(np.cov(rng.standard_normal((1000, 3000)), ddof=0))
    return [
        Matrix("uniform, 20k", *_times(np.linspace(-1.0, 2.0, 2000), 10)),
        Matrix("wishart + 5, 1k", *_times(wishart, 1, np.array([5.0, 6.0, 8.0, 13.0, 21.0]))),
        Matrix("indefinite power -1.2, 4k", *_times(np.concatenate((_power(2600, 1.2), -0.4 * _power(1400, 1.2))))),
        Matrix("indefinite laplace + 20, 200k", *_times(_laplace(2000), 100, np.geomspace(12, 60, 20) * _signs(20))),
        Matrix("low rank 40, 3k", *_times(np.zeros(2960), 1, rng.standard_normal(40) * 3.0)),
        Matrix("low rank 60 + noise, 20k", *_times(1e-3 * _semicircle(1994), 10, rng.exponential(1.0, 60))),
        Matrix("narrow clusters, 5k", *_times((centres + 0.01 * _semicircle(1000)[:, None]).ravel())),
        Matrix("three repeated outliers, 5k", *_times(_semicircle(4970), 1, np.repeat([4.0, 6.0, 9.0], 10))),
        Matrix("double outliers, 20k", *_times(_semicircle(2000), 10, np.repeat(np.geomspace(3.0, 12.0, 5), 2))),
        Matrix("lognormal, 10k", *_times(np.sort(np.exp(2.0 * _normal(2000))), 5)),
        Matrix("lognormal, single, 500", *_times(np.exp(1.5 * _normal(500)))),
        Matrix("semicircle and laplace + 30, 1M", *_times(_mixture(2000), 500, np.geomspace(15.0, 300.0, 30))),
    ]


def _signs(count: int) -> Floats:
    return np.where(np.arange(count) % 3 == 0, -1.0, 1.0)


def _normal(count: int) -> Floats:
    return np.array([NormalDist().inv_cdf(q) for q in _quantiles(count)])


def _mixture(count: int) -> Floats:
    return np.sort(np.concatenate((_semicircle(count // 2), 2.0 * _laplace(count // 2))))


def every() -> list[Matrix]:
    """All matrices."""
    return chosen() + held_out()
