"""Wasserstein-1 distances with bars, against those of known eigenvalues."""

import numpy as np
import pytest
from known_spectra import kinds, spectrum_of
from scipy.stats import wasserstein_distance

from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.wasserstein import distance_from_truth

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
