"""Traces of functions, and how often their bars hold."""

import math
from dataclasses import replace

import numpy as np
import pytest
from streams import bulk, single_products, streams, with_outliers

from hvp_engine.errors import ConfigurationError
from hvp_engine.results import moments
from hvp_engine.results.deflation import deflated
from hvp_engine.results.reading import Reading
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.sphere import student

KINDS = {
    "bulk": bulk(300, 1, 1.0),
    "outliers": with_outliers(300),
    "power": 1.0 / np.arange(1, 301),
    "indefinite": np.concatenate((bulk(285), np.linspace(2.0, 9.0, 10), np.linspace(-4.0, -1.5, 5))),
    "bands": np.concatenate((bulk(150, 1) - 1.0, bulk(150, 2) + 1.0)),
    "clusters": np.concatenate((bulk(240, 3, 1e-3), 1.0 + bulk(50, 4, 1e-3), 5.0 + bulk(10, 5, 1e-3))),
}
FUNCTIONS = {1: lambda x: x, 2: lambda x: x**2, 3: lambda x: x**3}


def spectrum_of(found, singles=None, deflated=0):
    return Spectrum.from_tridiagonal(
        "block",
        found.numel,
        found.alphas,
        found.betas,
        found.steps,
        residuals=found.residuals,
        singles=singles,
        deflated=deflated,
        noise=found.noise,
    )


def holds(estimate, truth):
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probes", [1, 3])
def test_bars_of_streams_of_one_step_hold(kind, probes):
    eigenvalues, held = KINDS[kind], []
    for seed in range(100):
        spectrum = spectrum_of(streams(eigenvalues, 1, probes, seed)[0])
        truths = (spectrum.trace(), eigenvalues.sum()), (spectrum.frobenius_norm(), np.linalg.norm(eigenvalues))
        held.append([holds(*truth) for truth in truths])
    assert (np.mean(held, axis=0) >= (0.85, 0.65)).all()  # what one product shows of outliers' squares is chance


def test_one_step_of_which_the_residual_is_unknown_has_no_bar():
    found = replace(streams(bulk(50), 1)[0], residuals=np.array([np.nan]))
    for estimate in (spectrum_of(found).trace(), spectrum_of(found).frobenius_norm()):
        assert math.isfinite(estimate.value) and (estimate.stderr, estimate.high) == (math.inf, math.inf)


def test_a_stream_of_one_step_that_found_everything_has_a_bar_of_rounding():
    trace = spectrum_of(streams(np.full(50, 3.0), 1)[0]).trace()
    assert trace.value == pytest.approx(150.0, rel=1e-12) and trace.stderr < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bars_of_one_probe_hold_with_and_without_single_products(kind):
    eigenvalues, held = KINDS[kind], {}
    for seed in range(60):
        found, vectors = streams(eigenvalues, 25, seed=seed)
        singles = single_products(eigenvalues, vectors, found.steps[0], 4, seed)
        for name, spectrum in (("one", spectrum_of(found)), ("with", spectrum_of(found, singles, int(found.steps[0])))):
            for method, truth in (("trace", eigenvalues.sum()), ("frobenius_norm", np.linalg.norm(eigenvalues))):
                held.setdefault((name, method), []).append(holds(getattr(spectrum, method)(), truth))
            logdet = spectrum.apply(lambda x: np.log1p(x**2))
            held.setdefault((name, "log"), []).append(holds(logdet, np.log1p(eigenvalues**2).sum()))
    for key, values in held.items():
        assert np.mean(values) >= 0.86, key
    assert np.mean(list(held.values())) >= 0.925


def test_bars_are_not_wider_than_they_need_be():
    eigenvalues, errors, widths = KINDS["outliers"], [], []
    for seed in range(60):
        found, vectors = streams(eigenvalues, 25, seed=seed)
        estimate = spectrum_of(found, single_products(eigenvalues, vectors, 25, 4, seed), 25).trace()
        errors.append(estimate.value - eigenvalues.sum())
        widths.append(estimate.high - estimate.low)
    assert np.median(widths) < 5.5 * np.std(errors)


def test_single_products_and_a_second_probe_narrow_the_bar():
    eigenvalues, ratios = KINDS["bulk"], []
    for seed in range(20):
        found, vectors = streams(eigenvalues, 20, probes=2, seed=seed)
        one, two = moments.power_sum(Reading(found.of_probes(1)), 1), moments.power_sum(Reading(found), 1)
        many = Reading(found.of_probes(1), single_products(eigenvalues, vectors, 20, 8, seed), 20)
        ratios.append(
            [(estimate.high - estimate.low) / (one.high - one.low) for estimate in (two, moments.power_sum(many, 1))]
        )
    two, many = np.median(ratios, axis=0)
    assert two == pytest.approx(math.sqrt(0.5), rel=0.1)
    assert many < 0.45


