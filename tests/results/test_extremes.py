"""Outermost eigenvalues and outliers, against known spectra."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from streams import bulk, single_products, streams, with_outliers
from test_moments import spectrum_of

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.spectrum import Spectrum


def holds(estimate, truth):
    return estimate.low <= truth <= estimate.high


def test_every_outlier_lies_in_its_narrow_bar():
    eigenvalues = with_outliers()
    for seed in range(10):
        spectrum = spectrum_of(streams(eigenvalues, 30, probes=2, seed=seed)[0])
        for k in range(1, 7):
            estimate = spectrum.largest(k)
            assert holds(estimate, eigenvalues[-k]) and estimate.high - estimate.low < 1e-4
        for k in range(1, 3):
            estimate = spectrum.smallest(k)
            assert holds(estimate, eigenvalues[k - 1]) and estimate.high - estimate.low < 1e-4
        assert math.isnan(estimate.stderr) and estimate.reading == "ritz"


@pytest.mark.parametrize("steps", [5, 8, 12, 25, 40])
def test_bars_of_both_ends_hold_from_few_steps_on(steps):
    held = []
    for seed in range(30):
        for eigenvalues in (with_outliers(300), bulk(300, 1, 1.0), 1.0 / np.arange(1, 301)):
            spectrum = spectrum_of(streams(eigenvalues, steps, seed=seed)[0])
            held.append(holds(spectrum.largest(), eigenvalues.max()))
            held.append(holds(spectrum.smallest(), eigenvalues.min()))
    assert np.mean(held) >= 0.95


def test_the_edge_of_a_bulk_behind_many_outliers_is_not_taken_for_known():
    eigenvalues, held, residual = np.concatenate((bulk(590), np.linspace(3.0, 12.0, 10))), [], []
    for seed in range(30):
        spectrum = spectrum_of(streams(eigenvalues, 20, seed=seed)[0])
        estimate = spectrum.smallest()
        held.append(holds(estimate, eigenvalues.min()))
        residual.append(estimate.value - spectrum.reading.ritz.residuals[0, 0] <= eigenvalues.min())
        assert estimate.high - estimate.low < 0.1 * np.ptp(eigenvalues)
    assert np.mean(residual) < 0.95  # half of the steps went into outliers
    assert np.mean(held) >= 0.95


def test_ranks_that_are_not_known_are_refused_and_the_fix_of_the_message_works():
    spectrum = spectrum_of(streams(with_outliers(), 30)[0])
    with pytest.raises(ConfigurationError, match=r"Only (\d+) of the largest .* k of at most \1") as caught:
        spectrum.largest(25)
    most = int(str(caught.value).split()[1])
    assert most >= 6 and spectrum.largest(most).value > 0.2
    with pytest.raises(ConfigurationError, match="too few for k=2; .* k=1, which has a bar always"):
        spectrum_of(streams(bulk(300), 5)[0]).smallest(2)
    assert spectrum_of(streams(bulk(300), 20)[0]).smallest(1).high < 0.0


def test_the_inner_eigenvalues_of_a_bulk_are_seldom_taken_for_known():
    wrong = 0
    for seed in range(40):
        eigenvalues = np.sort(bulk(300, seed, 1.0))
        spectrum = spectrum_of(streams(eigenvalues, 40, seed=seed)[0])
        for k in (2, 3):
            try:
                wrong += not holds(spectrum.largest(k), eigenvalues[-k])
            except ConfigurationError:
                continue
    assert wrong <= 2


@pytest.mark.parametrize("k", [0, -1, 1.0, True, 301, "1"])
@pytest.mark.parametrize("reading", ["auto", "gauss"])
def test_ranks_that_are_none_are_refused(k, reading):
    with pytest.raises(ConfigurationError, match="k must be an integer from 1 to"):
        spectrum_of(streams(bulk(300), 5)[0]).largest(k, reading)


def test_the_gauss_reading_gives_the_nodes():
    spectrum = spectrum_of(streams(with_outliers(), 15, probes=3)[0])
    smallest, largest = spectrum.extremes()
    assert (spectrum.smallest(reading="gauss").value, spectrum.largest(reading="gauss").value) == (smallest, largest)
    assert spectrum.largest(2, "gauss").value == spectrum.nodes[:, -2].max()
    assert math.isnan(spectrum.largest(reading="gauss").high)


def test_exact_blocks_have_every_eigenvalue():
    eigenvalues = np.array([-2.0, 0.0, 0.0, 1.0, 1.0, 4.0])
    spectrum = Spectrum.exact("block", 6, eigenvalues)
    for k in range(1, 7):
        for estimate, truth in ((spectrum.largest(k), eigenvalues[-k]), (spectrum.smallest(k), eigenvalues[k - 1])):
            assert estimate.reading == "exact" and estimate.value == pytest.approx(truth, abs=1e-12)


def test_noise_widens_the_bar_on_both_sides():
    found, _ = streams(with_outliers(), 30, noise=0.01)
    estimate = spectrum_of(found).largest()
    assert estimate.low <= estimate.value - 0.01 * 11.9 and estimate.high >= estimate.value + 0.01 * 11.9
    assert holds(estimate, 12.0)


def test_outliers_are_counted():
    for seed in range(10):
        estimate = spectrum_of(streams(with_outliers(), 30, seed=seed)[0]).outliers()
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((8.0, 8.0, 8.0))


def test_a_bulk_has_no_outliers():
    for width in (1.0, 1e-9):
        semicircle = width * np.random.default_rng(1).beta(1.5, 1.5, 400)
        for eigenvalues in (bulk(400, 1, width), semicircle, np.full(400, width)):
            estimate = spectrum_of(streams(eigenvalues, 25)[0]).outliers()
            assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_the_number_of_outliers_has_a_bar_where_they_cannot_be_told_apart():
    eigenvalues, held, widths = 1.0 / np.arange(1, 601), [], []
    inside = eigenvalues
    while (outside := abs(inside - inside.mean()) > 6.0 * inside.std()).any():
        inside = inside[~outside]
    for seed in range(30):
        estimate = spectrum_of(streams(eigenvalues, 20, seed=seed)[0]).outliers()
        held.append(holds(estimate, 600 - inside.size))
        widths.append(estimate.high - estimate.low)
    assert np.mean(held) >= 0.9 and np.median(widths) > 2.0


def test_doubted_readings_refuse_ranks():
    eigenvalues = np.sort(np.concatenate((bulk(590), np.full(5, 4.0), [9.0, 6.0, 5.0, 3.0, 2.0])))
    wrong, refused = 0, 0
    for seed in range(10):
        found, vectors = streams(eigenvalues, 18, seed=seed)
        doubtful = spectrum_of(found, single_products(eigenvalues, vectors, 18, 4, seed), 18)
        for spectrum in (spectrum_of(found), doubtful):
            try:
                wrong += spectrum.largest(5).value == pytest.approx(
                    3.0
                )  # behind five copies of 4, of which it sees one
            except ConfigurationError:
                refused += spectrum is doubtful
        assert holds(doubtful.largest(), 9.0)
    assert wrong >= 4 and refused >= 9


@pytest.mark.parametrize("probes", [1, 3])
def test_the_number_of_outliers_has_a_bar_that_follows_a_wrong_border(probes):
    quantiles = (np.arange(500) + 0.5) / 500
    eigenvalues, held = np.exp(1.5 * np.array([NormalDist().inv_cdf(q) for q in quantiles])), []
    inside = eigenvalues
    while (outside := abs(inside - inside.mean()) > 6.0 * inside.std()).any():
        inside = inside[~outside]
    for seed in range(30):
        estimate = spectrum_of(streams(eigenvalues, 30, probes=probes, seed=seed)[0]).outliers()
        held.append(holds(estimate, 500 - inside.size))
    assert np.mean(held) >= 0.9


def test_mass_that_may_lie_beyond_the_border_is_in_the_bar():
    power = np.arange(1.0, 2601.0) ** -1.2
    eigenvalues, held = np.concatenate((power, -0.4 * power[:1400])), []
    inside = eigenvalues
    while (outside := abs(inside - inside.mean()) > 6.0 * inside.std()).any():
        inside = inside[~outside]
    for seed in range(20):
        estimate = spectrum_of(streams(eigenvalues, 30, seed=seed)[0]).outliers()
        held.append(holds(estimate, 4000 - inside.size))
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize(("steps", "probes"), [(20, 1), (30, 3)])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_number_of_outliers_is_open_upwards_where_a_bulk_may_have_tails_of_its_own(mixed, steps, probes):
    eigenvalues = np.arange(1.0, 601.0) ** -3.0 * (np.where(np.arange(600) % 2, -1.0, 1.0) if mixed else 1.0)
    inside, held = eigenvalues, []
    while (outside := abs(inside - inside.mean()) > 6.0 * inside.std()).any():
        inside = inside[~outside]
    for seed in range(10):
        estimate = spectrum_of(streams(eigenvalues, steps, probes=probes, seed=seed)[0]).outliers()
        held.append(holds(estimate, 600 - inside.size))
        assert estimate.high <= 563.0  # of 37 eigenvalues none is that far from their mean
    assert np.mean(held) >= 0.9


def test_the_number_of_outliers_is_known_where_a_krylov_space_ends_with_one_value_in_the_bulk():
    eigenvalues = np.concatenate((np.zeros(395), np.geomspace(1.0, 9.0, 5)))
    for seed in range(5):
        estimate = spectrum_of(streams(eigenvalues, 12, seed=seed)[0]).outliers()
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((5.0, 5.0, 5.0))


def test_two_steps_do_not_tell_that_there_are_no_outliers():
    estimate = spectrum_of(streams(with_outliers(), 2)[0]).outliers()
    assert holds(estimate, 8)


def test_outliers_of_a_stream_with_a_few_nodes_in_its_bulk_have_a_bar_of_their_own_size():
    rng = np.random.default_rng(0)
    eigenvalues = np.concatenate((1e-3 * rng.standard_normal(1940), rng.exponential(1.0, 60)))
    for seed in range(6):
        assert spectrum_of(streams(eigenvalues, 40, seed=seed)[0]).outliers().high < 200.0
