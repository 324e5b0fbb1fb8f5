"""Guards: what must not be taken for a single eigenvalue, and what bars say then."""

from dataclasses import replace

import numpy as np
import pytest
from streams import bulk, single_products, streams, with_outliers

from hvp_engine.errors import ConfigurationError
from hvp_engine.results import extremes, moments
from hvp_engine.results.reading import Reading


def repeated(copies, n=600):
    return np.sort(np.concatenate((bulk(n - copies - 3), np.full(copies, 5.0), [9.0, 7.0, 3.0])))


def close_pairs(distance):
    return np.sort(np.concatenate((bulk(596), [5.0, 5.0 + distance, 9.0, 3.0])))


def holds(estimate, truth):
    return estimate.low <= truth <= estimate.high


def test_single_products_show_copies_that_a_stream_takes_for_one():
    eigenvalues, alone, flagged, held = repeated(3), 0, 0, 0
    for seed in range(30):
        found, vectors = streams(eigenvalues, 25, seed=seed)
        singles = single_products(eigenvalues, vectors, 25, 4, seed)
        alone += holds(moments.power_sum(Reading(found), 2), (eigenvalues**2).sum())
        reading = Reading(found, singles, 25)
        flagged += not reading.accepted[0, -4]
        held += holds(moments.power_sum(reading, 2), (eigenvalues**2).sum())
    assert alone <= 6  # without single products the bar is wrong: this is what the guard is for
    assert flagged >= 28 and held >= 27


def test_single_products_seldom_contradict_single_outliers():
    eigenvalues, flagged = with_outliers(), 0
    for seed in range(40):
        found, vectors = streams(eigenvalues, 30, seed=seed)
        flagged += Reading(found, single_products(eigenvalues, vectors, 30, 4, seed), 30).doubted
    assert flagged <= 2


def test_streams_show_by_their_weights_together_that_an_outlier_is_repeated():
    eigenvalues, held = repeated(10), 0
    for seed in range(20):
        reading = Reading(streams(eigenvalues, 25, probes=4, seed=seed)[0])
        assert reading.candidates[:, -3].all()  # each alone would take it for one
        assert not reading.accepted[:, -3].any() and reading.accepted[:, -2].all()
        held += holds(moments.power_sum(reading, 1), eigenvalues.sum())
    assert held >= 17


def test_streams_seldom_show_single_outliers_as_repeated():
    kept = [Reading(streams(with_outliers(), 30, probes=4, seed=seed)[0]).accepted for seed in range(20)]
    assert np.mean([accepted[:, -6:].all() and accepted[:, :2].all() for accepted in kept]) >= 0.9


def test_a_stream_that_resolves_a_pair_refutes_one_that_does_not():
    eigenvalues = close_pairs(0.02)
    blind, _ = streams(eigenvalues, 7, seed=1)
    seeing, _ = streams(eigenvalues, 40, seed=2)
    alone = Reading(blind)
    place = int(abs(alone.ritz.nodes[0] - 5.01).argmin())
    assert alone.accepted[0, place] and alone.ritz.gaps[0, place] > 1.0  # it sees one value where there are two
    both = replace(
        seeing,
        alphas=np.stack((np.pad(blind.alphas[0], (0, 33)), seeing.alphas[0])),
        betas=np.stack((np.pad(blind.betas[0], (0, 33)), seeing.betas[0])),
        steps=np.array([7, 40]),
        residuals=np.concatenate((blind.residuals, seeing.residuals)),
    )
    together = Reading(both)
    assert not together.accepted[0, place]
    assert together.accepted[0, place + 1 : 7].all()
    assert (abs(together.ritz.nodes[1][together.accepted[1]] - 5.01) < 0.011).sum() == 2


