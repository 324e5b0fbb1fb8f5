"""Densities and distribution functions with bars at every point, against known eigenvalues."""

import numpy as np
import pytest
from known_spectra import kinds, spectrum_of

from hvp_engine.errors import ConfigurationError
from hvp_engine.results import smoothing
from hvp_engine.results.spectrum import Spectrum

KINDS = kinds(500)


def true_density(values, points, sigma):
    masses = smoothing.cell_masses(values[None], np.full((1, values.size), 1 / values.size), points, sigma)[0]
    return masses / smoothing.cell_widths(points)


def trapezoid(values, grid):
    return float((0.5 * (values[1:] + values[:-1]) * np.diff(grid)).sum())


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize(("steps", "probes"), [(25, 1), (60, 1), (40, 3)])
def test_band_holds_the_density_where_there_is_one(name, steps, probes):
    held = []
    for seed in range(3):
        spectrum = spectrum_of(name, KINDS[name], steps, probes, seed)
        band = spectrum.density_band()
        truth = true_density(KINDS[name], band.points, spectrum.default_sigma)
        single = 1.0 / (np.sqrt(2.0 * np.pi) * spectrum.default_sigma * KINDS[name].size)
        seen = np.maximum(truth, band.value) > 0.1 * single
        slack = 1e-3 * single
        held.append(((band.low - slack <= truth) & (truth <= band.high + slack))[seen].mean())
        assert (band.low <= band.value).all()
        assert (band.value <= band.high).all()
    assert np.mean(held) >= 0.88


def test_band_narrows_with_probes_and_with_eigenvalues():
    def width(spectrum):
        band = spectrum.density_band(sigma=0.1)
        top = band.value > 0.5 * band.value.max()
        return np.log10(band.high[top] / band.low[top]).mean()

    one, many = (width(spectrum_of("a", KINDS["bulk"], 90, probes)) for probes in (1, 6))
    large = width(spectrum_of("a", kinds(4000)["bulk"], 90))
    assert many < 0.8 * one
    assert large < 0.7 * one


def test_density_is_the_middle_of_its_band_and_integrates_to_one():
    spectrum = spectrum_of("a", KINDS["bulk"], 30)
    points, density = spectrum.density()
    band = spectrum.density_band()
    np.testing.assert_array_equal(points, band.points)
    np.testing.assert_array_equal(density, band.value)
    assert trapezoid(density, points) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("grid", [np.linspace(-4, 4, 33), np.linspace(-0.01, 0.01, 400), np.array([-1.0, 0.0, 5.0])])
def test_bands_on_any_grid_keep_the_mass(grid):
    spectrum = spectrum_of("a", KINDS["bulk"], 30)
    band = spectrum.density_band(grid, sigma=0.05)
    np.testing.assert_array_equal(band.points, grid)
    assert trapezoid(band.value, grid) == pytest.approx(1.0, abs=1e-9)
    assert np.isfinite(band.low).all()
    assert np.isfinite(band.high).all()


def test_gauss_reading_is_the_mean_over_probes():
    spectrum = spectrum_of("a", KINDS["bulk"], 12, 3)
    points, densities = spectrum.probe_densities()
    again, density = spectrum.density(reading="gauss")
    assert (points == again).all()
    assert (density == densities.mean(axis=0)).all()


def test_few_steps_have_the_shape_of_a_bulk_and_no_spikes():
    spectrum = spectrum_of("a", KINDS["bulk"], 12)
    points, density = spectrum.density(sigma=0.05)
    _, spikes = spectrum.density(points, 0.05, reading="gauss")
    truth = true_density(KINDS["bulk"], points, 0.05)
    widths = smoothing.cell_widths(points)
    assert (abs(density - truth) * widths).sum() < 0.4 * (abs(spikes - truth) * widths).sum()


def test_exact_blocks_have_no_band():
    spectrum = Spectrum.exact("a", 5, [0.0, 1.0, 2.0, 2.0, 7.0])
    band = spectrum.density_band()
    assert band.reading == "exact"
    assert (band.low == band.value).all()
    cdf = spectrum.cdf([-1.0, 0.1, 1.5, 2.1, 7.1])
    np.testing.assert_allclose(cdf.value, [0.0, 0.2, 0.4, 0.8, 1.0], atol=1e-12)
    assert (cdf.low == cdf.high).all()


def test_one_step_gives_no_band():
    band = spectrum_of("a", KINDS["bulk"], 1).density_band()
    assert np.isnan(band.low).all()
    assert np.isnan(band.high).all()


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize(("steps", "probes"), [(5, 1), (20, 1), (60, 2)])
def test_cdf_bars_hold_for_any_number_of_steps(name, steps, probes):
    values = np.sort(KINDS[name])
    points = np.quantile(values, np.linspace(0.01, 0.99, 60)) + 1e-9
    truth = np.searchsorted(values, points, side="right") / values.size
    held = []
    for seed in range(4):
        band = spectrum_of(name, values, steps, probes, seed).cdf(points)
        held.append(((band.low <= truth) & (truth <= band.high)).mean())
        assert (band.low <= band.value).all()
        assert (band.value <= band.high).all()
    assert np.mean(held) >= 0.95


def test_cdf_bars_tell_more_with_more_steps():
    few, many = (spectrum_of("a", KINDS["bulk"], steps).cdf(np.linspace(-2, 2, 50)) for steps in (8, 60))
    assert (many.high - many.low).mean() < 0.7 * (few.high - few.low).mean()


def test_noise_of_products_widens_the_bars_of_a_cdf():
    spectrum = spectrum_of("a", KINDS["outliers"], 40)
    noisy = Spectrum.from_tridiagonal(
        "a", spectrum.numel, spectrum.alphas, spectrum.betas, spectrum.steps, residuals=spectrum.residuals, noise=0.05
    )
    points = np.linspace(-0.1, 3.2, 200)
    plain, wide = spectrum.cdf(points), noisy.cdf(points)
    assert (wide.high - wide.low).mean() > 1.2 * (plain.high - plain.low).mean()


@pytest.mark.parametrize("points", [3.0, [[1.0]], [np.nan]])
def test_points_that_are_no_vector_of_numbers_are_refused(points):
    with pytest.raises(ConfigurationError, match="points must be a vector of finite numbers"):
        spectrum_of("a", KINDS["bulk"], 5).cdf(points)
