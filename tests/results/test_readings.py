"""Ritz values, what is taken for an eigenvalue, and the quadratures that follow."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator
from scipy.stats import wasserstein_distance
from streams import bulk, streams, with_outliers

from hvp_engine.results import smooth_cdf
from hvp_engine.results.jacobi import jacobi_matrix
from hvp_engine.results.reading import Reading
from hvp_engine.results.ritz import averaged_rule, ritz
from hvp_engine.results.sphere import excess


def tridiagonal(found, probe):
    k = found.steps[probe]
    off = found.betas[probe, : k - 1]
    return np.diag(found.alphas[probe, :k]) + np.diag(off, 1) + np.diag(off, -1)


def step_function(eigenvalues):
    values = np.sort(eigenvalues)
    return smooth_cdf.smooth_cdf(values, np.full(values.size, 1.0 / values.size), np.ones(values.size, dtype=bool))


def test_residuals_and_weights_are_those_of_the_eigenvectors():
    found, _ = streams(with_outliers(), 12, probes=3)
    short = replace(found, steps=np.array([12, 7, 1]), residuals=np.array([0.3, 0.2, 0.1]))
    pairs = ritz(short)
    for probe, k in enumerate(short.steps):
        values, vectors = np.linalg.eigh(tridiagonal(short, probe))
        np.testing.assert_allclose(pairs.nodes[probe, :k], values, atol=1e-12)
        np.testing.assert_allclose(pairs.weights[probe, :k], vectors[0] ** 2, atol=1e-12)
        expected = np.maximum(short.residuals[probe] * abs(vectors[-1]), pairs.floor[probe])
        np.testing.assert_allclose(pairs.residuals[probe, :k], expected, atol=1e-8)
        assert not pairs.residuals[probe, k:].any() and not pairs.used[probe, k:].any()


def test_the_residual_bounds_the_distance_to_an_eigenvalue():
    eigenvalues = with_outliers()
    pairs = ritz(streams(eigenvalues, 25)[0])
    distance = np.abs(pairs.nodes[0][:, None] - eigenvalues).min(axis=1)
    assert (distance <= pairs.residuals[0] + 1e-9).all()
    assert pairs.residuals[0].max() > 1e-3


def test_the_averaged_rule_is_exact_for_as_many_moments_as_the_gauss_rule():
    found, _ = streams(bulk(300, width=1.0), 8)
    pairs, (nodes, weights) = ritz(found), averaged_rule(found)
    assert nodes.shape == (1, 15)
    for k in range(2 * 8):
        expected = (pairs.weights * pairs.nodes**k).sum()
        assert (weights * nodes**k).sum() == pytest.approx(expected, rel=1e-9, abs=1e-9), k


def test_exhausted_streams_have_the_same_averaged_and_gauss_rule():
    found, _ = streams(np.repeat([-1.0, 0.0, 2.0], 50), 10)
    assert found.steps[0] == 3 and found.residuals[0] == 0.0
    nodes, weights = averaged_rule(found)
    heavy = weights[0] > 1e-12
    np.testing.assert_allclose(nodes[0][heavy], [-1.0, 0.0, 2.0], atol=1e-12)


def test_outliers_are_accepted_with_one_nth_each_and_the_rest_gets_the_rest():
    eigenvalues = with_outliers()
    reading = Reading(streams(eigenvalues, 30, probes=2)[0])
    for rule in (reading.variance_reduced, reading.averaged):
        assert rule.weights.sum() == pytest.approx(1.0, abs=1e-12)
        assert (rule.weights >= 0.0).all()
        for probe in range(2):
            mine = rule.probe == probe
            outer = mine & (abs(rule.nodes) > 1.0)
            assert rule.accepted[outer].all() and outer.sum() == 8
            np.testing.assert_allclose(
                np.sort(rule.nodes[outer]), np.sort(eigenvalues[abs(eigenvalues) > 1.0]), atol=1e-6
            )
            np.testing.assert_allclose(2 * rule.weights[outer], 1.0 / 600)
            assert rule.free[probe] == 600 - (rule.accepted & mine).sum()
            assert (np.diff(rule.nodes[mine]) >= 0.0).all()


def test_what_lies_between_values_that_are_not_accepted_is_not_accepted():
    reading = Reading(streams(with_outliers(), 30)[0])
    taken = np.flatnonzero(reading.accepted[0])
    free = np.flatnonzero(~reading.accepted[0])
    assert taken.size >= 8 and (np.diff(free) == 1).all()


def test_a_spectrum_without_outliers_reads_as_the_gauss_rule_nearly():
    found, _ = streams(np.concatenate((bulk(500, 1) - 1.0, bulk(500, 2) + 1.0)), 12)
    reading = Reading(found)
    assert not reading.accepted.any()
    np.testing.assert_allclose(reading.variance_reduced.weights, reading.gauss.weights, rtol=1e-12)


def test_readings_are_closer_to_the_spectrum_than_the_gauss_rule():
    errors = []
    for seed in range(12):
        eigenvalues = with_outliers(seed=seed)
        reading = Reading(streams(eigenvalues, 30, seed=seed)[0])
        rules = (reading.gauss, reading.variance_reduced, reading.averaged)
        distances = [wasserstein_distance(rule.nodes, eigenvalues, rule.weights) for rule in rules]
        errors.append([*distances, reading.smooth.distance(step_function(eigenvalues))])
    gauss, reduced, averaged, smooth = np.median(errors, axis=0)
    assert reduced < 0.7 * gauss
    assert averaged < 0.8 * reduced
    assert smooth < averaged


def test_curve_and_stairs_err_to_opposite_sides_of_sparse_tails():
    eigenvalues = np.sort(np.concatenate((np.arange(1, 2601) ** -1.2, -0.4 * np.arange(1, 1401) ** -1.2)))
    errors = []
    for seed in range(5):
        reading = Reading(streams(eigenvalues, 25, seed=seed)[0])
        functions = (reading.stairs, reading.curve, reading.smooth)
        errors.append([function.distance(step_function(eigenvalues)) for function in functions])
        mean = 0.5 * (reading.stairs(eigenvalues) + reading.curve(eigenvalues))
        np.testing.assert_allclose(reading.smooth(eigenvalues), mean, atol=1e-12)
    stairs, curve, smooth = np.median(errors, axis=0)
    assert smooth < 0.9 * min(stairs, curve)


def test_the_curve_of_a_smooth_spectrum_is_left_nearly_as_it_is():
    reading = Reading(streams(np.linspace(-1.0, 1.0, 1500), 40)[0])
    stairs, smooth = (function.distance(reading.curve) for function in (reading.stairs, reading.smooth))
    assert smooth < 0.3 * stairs
    assert smooth == pytest.approx(reading.curve.distance(reading.half.curve), rel=1e-6)


def test_where_nothing_is_left_to_find_the_curve_stands():
    for reading in (Reading(streams(bulk(500, 1), 1)[0]), Reading(streams(np.repeat([-1.0, 0.0, 2.0], 50), 10)[0])):
        assert reading.half is None
        assert reading.smooth is reading.curve


def test_a_probe_of_n_steps_knows_every_eigenvalue():
    eigenvalues = np.array([-1.0, 0.0, 0.0, 0.0, 2.0])
    alphas, betas = jacobi_matrix(eigenvalues)
    found, _ = streams(eigenvalues, 2, probes=2)
    both = replace(
        found,
        alphas=np.stack((np.pad(found.alphas[0], (0, 3)), alphas)),
        betas=np.stack((np.pad(found.betas[0], (0, 3)), betas)),
        steps=np.array([2, 5]),
        residuals=np.array([found.residuals[0], 0.0]),
    )
    reading = Reading(both)
    for rule in (reading.variance_reduced, reading.averaged):
        assert rule.kind == "exact" and rule.free.tolist() == [0]
        np.testing.assert_allclose(rule.nodes, eigenvalues, atol=1e-12)
        np.testing.assert_allclose(rule.weights, 0.2)
    assert reading.smooth.distance(step_function(eigenvalues)) < 1e-12


def test_an_unknown_residual_costs_one_step():
    found, _ = streams(with_outliers(), 20, probes=2)
    unknown = replace(found, residuals=np.full(2, np.nan))
    reading, shorter = Reading(unknown), Reading(found.truncated(19))
    assert (reading.found.steps == 19).all()
    np.testing.assert_allclose(reading.variance_reduced.weights, shorter.variance_reduced.weights, rtol=1e-12)
    assert reading.accepted.any()


def test_one_step_with_an_unknown_residual_tells_nothing():
    found, _ = streams(with_outliers(), 1)
    reading = Reading(replace(found, residuals=np.array([np.nan])))
    assert not reading.accepted.any() and reading.averaged.weights.tolist() == [1.0]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_tiny_blocks_can_be_read(n, steps):
    reading = Reading(streams(np.arange(1.0, n + 1), steps, probes=2)[0])
    for rule in (reading.gauss, reading.variance_reduced, reading.averaged):
        assert rule.weights.sum() == pytest.approx(1.0) and np.isfinite(rule.nodes).all()
    assert reading.exact == (steps >= n)
    assert reading.smooth.above[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("n", [1, 4, 5000])
def test_zero_blocks_are_a_single_atom(n):
    reading = Reading(streams(np.zeros(n), 5, probes=2)[0])
    for rule in (reading.variance_reduced, reading.averaged):
        assert rule.nodes.tolist() == [0.0] * len(rule.nodes)
    assert (reading.smooth.knots, reading.smooth.above) == ([0.0], [1.0])


def test_the_cubic_is_that_of_scipy():
    rng = np.random.default_rng(3)
    nodes, weights = np.sort(rng.standard_cauchy(20)), rng.random(20)
    weights /= weights.sum()
    knots, values = smooth_cdf._spread(nodes, weights)
    ranks = weights.cumsum() - 0.5 * weights
    middle, low, high = np.interp([0.5, 0.25, 0.75], ranks, nodes)
    reference = PchipInterpolator(np.arcsinh((nodes - middle) / (high - low)), ranks)
    np.testing.assert_allclose(values, reference(np.arcsinh((knots - middle) / (high - low))), atol=1e-12)


def test_the_distance_of_two_functions_is_the_integral_of_their_difference():
    reading = Reading(streams(with_outliers(), 15, probes=2)[0])
    other = step_function(with_outliers(seed=3))
    points = np.linspace(-6.0, 13.0, 1_000_001)
    integral = abs(reading.smooth(points) - other(points)).mean() * 19.0
    assert reading.smooth.distance(other) == pytest.approx(integral, rel=1e-4)


def test_the_mass_of_a_rank_deficient_block_stays_at_zero():
    eigenvalues = np.concatenate((np.zeros(900), np.linspace(1.0, 5.0, 15)))
    smooth = Reading(streams(eigenvalues, 40)[0]).smooth
    assert smooth.left(np.array([-1e-6]))[0] < 1e-9
    assert smooth(np.array([1e-6]))[0] == pytest.approx(900 / 915, abs=1e-9)


def test_excess_tells_likely_weights_from_unlikely_ones():
    vectors = np.random.default_rng(0).standard_normal((4000, 100)) ** 2
    mass = vectors[:, :10].sum(axis=1) / vectors.sum(axis=1)
    z = excess(mass, np.full(4000, 10), np.full(4000, 90))
    assert abs(z.mean()) < 0.06 and abs(z.std() - 1.0) < 0.06
    assert (z > 3.0).mean() < 0.005