def test_single_products_show_a_pair_that_a_stream_takes_for_one():
    eigenvalues, fooled, flagged = close_pairs(1e-3), 0, 0
    for seed in range(20):
        found, vectors = streams(eigenvalues, 7, seed=seed)
        reading = Reading(found, single_products(eigenvalues, vectors, 7, 4, seed), 7)
        place = int(abs(reading.ritz.nodes[0] - 5.0).argmin())
        if reading.candidates[0, place] and reading.ritz.gaps[0, place] > 1.0:
            fooled += 1
            flagged += not reading.accepted[0, place]
    assert fooled >= 15 and flagged >= 0.9 * fooled


def test_nothing_is_accepted_without_reorthogonalisation():
    found, vectors = streams(with_outliers(), 30)
    loose = replace(found, reorthogonalized=False)
    reading = Reading(loose, single_products(with_outliers(), vectors, 30, 4), 30)
    assert Reading(found).accepted.any()
    assert not reading.accepted.any() and reading.deflated is None
    np.testing.assert_allclose(reading.variance_reduced.weights, reading.gauss.weights, rtol=1e-12)


@pytest.mark.parametrize(("noise", "without"), [(1e-2, 15), (5e-2, 2)])
def test_noise_of_products_keeps_values_from_being_accepted_and_widens_bars(noise, without):
    eigenvalues, held, blind = np.concatenate((bulk(500), np.linspace(8.0, 12.0, 17))), 0, 0
    for seed in range(20):
        found, _ = streams(eigenvalues, 40, seed=seed, noise=noise)
        reading = Reading(found)
        assert not reading.accepted[0, -5:].any()  # 0.25 apart, an error of 0.12 or more
        estimates = [moments.power_sum(reading, 1), moments.trace_of(reading, lambda x: np.exp(-abs(x)))]
        truths = [eigenvalues.sum(), np.exp(-abs(eigenvalues)).sum()]
        held += sum(map(holds, estimates, truths))
        blind += Reading(replace(found, noise=0.0)).accepted[0, -5:].any()
    assert blind >= without  # of 20, where the noise is not known
    assert held >= 36


def test_an_exhausted_stream_knows_values_but_not_how_often_they_come():
    eigenvalues = np.repeat(np.linspace(1.0, 5.0, 12), 4)
    held = 0
    for seed in range(20):
        found, _ = streams(eigenvalues, 30, seed=seed)
        assert found.steps[0] == 12 and found.residuals[0] == 0.0
        reading = Reading(found)
        assert not reading.accepted.any()
        held += holds(moments.power_sum(reading, 1), eigenvalues.sum())
    assert held >= 17


def test_a_rank_deficient_block_has_an_exact_trace_from_one_probe():
    eigenvalues = np.concatenate((np.zeros(900), np.linspace(1.0, 5.0, 15)))
    for seed in range(10):
        estimate = moments.power_sum(Reading(streams(eigenvalues, 40, seed=seed)[0]), 1)
        assert estimate.value == pytest.approx(45.0, rel=1e-6)
        assert estimate.high - estimate.low < 1e-6


def test_one_stream_shows_by_the_weights_of_many_outliers_that_they_are_repeated():
    eigenvalues, fooled, doubted, held = np.concatenate((bulk(540), np.repeat(np.linspace(3.0, 12.0, 12), 5))), 0, 0, 0
    for seed in range(20):
        reading = Reading(streams(eigenvalues, 40, seed=seed)[0])
        fooled += reading.candidates[0, -6:].all()  # each alone may be one
        doubted += not reading.accepted[0, -12:].all()
        held += holds(moments.power_sum(reading, 1), eigenvalues.sum())
    assert fooled >= 10 and doubted >= 19 and held >= 17


def test_values_without_room_for_the_eigenvalues_that_are_left_are_not_accepted():
    for seed in range(10):
        found, _ = streams(np.array([1.0, 2.0, 3.0, 3.0]), 4, seed=seed)
        reading = Reading(found)
        assert found.steps[0] == 3 and not reading.accepted.any()  # one of the three is there twice, but which?
        assert reading.variance_reduced.weights.sum() == pytest.approx(1.0)
        assert moments.power_sum(reading, 1).high > moments.power_sum(reading, 1).low


