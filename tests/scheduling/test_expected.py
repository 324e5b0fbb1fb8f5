"""What blocks are expected to take, and at most."""

from __future__ import annotations

from typing import Any

import pytest

from hvp_engine.krylov.settings import JobSettings
from hvp_engine.scheduling.expected import expected_products, expected_work, is_better_exactly, is_exact, most_work

SIZES = {"bias": 30, "small": 1_000, "medium": 5_000, "large": 10**6}


@pytest.mark.parametrize("settings", [JobSettings(steps=40, probes=3), JobSettings(steps=7), JobSettings(probes=2)])
def test_a_fixed_job_takes_what_it_was_asked_for(settings: JobSettings) -> None:
    assert expected_products(SIZES, settings) == settings.products(SIZES)
    assert most_work(SIZES, settings) == expected_work(SIZES, settings)
    assert not any(is_exact(size, settings) for size in SIZES.values())


def test_a_large_block_takes_one_probe_and_a_few_single_products() -> None:
    work = expected_work(SIZES, JobSettings())["large"]
    assert (work.probes, work.singles, work.columns) == (1, 4, 0)
    assert 80 <= work.steps <= 100
    assert work.products == work.steps + 4
    assert work.sweeps == (work.steps + 1,)
    assert expected_work(SIZES, JobSettings(reorthogonalize="none"))["large"].singles == 0


def test_smaller_blocks_take_more_probes_and_the_smallest_are_multiplied_out() -> None:
    work = expected_work(SIZES, JobSettings())
    assert work["bias"].columns == work["bias"].products == 30 and not work["bias"].probes
    assert work["bias"].sweeps == (2,)  # sixteen columns at once
    assert 10 == work["small"].probes > work["medium"].probes > work["large"].probes
    assert work["medium"].sweeps == (work["medium"].steps + 1, work["medium"].steps)


@pytest.mark.parametrize("tolerance", [0.3, 0.02, {"js": 0.01}, {"trace": 0.01}])
def test_a_block_is_done_exactly_where_that_costs_no_more_products(tolerance: Any) -> None:
    settings = JobSettings(tolerance=tolerance)
    sizes = {str(numel): numel for numel in range(1, 1200, 7)}
    work, most = expected_work(sizes, settings), most_work(sizes, settings)
    for name, numel in sizes.items():
        if is_exact(numel, settings):
            assert work[name].products == numel
        else:
            assert work[name].products < numel
        assert work[name].products <= most[name].products
    assert 0 < sum(each.columns > 0 for each in work.values()) < len(sizes)


def test_the_usual_tolerance_multiplies_out_what_ten_probes_of_fifty_steps_cost() -> None:
    assert is_exact(500, JobSettings()) and not is_exact(600, JobSettings())
    assert expected_products({"small": 1000, "large": 10**6}, JobSettings()) == {"small": 504, "large": 94}


def test_a_larger_tolerance_takes_fewer_products_and_no_fewer_than_the_first_check_sees() -> None:
    tolerances = (0.005, 0.01, 0.02, 0.05, 0.2, 0.9)
    steps = [expected_work(SIZES, JobSettings(tolerance=t))["large"].steps for t in tolerances]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (100, 10)


def test_ceilings_bound_what_is_expected_and_are_what_is_taken_at_most() -> None:
    settings = JobSettings(tolerance=0.001, steps=30, probes=2)
    assert expected_work(SIZES, settings)["small"].products == 2 * 30 + 4
    most = most_work(SIZES, settings)["small"]
    assert (most.probes, most.steps, most.singles) == (2, 30, 30)


def test_a_block_that_needs_more_streams_than_its_matrix_has_columns_gets_the_matrix() -> None:
    settings = JobSettings()
    assert is_better_exactly(400, 50, 9, 54, settings)
    assert not is_better_exactly(400, 50, 7, 54, settings)
    assert is_better_exactly(400, 100, None, 504, settings)
    assert not is_better_exactly(600, 100, None, 504, settings)  # beyond the ceilings
