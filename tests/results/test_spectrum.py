"""Densities and estimates of one block, against dense matrices and analytic answers."""

import math

import known_spectra
import numpy as np
import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.smoothing import cell_masses
from hvp_engine.results.spectrum import Spectrum


def spectrum_of(eigenvalues, probes=8, seed=0, name="block"):
    """Exact full-length quadratures: weights are squared components of random unit vectors."""
    nodes = np.sort(np.asarray(eigenvalues, dtype=np.float64))
    vectors = np.random.default_rng(seed).standard_normal((probes, nodes.size))
    weights = vectors**2 / (vectors**2).sum(axis=1, keepdims=True)
    zeros = np.zeros((probes, nodes.size))
    steps = np.full(probes, nodes.size)
    return Spectrum(name, nodes.size, zeros, zeros[:, 1:], np.tile(nodes, (probes, 1)), weights, steps)


def lanczos(eigenvalues):
    """Streams that end before they know everything."""
    return known_spectra.spectrum_of("block", eigenvalues, 12, 2)


def trapezoid(values, grid):
    return float((0.5 * (values[1:] + values[:-1]) * np.diff(grid)).sum())


GRIDS = [
    np.array([0.0, 1e-3]),
    np.array([-1e6, 1e6]),
    np.array([500.0, 501.0, 777.0]),
    np.linspace(-3, 3, 7),
    np.linspace(-0.5, 0.5, 10_001),
    np.sort(np.random.default_rng(3).normal(size=400)) * 5,
]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("grid", [None, *GRIDS])
@pytest.mark.parametrize("reading", ["auto", "gauss"])
def test_density_has_mass_one_on_any_grid(grid, scale, reading):
    values = scale * np.random.default_rng(1).normal(size=50)
    spectrum = spectrum_of(values) if reading == "gauss" else lanczos(values)
    points, density = spectrum.density(None if grid is None else grid * scale, reading=reading)
    assert trapezoid(density, points) == pytest.approx(1.0, abs=1e-12)
    assert (density >= 0).all()


@pytest.mark.parametrize("atom", [0.0, 1.0, -3e-9, 7e9])
def test_single_atom_has_a_narrow_density_of_mass_one(atom):
    for spectrum, reading in ((spectrum_of([atom] * 4), "gauss"), (Spectrum.exact("a", 4, [atom] * 4), "auto")):
        points, density = spectrum.density(reading=reading)
        check_single_atom(atom, points, density)


def check_single_atom(atom, points, density):
    assert trapezoid(density, points) == pytest.approx(1.0, abs=1e-12)
    assert points[density.argmax()] == pytest.approx(atom, rel=1e-6, abs=1e-4)


def test_cell_masses_match_the_normal_distribution_function():
    grid = np.array([-1.0, -0.2, 0.3, 2.0])
    masses = cell_masses(np.array([[0.1, 1.0]]), np.array([[0.25, 0.75]]), grid, 0.5)[0]
    edges = [-0.6, 0.05, 1.15]

    def cdf(x):
        return sum(w * 0.5 * math.erfc(-(x - c) / (0.5 * math.sqrt(2))) for c, w in ((0.1, 0.25), (1.0, 0.75)))

    expected = np.diff([0.0, *map(cdf, edges), 1.0])
    np.testing.assert_allclose(masses, expected, atol=1e-15)


@pytest.mark.parametrize("reading", ["auto", "gauss"])
def test_density_stretches_with_the_spectrum(reading):
    eigenvalues = np.random.default_rng(5).normal(size=30)
    make = spectrum_of if reading == "gauss" else lanczos
    grid, density = make(eigenvalues).density(reading=reading)
    wide, flat = make(2.0**20 * eigenvalues).density(reading=reading)
    np.testing.assert_allclose(wide, 2.0**20 * grid, rtol=1e-12, atol=1e-6)
    np.testing.assert_allclose(flat * 2.0**20, density, rtol=1e-9, atol=1e-12)
    assert spectrum_of([0.0, 1.0]).default_sigma == pytest.approx(math.sqrt(1e-5))