def test_weights_too_heavy_by_chance_leave_both_readings_in_the_bar():
    eigenvalues = with_outliers(60)
    found, _ = streams(eigenvalues, 20, seed=2371)  # on whose largest eigenvector a probe has 13 times its share
    reading, truth = Reading(found), (eigenvalues**6).sum()
    assert reading.candidates[0, -6:].all() and not reading.accepted[0, -6]
    reading.__dict__["accepted"] = np.zeros_like(reading.accepted)  # as where the first one is in doubt already
    estimate = moments.power_sum(reading, 6)
    assert estimate.value - 1.96 * estimate.stderr > 2.0 * truth  # what the weights alone would say
    assert estimate.low <= (1.0 + 1e-6) * truth < estimate.high


def low_rank(n=600):
    return np.concatenate((np.zeros(n - 40), 3.0 * np.random.default_rng(0).standard_normal(40)))


def test_single_products_beside_an_exhausted_stream_raise_no_doubt_by_rounding():
    eigenvalues, exact = low_rank(), 0
    for seed in range(10):
        found, vectors = streams(eigenvalues, 50, seed=seed)
        assert found.steps[0] == 41 and found.residuals[0] == 0.0
        reading = Reading(found, single_products(eigenvalues, vectors, 40, 4, seed), 40)
        estimate = moments.power_sum(reading, 1)
        assert not reading.doubted and estimate.low - 1e-9 <= eigenvalues.sum() <= estimate.high + 1e-9
        exact += reading.accepted.sum() == 40 and estimate.high - estimate.low < 1e-4
    assert exact >= 8  # 40 weights are unlikely together now and then


def test_single_products_beside_an_exhausted_stream_show_copies_of_an_eigenvalue():
    eigenvalues, flagged = low_rank(), 0
    eigenvalues[:3] = eigenvalues.max()
    for seed in range(10):
        found, vectors = streams(eigenvalues, 50, seed=seed)
        flagged += Reading(found, single_products(eigenvalues, vectors, 40, 4, seed), 40).suspected
    assert flagged >= 9


def test_bars_hold_what_the_weights_of_several_streams_show_only_together():
    eigenvalues = np.sort(np.concatenate((bulk(590), np.repeat([3.0, 5.0, 7.0, 9.0, 12.0], 2))))
    held, wrong = [], 0
    for seed in range(20):
        reading = Reading(streams(eigenvalues, 30, probes=8, seed=seed)[0])
        held += [holds(moments.power_sum(reading, k), (eigenvalues**k).sum()) for k in (2, 4)]
        try:
            wrong += not holds(extremes.largest(reading, 5), eigenvalues[-5])
        except ConfigurationError:
            continue
    assert np.mean(held) >= 0.8 and wrong <= 3


def test_streams_accept_no_repeated_eigenvalues_that_one_alone_refuses():
    eigenvalues, held = np.repeat(np.exp(2.0 * np.random.default_rng(0).standard_normal(200)), 5), []
    for seed in range(20):
        reading = Reading(streams(eigenvalues, 30, probes=3, seed=seed)[0])
        held.extend(holds(moments.power_sum(reading, k), (eigenvalues**k).sum()) for k in (2, 3, 4))
    assert np.mean(held) >= 0.85


def test_repeated_eigenvalues_on_one_side_leave_those_on_the_other_accepted():
    eigenvalues = np.concatenate((bulk(540), -np.repeat(np.linspace(3.0, 12.0, 12), 5), np.linspace(4.0, 13.0, 10)))
    sound = left = 0
    for seed in range(20):
        reading = Reading(streams(eigenvalues, 45, seed=seed)[0])
        sound += reading.accepted[0, -10:].all()
        left += reading.accepted[0, :12].all()
    assert sound >= 18 and left <= 1
