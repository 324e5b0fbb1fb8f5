"""Distances between spectra, against other computations of the same quantity."""

import math

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from hvp_engine.results import distances, smoothing
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum


def spectrum_of(name, eigenvalues, probes=4, seed=0):
    nodes = np.tile(np.sort(np.asarray(eigenvalues, dtype=np.float64)), (probes, 1))
    weights = np.random.default_rng(seed).dirichlet(np.ones(nodes.shape[1]), probes)
    steps = np.full(probes, nodes.shape[1])
    return Spectrum(name, nodes.shape[1], 0 * nodes, 0 * nodes[:, 1:], nodes, weights, steps)


def three(scale=1.0):
    rng = np.random.default_rng(7)
    sets = rng.normal(size=40), np.append(rng.normal(size=30) * 0.2, 5.0), rng.uniform(2, 3, 20)
    return Spectra([spectrum_of(f"b{i}", scale * values, seed=i) for i, values in enumerate(sets)])


def test_js_distance_is_that_of_the_default_densities():
    spectra = three()
    a, b = spectra["b0"], spectra["b1"]
    grid = np.linspace(-8, 8, 300_001)
    p, q = (s.density(grid, s.default_sigma, reading="gauss")[1] * smoothing.cell_widths(grid) for s in (a, b))

    def entropy(x):
        return -float((x[x > 0] * np.log2(x[x > 0])).sum())

    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert spectra.js_distance(reading="gauss")[0, 1] == pytest.approx(expected, abs=1e-3)


def test_js_distance_is_symmetric_bounded_and_free_of_scale():
    matrix = three().js_distance(reading="gauss")
    assert (matrix == matrix.T).all()
    assert not matrix.diagonal().any()
    assert ((matrix >= 0) & (matrix <= 1)).all()
    np.testing.assert_allclose(three(1e-9).js_distance(reading="gauss"), matrix, atol=1e-10)
    np.testing.assert_allclose(three(1e9).js_distance(reading="gauss"), matrix, atol=1e-10)


def test_js_distance_of_equal_and_of_disjoint_spectra():
    spectra = Spectra([spectrum_of(name, values) for name, values in (("a", [1, 2]), ("b", [1, 2]), ("c", [8, 9]))])
    np.testing.assert_allclose(spectra.js_distance(reading="gauss"), [[0, 0, 1], [0, 0, 1], [1, 1, 0]], atol=1e-12)
    assert spectra.js0("gauss") == pytest.approx(2 / 3)
    np.testing.assert_allclose(spectra.mean_js_distance("gauss"), [0.5, 0.5, 1.0], atol=1e-12)


def test_blocks_that_differ_in_scale_alone_are_far_apart():
    values = np.random.default_rng(0).normal(size=50)
    spectra = Spectra([spectrum_of(f"{k}", 10.0**k * values) for k in range(4)])
    matrix = spectra.js_distance(reading="gauss")
    assert matrix[0, 1] > 0.3
    assert matrix[0, 1] < matrix[0, 2] < matrix[0, 3] <= 1.0


def test_a_single_block_has_no_mean_distance():
    spectra = Spectra([spectrum_of("a", [1, 2])])
    for reading in ("auto", "gauss"):
        assert math.isnan(spectra.js0(reading))
        assert np.isnan(spectra.mean_js_distance(reading)).all()


def test_legacy_js_is_the_grid_sum_of_the_published_recipe():
    spectra = Spectra([spectrum_of("a", [0.0, 0.3, 1.0]), spectrum_of("b", [0.1, 0.3, 2.0], seed=1)])
    sigma2 = 1e-5
    grid = np.linspace(-1.0, 3.0, 50_000)
    densities = []
    for s in spectra.values():
        weights = s.weights.mean(axis=0)
        values = (weights * np.exp(-((grid[:, None] - s.nodes[0]) ** 2) / (2 * sigma2))).sum(axis=1)
        densities.append(values / (values.sum() * (grid[1] - grid[0])))
    p, q = densities
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(x > 0, x * np.log(2 * x / (p + q)), 0.0) for x in (p, q)]
    expected = 0.5 * float(terms[0].sum() + terms[1].sum())
    assert spectra.js_distance(legacy=True)[0, 1] == pytest.approx(expected, rel=1e-9)
    assert expected > 100


def test_legacy_js_is_nan_where_its_grid_misses_a_block():
    spectra = Spectra([spectrum_of("a", [0.0, 1e6]), spectrum_of("b", [33.3, 33.4])])
    assert math.isnan(spectra.js_distance(legacy=True)[0, 1])


def test_wasserstein_matches_scipy():
    spectra = three(1e-3)
    blocks = list(spectra.values())
    matrix = spectra.wasserstein("gauss")
    for i, a in enumerate(blocks):
        for j, b in enumerate(blocks):
            expected = wasserstein_distance(a.nodes.ravel(), b.nodes.ravel(), a.weights.ravel(), b.weights.ravel())
            assert matrix[i, j] == pytest.approx(expected, rel=1e-10, abs=1e-15)


def test_wasserstein_of_shifted_spectra_is_the_shift():
    matrix = distances.wasserstein([spectrum_of("a", [1, 2, 4]), spectrum_of("b", [4, 5, 7])])
    assert matrix[0, 1] == pytest.approx(3.0)