def test_deflated_traces_are_unbiased_whatever_the_stream_saw():
    eigenvalues = np.sort(np.concatenate((bulk(280), np.full(20, 3.0))))
    found, vectors = streams(eigenvalues, 10, seed=3)
    singles = single_products(eigenvalues, vectors, 10, 3000)
    single = deflated(found, singles, 10)
    assert single.trace == pytest.approx(eigenvalues.sum(), rel=0.02)
    assert single.square == pytest.approx((eigenvalues**2).sum(), rel=0.02)
    left = 290
    estimates = left * singles[:, 0]
    assert single.trace_variance * 3000 == pytest.approx(estimates.var(), rel=0.1)


def test_deflated_products_of_a_part_of_the_basis_are_read_with_that_part():
    eigenvalues = with_outliers(300)
    found, vectors = streams(eigenvalues, 20)
    singles = single_products(eigenvalues, vectors[:11], 10, 50)
    single = deflated(found, singles, 10)
    assert single == deflated(found.truncated(10), singles, 10)
    assert single.square == pytest.approx((eigenvalues**2).sum(), rel=0.05)


@pytest.mark.parametrize("n", [1, 2, 3, 30])
def test_exact_blocks_have_exact_estimates(n):
    eigenvalues = np.sort(bulk(n, 2, 1.0))
    spectrum = Spectrum.exact("block", n, eigenvalues)
    for estimate, truth in (
        (spectrum.trace(), eigenvalues.sum()),
        (spectrum.frobenius_norm(), np.linalg.norm(eigenvalues)),
        (spectrum.moment(3), (eigenvalues**3).mean()),
        (spectrum.apply(np.exp), np.exp(eigenvalues).sum()),
    ):
        assert estimate.reading == "exact"
        for value in (estimate.value, estimate.low, estimate.high):
            assert value == pytest.approx(truth, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2])
def test_tiny_blocks_have_finite_bars(n, steps):
    spectrum = spectrum_of(streams(np.arange(1.0, n + 1), steps)[0])
    for estimate in (spectrum.trace(), spectrum.frobenius_norm(), spectrum.moment(4), spectrum.apply(np.exp)):
        assert math.isfinite(estimate.low) and math.isfinite(estimate.high)
        assert estimate.low <= estimate.value <= estimate.high


def test_a_zero_block_has_a_trace_of_zero():
    spectrum = spectrum_of(streams(np.zeros(50), 5)[0])
    for estimate in (spectrum.trace(), spectrum.frobenius_norm()):
        assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_the_gauss_reading_gives_the_mean_of_probes_and_the_bar_of_their_spread():
    found, _ = streams(with_outliers(300), 12, probes=4)
    spectrum = spectrum_of(found)
    values = 300 * (spectrum.weights * spectrum.nodes).sum(axis=1)
    estimate = spectrum.trace(reading="gauss")
    assert estimate.value == pytest.approx(values.mean(), rel=1e-14)
    assert estimate.stderr == pytest.approx(values.std(ddof=1) / 2.0, rel=1e-12)
    assert estimate.high - estimate.value == pytest.approx(3.182 * estimate.stderr, rel=1e-9)
    assert estimate.reading == "gauss"


def test_noise_is_part_of_the_bar():
    found, _ = streams(with_outliers(300), 12)
    quiet, loud = (Reading(found), Reading(type(found)(**{**vars(found), "noise": 0.05})))
    norm = np.linalg.norm(with_outliers(300))
    narrow, wide = moments.power_sum(quiet, 1), moments.power_sum(loud, 1)
    assert wide.high - wide.low > 2 * 2 * 0.05 * norm * 0.9
    assert wide.high - wide.low > narrow.high - narrow.low


def test_steps_that_are_too_few_widen_the_bar_of_a_function():
    eigenvalues = 1.0 / np.arange(1, 301)

    def logarithm(x):
        return np.log(np.maximum(x, 1e-3))

    few, many = (spectrum_of(streams(eigenvalues, steps)[0]).apply(logarithm) for steps in (4, 60))
    assert holds(few, logarithm(eigenvalues).sum())
    assert few.high - few.low > 1.2 * (many.high - many.low)


@pytest.mark.parametrize("method", ["trace", "frobenius_norm", "largest", "smallest"])
def test_other_readings_are_refused(method):
    with pytest.raises(ConfigurationError, match="neither 'auto' nor 'gauss'"):
        getattr(spectrum_of(streams(bulk(50), 5)[0]), method)(reading="best")


def test_quantiles_are_those_of_students_distribution():
    from scipy.stats import t

    for freedom in (1, 2, 3, 4, 5, 6.5, 10, 25, 100, math.inf):
        assert student(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=0.02)


def test_bars_of_a_function_hold_where_steps_are_too_few():
    quantiles = (np.arange(2000) + 0.5) / 2000 - 0.5
    laplace = -np.sign(quantiles) * np.log1p(-2.0 * np.abs(quantiles))
    eigenvalues, held = np.concatenate((np.repeat(laplace, 4), np.geomspace(15.0, 300.0, 30))), []
    for seed in range(20):
        estimate = spectrum_of(streams(eigenvalues, 20, seed=seed)[0]).apply(lambda x: np.log1p(x**2))
        held.append(holds(estimate, np.log1p(eigenvalues**2).sum()))
    assert np.mean(held) >= 0.9
