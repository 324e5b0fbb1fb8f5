"""Spectra of whole models, in units of their own tenth largest eigenvalue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.distance import jensenshannon

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import cache
from hvp_engine.experiments.heterogeneity import FloatArray
from hvp_engine.experiments.registry import Setting
from hvp_engine.results.spectrum import Spectrum

RANK = 10
SIGMA = 0.03  # of the smoothing, the same for all models, in units of the tenth largest eigenvalue
SPACING = 0.001
STEPS = {"tiny": (24, 1), "small": (40, 4), "paper": (100, 10)}  # and probes; a density needs more than a distance


@dataclass(frozen=True)
class Whole:
    """The spectrum of all parameters of a model together.

    Attributes:
        spectrum: It.
    """

    spectrum: Spectrum

    @cached_property
    def unit(self) -> float:
        """Median over probes of the tenth largest Ritz value.

        Raises:
            ConfigurationError: There are too few steps for one, or it is not positive.
        """
        rows = zip(self.spectrum.nodes, self.spectrum.steps, strict=True)
        ranked = [float(np.sort(nodes[:steps])[-RANK]) for nodes, steps in rows if steps >= RANK]
        middle = float(np.median(ranked)) if ranked else 0.0
        if middle <= 0.0:
            raise ConfigurationError(
                f"The tenth largest eigenvalue of {self.spectrum.name} is not known to be positive, and is the unit "
                "of its figure; more Lanczos steps find it."
            )
        return middle

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue, in the unit."""
        low, high = self.spectrum.extremes()
        return low / self.unit, high / self.unit

    def density(self, grid: FloatArray) -> FloatArray:
        """Smooth the quadratures of all probes over a grid in the unit, with Gaussians of :data:`SIGMA`, (points,)."""
        _, density = self.spectrum.density(grid * self.unit, SIGMA * self.unit, reading="gauss")
        return density * self.unit


def steps_and_probes(setting: Setting) -> tuple[int, int]:
    """Return Lanczos steps and probes of a density: those of the size, or what ``--set m=`` and ``probes=`` say."""
    steps, probes = STEPS[setting.size]
    return setting.option("m", steps), setting.option("probes", probes)


def whole(setting: Setting, model: str, stage: str, seed: int) -> Whole:
    """Compute the spectrum of a model of the zoo at a stage of its training, or read it."""
    steps, probes = steps_and_probes(setting)
    found = cache.spectra(setting, model, stage, seed, blocks={"full": ["*"]}, steps=steps, probes=probes, label="full")
    return Whole(found["full"])


def common_grid(wholes: list[Whole]) -> FloatArray:
    """Make a grid of :data:`SPACING` over the spectra of several models and the tails of their Gaussians."""
    low = min(one.ends[0] for one in wholes) - 8.0 * SIGMA
    high = max(one.ends[1] for one in wholes) + 8.0 * SIGMA
    return np.arange(low, high + SPACING, SPACING)


def furthest(wholes: list[Whole]) -> float:
    """Return the largest Jensen-Shannon divergence between any two of the spectra, base 2, in [0, 1]."""
    grid = common_grid(wholes)
    densities = [one.density(grid) for one in wholes]
    return max(
        float(jensenshannon(one, other, base=2) ** 2)
        for place, one in enumerate(densities)
        for other in densities[:place]
    )
