"""How far an estimate of a spectrum is from the truth: four numbers, each by the reading that is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from hvp_engine.results import smoothing
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.reading import Reading
from hvp_engine.results.smooth_cdf import SmoothCdf, smooth_cdf

from .truth import Atoms, Truth

Array = NDArray[np.float64]
SIGMAS = (0.01, 0.003)  # of the range
SCORES = ("w1", "js", *(f"density {sigma}" for sigma in SIGMAS), "trace")
_POINTS = 1_000
_FLOOR = 0.1  # eigenvalues: a density below that of a tenth of one is none


class Estimated:
    """What one way of reading says of a block, each computed when it is first asked for.

    Attributes:
        reading: The block's readings.
    """

    def __init__(self, found: Coefficients, *, gauss: bool) -> None:
        """Take coefficients.

        Args:
            found: What the streams found.
            gauss: Read as ever: Gauss nodes, the mean over probes; else every quantity by the reading that the package
                takes for it.
        """
        self.reading, self._gauss = Reading(found), gauss

    @cached_property
    def atoms(self) -> Atoms:
        """Weighted eigenvalues, for shapes."""
        rule = self.reading.gauss if self._gauss else self.reading.averaged
        return Atoms(rule.nodes, rule.weights)

    @cached_property
    def cdf(self) -> SmoothCdf:
        """The distribution function."""
        if not self._gauss:
            return self.reading.smooth
        order = np.argsort(self.atoms.nodes, kind="stable")
        return smooth_cdf(self.atoms.nodes[order], self.atoms.weights[order], np.ones(order.size, dtype=np.bool_))

    @cached_property
    def mean(self) -> float:
        """Mean eigenvalue."""
        rule = self.reading.gauss if self._gauss else self.reading.variance_reduced
        return float(rule.weights @ rule.nodes)


gauss = partial(Estimated, gauss=True)
ours = partial(Estimated, gauss=False)


class Judge:
    """The errors of estimates of a network's blocks; what is the same for all of them is computed once."""

    def __init__(self, truths: Mapping[str, Truth]) -> None:
        """Take the truth of every block."""
        self.truths = truths
        self._distributions = {name: _distribution(truth.atoms) for name, truth in truths.items()}
        self._divergences = {
            (a, b): _divergence(self._distributions[a], self._distributions[b])
            for a in truths
            for b in truths
            if a != b
        }
        self._densities = {
            (name, sigma): _density(truth, truth.atoms, sigma) for name, truth in truths.items() for sigma in SIGMAS
        }

    def errors(self, name: str, found: Estimated, scores: Sequence[str] = SCORES) -> dict[str, float]:
        """Return one block's errors by score.

        `w1` is the Wasserstein-1 distance in standard deviations of the eigenvalues, `js` the mean error of the
        Jensen-Shannon divergences between this estimate and the other blocks' truth, `density` the mean absolute
        log10 ratio of densities over the range, `trace` relative to the Frobenius norm.
        """
        return {score: self._error(name, found, score) for score in scores}

    def _error(self, name: str, found: Estimated, score: str) -> float:
        truth = self.truths[name]
        if score == "w1":
            return found.cdf.distance(truth.cdf) / truth.deviation
        if score == "trace":
            return truth.numel * abs(found.mean - truth.mean) / truth.frobenius
        if score == "js":
            own = _distribution(found.atoms)
            others = [b for b in self.truths if b != name]
            js = [abs(_divergence(own, self._distributions[b]) - self._divergences[name, b]) for b in others]
            return float(np.mean(js))
        sigma = float(score.removeprefix("density "))
        return float(np.abs(np.log10(_density(truth, found.atoms, sigma) / self._densities[name, sigma])).mean())

    def js0(self, found: Mapping[str, Estimated]) -> float:
        """Return the error of the mean divergence over all pairs of blocks."""
        own = {name: _distribution(estimated.atoms) for name, estimated in found.items()}
        pairs = [(a, b) for a, b in self._divergences if a < b]
        return abs(float(np.mean([_divergence(own[a], own[b]) - self._divergences[a, b] for a, b in pairs])))


Reader = Callable[[Coefficients], Estimated]


def _density(truth: Truth, atoms: Atoms, share: float) -> Array:
    """Smooth atoms over the true range, with a floor."""
    low, high = truth.range
    sigma = share * (high - low)
    grid = np.linspace(low, high, _POINTS)
    masses = smoothing.cell_masses(atoms.nodes[None], atoms.weights[None], grid, sigma)[0]
    return masses / smoothing.cell_widths(grid) + _FLOOR / (truth.numel * math.sqrt(2.0 * math.pi) * sigma)


def _distribution(atoms: Atoms) -> tuple[Array, Array]:
    """Compute cell edges and the smoothed mass below them, as the package's divergences do."""
    low, high = float(atoms.nodes.min()), float(atoms.nodes.max())
    sigma = smoothing.smoothing_sigma(low, high)
    grid = smoothing.smoothing_grid(low, high, sigma)
    masses = smoothing.cell_masses(atoms.nodes[None], atoms.weights[None], grid, sigma)[0]
    edges = np.concatenate((grid[:1], grid[:-1] + 0.5 * np.diff(grid), grid[-1:]))
    below = np.concatenate(([0.0], np.cumsum(masses)))
    return edges, below / below[-1]


def _divergence(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Compute the Jensen-Shannon divergence, base 2, as the package does."""
    edges = np.union1d(a[0], b[0])
    p, q = (np.diff(np.interp(edges, own, below, left=0.0, right=1.0)) for own, below in (a, b))
    mean = 0.5 * (p + q)
    total = 0.0
    for mass in (p, q):
        ratio = np.divide(mass, mean, out=np.ones_like(mean), where=mass > 0.0)
        total += float(mass @ np.log2(ratio))
    return 0.5 * total
