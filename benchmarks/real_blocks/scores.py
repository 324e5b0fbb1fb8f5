"""How far an estimate of a spectrum is from the truth: four numbers, each by the reading that is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvp_engine.results import smoothing
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.reading import Quadrature, Reading
from hvp_engine.results.smooth_cdf import SmoothCdf, smooth_cdf

from .truth import Atoms, Truth

Array = NDArray[np.float64]
SIGMAS = (0.01, 0.003)  # of the range
SCORES = ("w1", "js", *(f"density {sigma}" for sigma in SIGMAS), "trace")
_POINTS = 1_000
_FLOOR = 0.1  # eigenvalues: a density below that of a tenth of one is none


@dataclass(frozen=True, eq=False)
class Estimated:
    """What one way of reading says of a block: atoms for shapes, a distribution function, a mean eigenvalue."""

    atoms: Atoms
    cdf: SmoothCdf
    mean: float


def gauss(found: Coefficients) -> Estimated:
    """Read as ever: Gauss nodes, the mean over probes."""
    rule = Reading(found).gauss
    order = np.argsort(rule.nodes, kind="stable")
    nodes, weights = rule.nodes[order], rule.weights[order]
    cdf = smooth_cdf(nodes, weights, np.ones(nodes.size, dtype=np.bool_))
    return Estimated(Atoms(nodes, weights), cdf, float(weights @ nodes))


def ours(found: Coefficients) -> Estimated:
    """Read every quantity by the reading that the package takes for it."""
    reading = Reading(found)
    return Estimated(_atoms(reading.averaged), reading.smooth, _mean(reading.variance_reduced))


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

    def errors(self, name: str, found: Estimated) -> dict[str, float]:
        """Return one block's errors by score.

        `w1` is the Wasserstein-1 distance in standard deviations of the eigenvalues, `js` the mean error of the
        Jensen-Shannon divergences between this estimate and the other blocks' truth, `density` the mean absolute
        log10 ratio of densities over the range, `trace` relative to the Frobenius norm.
        """
        truth = self.truths[name]
        own = _distribution(found.atoms)
        others = [b for b in self.truths if b != name]
        js = [abs(_divergence(own, self._distributions[b]) - self._divergences[name, b]) for b in others]
        errors = {
            "w1": found.cdf.distance(truth.cdf) / truth.deviation,
            "js": float(np.mean(js)) if js else math.nan,
            "trace": truth.numel * abs(found.mean - truth.mean) / truth.frobenius,
        }
        for sigma in SIGMAS:
            ratio = np.log10(_density(truth, found.atoms, sigma) / self._densities[name, sigma])
            errors[f"density {sigma}"] = float(np.abs(ratio).mean())
        return errors

    def js0(self, found: Mapping[str, Estimated]) -> float:
        """Return the error of the mean divergence over all pairs of blocks."""
        own = {name: _distribution(estimated.atoms) for name, estimated in found.items()}
        pairs = [(a, b) for a, b in self._divergences if a < b]
        return abs(float(np.mean([_divergence(own[a], own[b]) - self._divergences[a, b] for a, b in pairs])))


Reader = Callable[[Coefficients], Estimated]


def _atoms(rule: Quadrature) -> Atoms:
    return Atoms(rule.nodes, rule.weights)


def _mean(rule: Quadrature) -> float:
    return float(rule.weights @ rule.nodes)


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