def test_trace_moments_and_norm_cover_the_dense_matrix():
    rng = np.random.default_rng(2)
    matrix = rng.normal(size=(200, 200))
    matrix += matrix.T + 10 * np.eye(200)
    spectrum = spectrum_of(np.linalg.eigvalsh(matrix), probes=200)
    for estimate, truth in (
        (spectrum.trace("gauss"), np.trace(matrix)),
        (spectrum.frobenius_norm("gauss"), np.linalg.norm(matrix)),
        (spectrum.moment(3, "gauss"), np.trace(np.linalg.matrix_power(matrix, 3)) / 200),
    ):
        assert 0 < estimate.stderr < 0.2 * abs(truth)
        assert abs(estimate.value - truth) < 3.5 * estimate.stderr
    assert spectrum.moment(0, "gauss").value == pytest.approx(1.0)


def test_standard_errors_match_the_scatter_of_repeated_runs():
    eigenvalues = np.random.default_rng(4).normal(size=60) + 1
    runs = [spectrum_of(eigenvalues, probes=10, seed=seed) for seed in range(300)]
    for method in ("trace", "frobenius_norm"):
        estimates = [getattr(run, method)("gauss") for run in runs]
        scatter = np.std([e.value for e in estimates])
        assert np.mean([e.stderr for e in estimates]) == pytest.approx(scatter, rel=0.15)


def test_a_single_probe_has_no_standard_error_in_the_gauss_reading():
    spectrum = spectrum_of([1.0, 2.0, 4.0], probes=1)
    for estimate in (spectrum.trace("gauss"), spectrum.frobenius_norm("gauss")):
        assert math.isnan(estimate.stderr) and math.isnan(estimate.low) and math.isnan(estimate.high)
    assert spectrum.extremes() == (1.0, 4.0)


def test_from_tridiagonal_gives_eigenvalues_and_squared_first_components():
    rng = np.random.default_rng(0)
    alphas, betas, steps = rng.normal(size=(3, 6)), rng.uniform(0.1, 1, size=(3, 5)), np.array([6, 4, 1])
    spectrum = Spectrum.from_tridiagonal("b", 10, alphas, betas, steps)
    for p, k in enumerate(steps):
        t = np.diag(alphas[p, :k]) + np.diag(betas[p, : k - 1], 1) + np.diag(betas[p, : k - 1], -1)
        values, vectors = np.linalg.eigh(t)
        np.testing.assert_allclose(spectrum.nodes[p, :k], values, atol=1e-12)
        np.testing.assert_allclose(spectrum.weights[p, :k], vectors[0] ** 2, atol=1e-12)
        assert (spectrum.nodes[p, k:] == spectrum.nodes[p, k - 1]).all()
        for padded in (spectrum.weights[p, k:], spectrum.alphas[p, k:], spectrum.betas[p, k - 1 :]):
            assert not padded.any()


def test_arrays_are_read_only_copies():
    spectrum = spectrum_of([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        spectrum.nodes[0, 0] = 5.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": np.zeros(3)}, "alphas must have shape"),
        ({"betas": np.zeros((1, 3))}, "betas must have shape"),
        ({"steps": [4]}, "steps must lie between 1 and 3"),
        ({"steps": [0]}, "steps must lie between 1 and 3"),
        ({"numel": 0}, "numel must be at least 1"),
        ({"name": ""}, "non-empty string"),
        ({"alphas": [[1.0, np.nan, 1.0]]}, "not all alphas are finite"),
    ],
)
def test_bad_coefficients_are_refused(change, message):
    good = {"name": "b", "numel": 3, "alphas": np.ones((1, 3)), "betas": np.ones((1, 2)), "steps": [3]}
    with pytest.raises(ConfigurationError, match=message):
        Spectrum.from_tridiagonal(**{**good, **change})


def test_weights_that_are_no_distribution_are_refused():
    with pytest.raises(ConfigurationError, match="sum to 1"):
        Spectrum("b", 2, np.zeros((1, 2)), np.zeros((1, 1)), [[0.0, 1.0]], [[0.5, 0.6]], [2])


@pytest.mark.parametrize("grid", [[1.0], [[0.0, 1.0]], [0.0, np.nan], [0.0, 0.0], [1.0, 0.0]])
def test_bad_grids_are_refused(grid):
    with pytest.raises(ConfigurationError, match="grid"):
        spectrum_of([1.0, 2.0]).density(grid)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_bad_sigmas_are_refused(sigma):
    with pytest.raises(ConfigurationError, match="sigma must be a positive"):
        spectrum_of([1.0, 2.0]).density(sigma=sigma)


def test_bad_moment_orders_are_refused():
    with pytest.raises(ConfigurationError, match="integer from 0 to 1000"):
        spectrum_of([1.0]).moment(-1)
