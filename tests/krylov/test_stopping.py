"""The rule of an adaptive job: what a target is, when a block has met it, and what it needs where it has not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.stopping import Ceilings, Targets, Verdict, judge
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.divergences import divergences
from hvp_engine.results.reading import Quadrature, Reading
from hvp_engine.results.smooth_cdf import SmoothCdf
from hvp_engine.results.smoothed import Smoother
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.wasserstein import chance_of_distance, distance_from_truth
from hvp_engine.results.zero_blocks import zero_blocks


def test_a_number_is_the_target_of_the_distribution() -> None:
    assert Targets.parse(0.02).record() == {"w1": 0.02}
    assert Targets.parse(np.float32(0.25)).record() == {"w1": 0.25}


def test_targets_go_by_their_names() -> None:
    wanted = {"js": 0.01, "trace": 2, "density": 0.1}
    assert Targets.parse(wanted).record() == wanted


@pytest.mark.parametrize(
    "nonsense",
    [
        *(True, math.nan, math.inf, 0.0, -0.1, 1.0, "0.02", None, [0.02], np.True_, {}, {"w1": 1.5}, {"js": 1.0}),
        *({"trace": 0.0}, {"density": math.nan}, {"trace": True}, {"w1": None}, {"trace": math.inf}),
    ],
)
def test_nonsense_is_refused(nonsense: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^tolerance.*\.$"):
        Targets.parse(nonsense)


@pytest.mark.parametrize(("typo", "meant"), [("jss", "js"), ("tr", "trace"), ("densities", "density"), ("W1", "w1")])
def test_an_unknown_target_is_refused_with_the_nearest_name(typo: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no target named {typo!r}.*Did you mean {meant!r}"):
        Targets.parse({typo: 0.01})


def streams(eigenvalues: Any, probes: int, steps: int, seed: int = 0) -> Coefficients:
    """Lanczos in float64 on the diagonal, in full: a sphere probe is one in any basis."""
    values, random = np.asarray(eigenvalues, dtype=np.float64), np.random.default_rng(seed)
    alphas, betas = np.zeros((probes, steps)), np.zeros((probes, steps))
    counts = np.full(probes, steps)
    for probe in range(probes):
        basis = [random.standard_normal(values.size)]
        basis[0] /= np.linalg.norm(basis[0])
        for step in range(steps):
            vector = values * basis[-1]
            alphas[probe, step] = vector @ basis[-1]
            for _ in range(2):
                vector -= np.array(basis).T @ (np.array(basis) @ vector)
            betas[probe, step] = np.linalg.norm(vector)
            if betas[probe, step] <= 1e-12 * abs(values).max():
                betas[probe, step], counts[probe] = 0.0, step + 1
                break
            basis.append(vector / betas[probe, step])
    most = int(counts.max())
    residuals = betas[np.arange(probes), counts - 1]
    betas[np.arange(probes), counts - 1] = 0.0
    return Coefficients(values.size, alphas[:, :most], betas[:, : most - 1], counts, residuals)


BULK = np.linspace(-1.0, 2.0, 2000)
SKEWED = np.concatenate((np.linspace(-1.0, 1.0, 3990), np.geomspace(5.0, 50.0, 10)))
W1 = Targets(w1=0.05)


def verdict(found: Coefficients, targets: Targets = W1, **options: Any) -> Verdict:
    return judge({"block": found}, targets, **options)["block"]


def test_a_block_that_is_known_well_enough_is_reached() -> None:
    known = verdict(streams(SKEWED, 1, 60))
    assert known.reached and known.steps_suffice
    assert known.probes == 1 and 0.0 < known.errors["w1"] <= 0.05 and not known.reason


def test_outliers_that_have_not_converged_ask_for_steps() -> None:
    early = verdict(streams(SKEWED, 1, 10))
    assert not early.reached and not early.steps_suffice
    assert early.errors["w1"] > 0.05


def test_chance_asks_for_probes_once_steps_suffice() -> None:
    one = verdict(streams(BULK, 1, 20), Targets(w1=0.03))
    assert one.steps_suffice and not one.reached and 2 <= one.probes <= 8
    enough = verdict(streams(BULK, one.probes, 20), Targets(w1=0.03))
    assert enough.reached and enough.errors["w1"] <= 0.03


def test_steps_that_few_probes_could_not_use_are_not_asked_for() -> None:
    found = streams(BULK, 1, 10)
    assert not verdict(found, Targets(w1=0.004)).steps_suffice
    limited = verdict(found, Targets(w1=0.004), ceilings=Ceilings(probes=4))
    assert limited.steps_suffice and not limited.reached
    assert limited.probes > 4 and not limited.reason


def test_noise_above_the_tolerance_is_said_and_ends_the_steps() -> None:
    found = replace(streams(SKEWED, 1, 40), noise=0.1)
    noisy = verdict(found)
    assert not noisy.reached and noisy.steps_suffice and noisy.probes == 1
    assert "noise" in noisy.reason
    assert verdict(replace(found, noise=1e-3)).reached


def test_a_trace_asks_for_single_products_in_place_of_streams() -> None:
    found = streams(SKEWED, 1, 40)
    asks = verdict(found, Targets(trace=0.2))
    assert asks.steps_suffice and not asks.reached
    assert asks.probes == 1 and 2 <= asks.singles <= 10


def test_a_trace_of_streams_that_are_not_orthogonal_asks_for_streams() -> None:
    found = replace(streams(SKEWED, 1, 40), reorthogonalized=False)
    asks = verdict(found, Targets(trace=0.2))
    assert asks.probes > 1 and asks.singles == 0


def test_steps_that_pay_in_single_products_go_on() -> None:
    assert not verdict(streams(SKEWED, 1, 15), Targets(trace=0.05)).steps_suffice


def test_an_exhausted_stream_asks_for_no_steps() -> None:
    low_rank = streams(np.concatenate((np.zeros(985), np.arange(1.0, 16.0))), 1, 40)
    assert low_rank.steps[0] == 16 and low_rank.residuals[0] == 0.0
    assert verdict(low_rank, Targets(w1=0.01)).steps_suffice


def test_a_stream_that_knows_every_eigenvalue_is_exact() -> None:
    assert verdict(streams(np.arange(12.0), 1, 12), Targets(w1=1e-6)).errors == {"w1": 0.0}


@pytest.mark.parametrize("values", [np.zeros(500), np.full(500, 3.0), 1e-21 * np.linspace(-1.0, 1.0, 500)])
def test_blocks_without_a_spread_are_reached_at_once(values: Any) -> None:
    found = {"block": streams(SKEWED, 1, 10), "flat": streams(values, 1, 10)}
    flat = judge(found, W1)["flat"]
    assert flat.reached and flat.steps_suffice and flat.probes == 1


@pytest.mark.parametrize("residual", [1.0, math.nan])
def test_one_step_knows_no_spread(residual: float) -> None:
    found = replace(streams(BULK, 1, 1), residuals=np.array([residual]))
    judged = verdict(found)
    assert not judged.reached and not judged.steps_suffice
    assert distance_from_truth(Reading(found)) >= 1.0


def test_only_what_is_asked_is_judged() -> None:
    found = {name: streams(SKEWED, 1, 10) for name in "ab"}
    assert list(judge(found, W1, asked=["b"])) == ["b"]


def test_the_bar_by_chance_is_that_of_a_normal_variable_where_two_bands_share_the_mass() -> None:
    n, share = 10_000, 0.2
    rule = Quadrature(
        np.array([0.0, 1.0]),
        np.array([1.0 - share, share]),
        np.zeros(2, bool),
        np.zeros(2, int),
        n,
        np.array([n]),
        "gauss",
    )
    exact = 1.96 * math.sqrt(2.0 * share * (1.0 - share) / (n + 2))
    assert chance_of_distance(rule) == pytest.approx(exact, rel=0.02)


def test_the_bar_by_chance_is_that_of_a_brownian_bridge_for_an_even_spectrum() -> None:
    n, nodes = 10_000, np.linspace(0.0, 1.0, 201)
    rule = Quadrature(nodes, np.full(201, 1 / 201), np.zeros(201, bool), np.zeros(201, int), n, np.array([n]), "gauss")
    quantile = 0.5800  # 95 % of the integral of |Brownian bridge| (Johnson and Killeen, Ann. Probab. 11, 1983)
    assert quantile <= chance_of_distance(rule) / math.sqrt(2.0 / n) <= 1.1 * quantile


def test_the_bar_by_chance_does_not_vanish_where_the_eigenvalues_of_a_tail_weigh_nothing_by_chance() -> None:
    n, nodes = 1_000, np.arange(9.0)

    def chance(tail: float) -> float:
        weights = np.append(1.0 - 8 * tail / n, np.full(8, tail / n))
        return chance_of_distance(
            Quadrature(nodes, weights, np.zeros(9, bool), np.zeros(9, int), n, np.array([n]), "vr")
        )

    # Every other node is a Ritz value: four eigenvalues are there, at two, four, six and eight or further out.
    assert chance(1e-6) == pytest.approx(chance(0.5), rel=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_the_distance_stays_below_what_the_verdict_says(seed: int) -> None:
    found = streams(SKEWED, 1, 40, seed)
    truth = SmoothCdf(
        np.sort(SKEWED), np.arange(SKEWED.size) / SKEWED.size, np.arange(1, SKEWED.size + 1) / SKEWED.size
    )
    assert Reading(found).smooth.distance(truth) <= verdict(found).errors["w1"] * SKEWED.std()


PAIR = {"skewed": streams(SKEWED, 1, 40), "bulk": streams(BULK, 1, 40, seed=1)}


def test_divergences_are_judged_by_their_published_bars() -> None:
    entries = divergences(Smoother(Reading(found), name) for name, found in PAIR.items()).entries()
    half = max(entries.high[0, 1] - entries.value[0, 1], entries.value[0, 1] - entries.low[0, 1])
    for tolerance, reached in ((1.1 * half, True), (0.9 * half, False)):
        for judged in judge(PAIR, Targets(js=tolerance)).values():
            assert judged.reached is reached
            assert judged.errors["js"] == pytest.approx(half)


def test_a_pair_of_blocks_gets_streams_for_its_smaller_one() -> None:
    blocks = {"large": streams(np.repeat(BULK, 20), 1, 60), "small": streams(BULK[::2], 1, 60, seed=1)}
    judged = judge(blocks, Targets(js=0.02))
    assert judged["small"].probes > judged["large"].probes


def test_one_block_has_no_divergence_to_judge() -> None:
    alone = verdict(PAIR["bulk"], Targets(js=0.01))
    assert alone.reached and alone.errors == {}


def test_densities_are_judged_by_the_mean_width_of_their_band() -> None:
    rough = verdict(streams(BULK, 1, 40), Targets(density=0.01))
    assert not rough.reached and rough.errors["density"] > 0.01
    assert verdict(streams(BULK, 1, 40), Targets(density=2.0 * rough.errors["density"])).reached


def test_every_target_has_to_be_met() -> None:
    both = verdict(streams(SKEWED, 1, 60), Targets(w1=0.05, trace=0.01))
    assert set(both.errors) == {"w1", "trace"}
    assert both.errors["w1"] <= 0.05 and not both.reached


def test_one_step_does_not_say_that_a_trace_is_known() -> None:
    one = verdict(streams(BULK, 1, 1), Targets(trace=0.05))
    assert not one.reached and one.errors["trace"] > 0.05


def test_a_multiple_of_the_identity_is_known_after_a_step_and_is_not_zero() -> None:
    one = Coefficients(100, np.array([[2.0]]), np.zeros((1, 0)), np.array([1]), np.zeros(1))
    zero = replace(one, alphas=np.zeros((1, 1)))
    singles = {"identity": np.array([[2.0, 4.0, 0.01]] * 4)}
    judged = judge({"identity": one, "zero": zero}, Targets(w1=0.01, trace=0.01), singles)
    assert judged["identity"].reached and not judged["identity"].zero
    assert judged["zero"].reached and judged["zero"].zero


def test_a_block_goes_on_where_those_that_it_is_to_differ_from_are_to_come() -> None:
    for steps, suffice in ((10, False), (60, True)):
        found = streams(SKEWED, 1, steps)
        (judged,) = judge({"first": found}, Targets(js=0.05), more_to_come=True).values()
        assert judged.steps_suffice is suffice and judged.errors["js"] > 0.0
    assert judge({"only": streams(SKEWED, 1, 10)}, Targets(js=0.05))["only"].steps_suffice


@pytest.mark.parametrize(("precision", "zero"), [("fp32", True), ("bf16", True), ("fp64", False), (None, False)])
def test_a_block_is_zero_by_the_rounding_of_its_products_while_it_runs_and_afterwards(
    precision: str | None, zero: bool
) -> None:
    large = streams(np.linspace(-1.0, 1.0, 400), 1, 12)
    small = streams(1e-9 * np.linspace(-1.0, 1.0, 400), 1, 12)
    assert judge({"large": large, "small": small}, W1, precision=precision)["small"].zero == zero
    spectra = [
        Spectrum.from_tridiagonal(name, 400, f.alphas, f.betas, f.steps)
        for name, f in (("large", large), ("small", small))
    ]
    assert zero_blocks(spectra, precision) == (("small",) if zero else ())
