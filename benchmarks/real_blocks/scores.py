"""How far an estimate of a spectrum is from the truth: a few numbers, each by the reading that is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hvp_engine.results import smoothing
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.divergences import divergences
from hvp_engine.results.reading import Reading
from hvp_engine.results.resampling import RESAMPLINGS
from hvp_engine.results.smooth_cdf import SmoothCdf, smooth_cdf
from hvp_engine.results.smoothed import Smoothed, Smoother

from .truth import Truth

Array = NDArray[np.float64]
SIGMAS = (0.01, 0.003)  # of the range
SCORES = ("w1", "js", *(f"density {sigma}" for sigma in SIGMAS), "trace")
_POINTS = 1_000
_FLOOR = 0.1  # eigenvalues: a density below that of a tenth of one is none


class Comparable(Protocol):
    """What divergences take."""

    @property
    def default(self) -> Smoothed:
        """The block on its own grid."""

    @property
    def unknown(self) -> bool:
        """Whether nothing is known of how much more steps would change."""


@dataclass(frozen=True)
class Known:
    """A block whose smoothed density is known.

    Attributes:
        default: Its density.
        unknown: Whether nothing is known of how much more steps would change.
    """

    default: Smoothed
    unknown: bool = False


class Gauss:
    """A block read as ever: Gauss nodes, the mean over probes."""

    def __init__(self, name: str, found: Coefficients) -> None:
        """Take a block's name and what its streams found."""
        rule = Reading(found).gauss
        order = np.argsort(rule.nodes, kind="stable")
        self._nodes, self._weights = rule.nodes[order], rule.weights[order]
        self.mean = float(self._weights @ self._nodes)

    @cached_property
    def cdf(self) -> SmoothCdf:
        """The distribution function."""
        return smooth_cdf(self._nodes, self._weights, np.ones(self._nodes.size, dtype=np.bool_))

    @cached_property
    def block(self) -> Comparable:
        """The block as divergences compare it: the quadrature smoothed, with nothing taken off."""
        sigma = smoothing.smoothing_sigma(float(self._nodes[0]), float(self._nodes[-1]))
        grid = smoothing.smoothing_grid(float(self._nodes[0]), float(self._nodes[-1]), sigma)
        masses = self.masses(grid, sigma)
        return Known(Smoothed(grid, sigma, masses, np.tile(masses, (RESAMPLINGS, 1)), np.tile(masses, (2, 1)), 0.0))

    def masses(self, grid: Array, sigma: float) -> Array:
        """Smooth into the cells of a grid."""
        return smoothing.shared_masses(self._nodes, self._weights[None], grid, sigma)[0]


class Ours:
    """A block of which every quantity is read by the reading that the package takes for it."""

    def __init__(self, name: str, found: Coefficients) -> None:
        """Take a block's name and what its streams found."""
        self._name, self._reading = name, Reading(found)

    @cached_property
    def mean(self) -> float:
        """Mean eigenvalue, without single products."""
        rule = self._reading.variance_reduced
        return float(rule.weights @ rule.nodes)

    @property
    def cdf(self) -> SmoothCdf:
        """The distribution function."""
        return self._reading.smooth

    @cached_property
    def block(self) -> Smoother:
        """The block as divergences compare it."""
        return Smoother(self._reading, self._name)

    def masses(self, grid: Array, sigma: float) -> Array:
        """Smooth into the cells of a grid."""
        return self.block.on(grid, sigma).masses


Estimated = Gauss | Ours
Reader = type[Gauss] | type[Ours]


class Judge:
    """The errors of estimates of a network's blocks; what is the same for all of them is computed once."""

    def __init__(self, truths: Mapping[str, Truth]) -> None:
        """Take the truth of every block."""
        self.truths = truths
        self._names = list(truths)
        self._divergences = _values(truths.values())
        self._densities = {
            (name, sigma): _density(truth, truth.masses, sigma) for name, truth in truths.items() for sigma in SIGMAS
        }

    def errors(self, name: str, found: Estimated, scores: Sequence[str] = SCORES) -> dict[str, float]:
        """Return one block's errors by score.

        `w1` is the Wasserstein-1 distance in standard deviations of the eigenvalues, `js` the mean error of the
        Jensen-Shannon divergences between this estimate and the other blocks' truth, `density` the mean absolute
        log10 ratio of densities over the range, `trace` relative to the Frobenius norm.
        """
        return {score: self._error(name, found, score) for score in scores}

    def js0(self, found: Mapping[str, Estimated]) -> float:
        """Return the error of the mean divergence over all pairs of blocks."""
        values = _values(found[name].block for name in self._names)
        return abs(float((values - self._divergences)[np.triu_indices(len(values), 1)].mean()))

    def _error(self, name: str, found: Estimated, score: str) -> float:
        truth = self.truths[name]
        if score == "w1":
            return found.cdf.distance(truth.cdf) / truth.deviation
        if score == "trace":
            return truth.numel * abs(found.mean - truth.mean) / truth.frobenius
        if score == "js":
            place = self._names.index(name)
            others = [other for other in self._names if other != name]
            values = _values([found.block, *(self.truths[other] for other in others)])[0, 1:]
            return float(np.abs(values - np.delete(self._divergences[place], place)).mean())
        sigma = float(score.removeprefix("density "))
        return float(np.abs(np.log10(_density(truth, found.masses, sigma) / self._densities[name, sigma])).mean())


def _values(blocks: Iterable[Comparable]) -> Array:
    """Compute the divergences of all pairs as the package does; it asks for no more than is `Comparable`."""
    return divergences(cast("list[Smoother]", list(blocks))).entries().value


def _density(truth: Truth, masses: Callable[[Array, float], Array], share: float) -> Array:
    """Smooth over the true range, with a floor."""
    low, high = truth.range
    sigma = share * (high - low)
    grid = np.linspace(low, high, _POINTS)
    return masses(grid, sigma) / smoothing.cell_widths(grid) + _FLOOR / (truth.numel * math.sqrt(2.0 * math.pi) * sigma)
