"""Jensen-Shannon divergences with bars: against those of spectra that are known."""

import math

import numpy as np
import pytest
from known_spectra import kinds, spectrum_of

from hvp_engine.results.divergences import Divergences
from hvp_engine.results.resampling import RESAMPLINGS
from hvp_engine.results.smoothed import Smoother
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum

KINDS = kinds(400)
EXACT = Spectra([Spectrum.exact(name, values.size, values) for name, values in KINDS.items()])
TRUTH = EXACT.js_distance()
PAIRS = np.triu_indices(len(KINDS), k=1)


def sampled(steps, probes, seed):
    return Spectra(
        [spectrum_of(name, values, steps, probes, seed * 100 + i) for i, (name, values) in enumerate(KINDS.items())]
    )


def test_divergences_of_exact_blocks_have_no_width_and_are_those_of_their_eigenvalues():
    js, gauss = EXACT.js_estimate(), EXACT.js_distance(reading="gauss")
    np.testing.assert_allclose(js.low, js.high, atol=1e-12)
    np.testing.assert_allclose(js.value, gauss, atol=2e-3)


@pytest.mark.parametrize(("steps", "probes"), [(10, 1), (20, 1), (30, 2), (60, 1)])
def test_bars_hold_the_divergences_of_the_eigenvalues(steps, probes):
    held, js0 = [], []
    for seed in range(4):
        spectra = sampled(steps, probes, seed)
        js, mean = spectra.js_estimate(), spectra.js0_estimate()
        held.append(((js.low <= TRUTH) & (js.high >= TRUTH))[PAIRS].mean())
        js0.append(mean.low <= TRUTH[PAIRS].mean() <= mean.high)
    assert np.mean(held) >= 0.93
    assert all(js0)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("steps", [10, 30])
def test_a_block_against_itself_under_another_seed_is_not_told_from_zero(name, steps):
    two = Spectra([spectrum_of(f"seed {seed}", KINDS[name], steps, 1, seed) for seed in (1, 2)])
    js = two.js_estimate()
    assert js.low[0, 1] < 0.01
    assert js.value[0, 1] < js.high[0, 1] or js.value[0, 1] < 1e-9


def test_few_steps_cover_what_many_give():
    few, many = sampled(10, 1, 5).js0_estimate(), sampled(90, 2, 6).js0_estimate()
    assert few.low <= many.value <= few.high
    assert few.high - few.low > 2.0 * (many.high - many.low)
    assert abs(few.value - many.value) < 0.05


def test_few_steps_do_not_make_blocks_look_further_apart():
    few = sampled(10, 2, 7)
    assert few.js0(reading="gauss") - TRUTH[PAIRS].mean() > 0.08
    assert abs(few.js0() - TRUTH[PAIRS].mean()) < 0.05


@pytest.mark.parametrize("name", ["clusters", "indefinite", "power", "low rank"])
def test_the_more_probes_there_are_the_less_their_density_is_blurred(name):
    one, ten = (Smoother(spectrum_of(name, KINDS[name], 25, probes, 3).reading, name).share for probes in (1, 10))
    assert 0.0 < ten < 0.8 * one < 0.4


def test_ten_probes_are_not_blurred_by_what_few_steps_leave_open():
    errors = []
    for seed in range(2):
        spectra = sampled(25, 10, seed)
        errors.append(abs(spectra.js_estimate().value - TRUTH)[PAIRS])
    assert np.mean(errors) < 0.010


def test_what_the_parts_of_a_blend_changed_does_not_cancel_in_its_bars():
    rows = np.full((3 + RESAMPLINGS, 2, 2), 0.4)
    rows[-2:] = np.array([0.5, 0.3])[:, None, None]
    found = Divergences(rows, np.zeros(2))
    js, mean = found.entries(), found.mean_of_pairs()
    assert js.high[0, 1] == pytest.approx(0.6)
    assert (mean.low, mean.high) == pytest.approx((0.2, 0.6))


