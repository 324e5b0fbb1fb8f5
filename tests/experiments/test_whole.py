"""Spectra of whole models in their own unit: known eigenvalues, independence of scale, too few steps."""

from __future__ import annotations

import numpy as np
import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.whole import SPACING, Whole, common_grid, furthest
from hvp_engine.results.spectrum import Spectrum

EIGENVALUES = np.concatenate([np.linspace(-3.0, 1.0, 30), np.arange(2.0, 14.0)])  # the tenth largest is 4


def whole(scale: float = 1.0, eigenvalues: np.ndarray = EIGENVALUES) -> Whole:
    return Whole(Spectrum.exact("full", eigenvalues.size, scale * eigenvalues))


def test_the_unit_is_the_tenth_largest_eigenvalue_and_the_ends_are_in_it() -> None:
    assert whole().unit == pytest.approx(4.0)
    assert whole().ends == pytest.approx((-0.75, 13.0 / 4.0))


def test_the_unit_is_the_median_over_probes() -> None:
    nodes = np.array([np.arange(12.0), 10.0 * np.arange(12.0), 2.0 * np.arange(12.0)])
    many = Spectrum("full", 100, nodes, np.zeros((3, 11)), nodes, np.full((3, 12), 1 / 12), np.full(3, 12))
    assert Whole(many).unit == 4.0


def test_a_density_in_the_unit_does_not_depend_on_the_scale_and_integrates_to_one() -> None:
    grid = common_grid([whole()])
    assert np.diff(grid) == pytest.approx(SPACING)
    density = whole().density(grid)
    assert density.sum() * SPACING == pytest.approx(1.0, abs=1e-3)
    assert whole(1e-6).density(grid) == pytest.approx(density, abs=1e-6)


def test_spectra_that_differ_in_scale_only_are_no_distance_apart_and_others_are() -> None:
    assert furthest([whole(), whole(100.0)]) == pytest.approx(0.0, abs=1e-6)
    other = whole(eigenvalues=np.arange(1.0, 43.0))
    apart = furthest([whole(), other])
    assert furthest([whole(), whole(3.0), other]) == pytest.approx(apart, abs=1e-6) and apart > 0.3


def test_a_spectrum_of_too_few_steps_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="more Lanczos steps find it"):
        _ = whole(eigenvalues=np.arange(1.0, 8.0)).unit
    with pytest.raises(ConfigurationError, match="not known to be positive"):
        _ = whole(eigenvalues=np.arange(-20.0, 3.0)).unit
