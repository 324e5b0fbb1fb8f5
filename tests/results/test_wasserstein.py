"""Wasserstein-1 distances with bars, against those of known eigenvalues."""

import numpy as np
import pytest
from known_spectra import kinds, spectrum_of
from scipy.stats import wasserstein_distance

from hvp_engine.results.reading import Reading
from hvp_engine.results.smooth_cdf import smooth_cdf
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.wasserstein import distance_from_truth, left_to_change

KINDS = kinds(500)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize(("steps", "probes"), [(20, 1), (50, 2)])
def test_a_block_is_no_further_from_its_eigenvalues_than_it_says(name, steps, probes):
    exact = Spectrum.exact(name, KINDS[name].size, KINDS[name]).reading
    held = []
    for seed in range(5):
        reading = spectrum_of(name, KINDS[name], steps, probes, seed).reading
        held.append(reading.smooth.distance(exact.smooth) <= distance_from_truth(reading) + 1e-9)
    assert np.mean(held) >= 0.8


@pytest.mark.parametrize("steps", [10, 40])
def test_bars_hold_the_distances_between_blocks(steps):
    spectra = Spectra([spectrum_of(name, values, steps, 1, 3) for name, values in KINDS.items()])
    estimate = spectra.wasserstein_estimate()
    truth = np.array([[wasserstein_distance(a, b) for b in KINDS.values()] for a in KINDS.values()])
    pairs = np.triu_indices(len(KINDS), k=1)
    assert ((estimate.low <= truth) & (truth <= estimate.high))[pairs].mean() >= 0.93
    np.testing.assert_array_equal(spectra.wasserstein(), estimate.value)


def test_a_block_against_itself_under_another_seed_is_not_told_from_zero():
    two = Spectra([spectrum_of(f"seed {seed}", KINDS["bulk"], 20, 1, seed) for seed in (1, 2)])
    assert two.wasserstein_estimate().low[0, 1] == 0.0


def test_exact_blocks_have_exact_distances():
    spectra = Spectra([Spectrum.exact("a", 3, [1, 2, 4]), Spectrum.exact("b", 3, [4, 5, 7])])
    estimate = spectra.wasserstein_estimate()
    assert estimate.low[0, 1] == pytest.approx(3.0)
    assert estimate.high[0, 1] == pytest.approx(3.0)


def test_noise_of_products_is_part_of_the_distance():
    plain = spectrum_of("a", KINDS["bulk"], 40)
    noisy = Spectrum.from_tridiagonal(
        "a", plain.numel, plain.alphas, plain.betas, plain.steps, residuals=plain.residuals, noise=0.02
    )
    rms = np.sqrt(np.mean(KINDS["bulk"] ** 2))
    assert distance_from_truth(noisy.reading) - distance_from_truth(plain.reading) > 0.9 * 0.02 * rms


def sparse_tails(width=1e-4, n=3000):
    tail = np.geomspace(1e-3, 1.0, 200)
    return np.sort(np.concatenate((width * np.random.default_rng(2).normal(size=n - 400), tail, -0.4 * tail)))


def truth(values):
    return smooth_cdf(values, np.full(values.size, 1.0 / values.size), np.ones(values.size, dtype=bool))


@pytest.mark.parametrize("steps", [12, 15, 25])
def test_a_block_with_sparse_tails_on_both_sides_says_how_far_it_is_off(steps):
    values = sparse_tails()
    for seed in range(5):
        reading = spectrum_of("tails", values, steps, 1, seed).reading
        assert reading.smooth.distance(truth(values)) <= distance_from_truth(reading)


def test_nothing_changing_for_a_while_is_not_taken_for_an_end():
    values = sparse_tails()
    for seed in range(5):
        found = spectrum_of("tails", values, 15, 1, seed).reading.found
        least = min(left_to_change(Reading(found.truncated(steps))) for steps in range(8, 16))
        assert least >= 0.7 * Reading(found).smooth.distance(truth(values))


def test_the_width_of_a_cluster_is_part_of_what_is_left():
    values = np.sort(np.append(1e-3 * np.random.default_rng(3).normal(size=3000), [-1.0, 1.0]))
    reading = spectrum_of("cluster", values, 3, 1).reading
    width = abs(values[1:-1] - values[1:-1].mean()).mean()  # what chance takes from the two others is no part of it
    assert reading.smooth.distance(truth(values)) > 0.9 * width > 0.7e-3
    assert left_to_change(reading) >= width


def test_a_smooth_spectrum_is_not_paid_for_like_one_with_tails():
    reading = spectrum_of("even", np.linspace(-1.0, 1.0, 4000), 40).reading
    steps = np.diff(reading.gauss.nodes) @ np.full(39, 0.25 / 40)  # how far 40 even steps are from an even slope
    assert left_to_change(reading) < 0.5 * steps