def test_nothing_is_known_after_one_step():
    js = sampled(1, 1, 0).js_estimate()
    assert not js.low[PAIRS].any()
    assert (js.high[PAIRS] == 1.0).all()


def test_the_same_spectra_have_the_same_bits_whatever_is_beside_them():
    spectra = sampled(20, 1, 3)
    turned = Spectra(reversed(list(spectra.values())))
    first, again = spectra.js_estimate(), turned.js_estimate()
    for one, other in ((first.value, again.value), (first.low, again.low), (first.high, again.high)):
        np.testing.assert_array_equal(one, other[::-1, ::-1])
    alone = Spectra([spectra["bulk"], spectra["power"]]).js_distance()[0, 1]
    assert alone == spectra.js_distance()[list(spectra).index("bulk"), list(spectra).index("power")]


def test_errors_of_pairs_that_share_a_block_do_not_cancel_in_their_mean():
    spectra = sampled(60, 1, 2)
    js, js0 = spectra.js_estimate(), spectra.js0_estimate()
    independent = (0.5 * (js.high - js.low)[PAIRS]).mean() / math.sqrt(PAIRS[0].size)
    assert js0.high - js0.value > 1.5 * independent
    assert js0.value == pytest.approx(js.value[PAIRS].mean(), abs=2e-3)


def test_means_to_others_average_the_entries():
    spectra = sampled(30, 1, 1)
    means, js = spectra.mean_js_estimates(), spectra.js_estimate()
    for place, name in enumerate(spectra):
        others = np.delete(js.value[place], place).mean()
        assert means[name].value == pytest.approx(others, abs=2e-3)
        assert means[name].low < means[name].value < means[name].high
    np.testing.assert_array_equal(spectra.mean_js_distance(), [mean.value for mean in means.values()])


def test_blocks_of_zero_curvature_are_named_and_left_out():
    spectra = sampled(20, 1, 0)
    rest = [spectrum_of(f"key.bias {i}", 1e-21 * KINDS["bulk"], 20, 1, i) for i in range(2)]
    every = Spectra([rest[0], *spectra.values(), rest[1]])
    assert every.zero_blocks == ("key.bias 0", "key.bias 1")
    js = every.js_estimate()
    np.testing.assert_array_equal(js.value[1:-1, 1:-1], spectra.js_distance())
    assert np.isnan(js.value[0, 1:]).all()
    assert np.isnan(js.low[-1, :-1]).all()
    assert every.js0_estimate() == spectra.js0_estimate()
    assert math.isnan(every.mean_js_estimates()["key.bias 0"].value)
    assert every.js0(reading="gauss") == Spectra(every.values()).js0(reading="gauss") > every.js0()


@pytest.mark.parametrize(
    ("scale", "precision", "zero"),
    [(1e-10, None, False), (1e-10, "fp64", False), (1e-10, "fp32", True), (1e-10, "bf16", True), (1e-3, "bf16", False)],
)
def test_zero_is_relative_to_the_largest_block_and_to_the_arithmetic(scale, precision, zero):
    for unit in (1.0, 1e-30, 1e30):
        blocks = [spectrum_of(name, unit * size * KINDS["bulk"], 8) for name, size in (("a", 1.0), ("b", scale))]
        spectra = Spectra(blocks, {"config": {"precision": precision}} if precision else None)
        assert spectra.zero_blocks == (("b",) if zero else ())


def test_products_that_are_all_noise_make_a_zero_block():
    block = spectrum_of("a", KINDS["bulk"], 8)
    noisy = Spectrum.from_tridiagonal(
        "b", block.numel, block.alphas, block.betas, block.steps, residuals=block.residuals, noise=0.7
    )
    assert Spectra([block, noisy]).zero_blocks == ("b",)


def test_a_model_without_any_curvature_has_no_js0():
    zeros = [Spectrum.from_tridiagonal(name, 5, [[0.0]], [[]], [1], residuals=[0.0]) for name in "ab"]
    spectra = Spectra(zeros)
    assert spectra.zero_blocks == ("a", "b")
    assert math.isnan(spectra.js0())
