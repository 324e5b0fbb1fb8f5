"""When a training is measured: schedules, and the share of its time."""

from __future__ import annotations

from typing import Any

import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.integrations.budget import Budget
from hvp_engine.integrations.schedule import Schedule


def due(every: Any, steps: range) -> list[int]:
    schedule = Schedule(every)
    return [step for step in steps if schedule.due(step - 1, step)]


def test_a_number_means_its_multiples() -> None:
    assert due(10, range(35)) == [0, 10, 20, 30]


def test_log_means_doubling_steps() -> None:
    assert due("log", range(40)) == [0, 1, 2, 4, 8, 16, 32]


def test_a_list_means_its_steps() -> None:
    assert due([7, 3, 3, 20], range(40)) == [3, 7, 20]
    assert due(iter([5]), range(10)) == [5]


@pytest.mark.parametrize("every", [10, [10], [3, 10, 40]])
def test_a_step_that_was_passed_over_is_due_at_the_next_one_and_only_once(every: Any) -> None:
    schedule = Schedule(every)
    assert schedule.due(8, 12)
    assert not schedule.due(12, 13)
    assert not schedule.due(10, 10)


def test_doubling_steps_that_were_passed_over_are_due_at_the_next_one() -> None:
    schedule = Schedule("log")
    assert schedule.due(7, 9)
    assert not schedule.due(9, 15)
    assert not schedule.due(8, 8)


@pytest.mark.parametrize("every", [0, -3, 2.5, "daily", [], [1, 2.5], [-1], None])
def test_what_is_no_schedule_is_refused(every: Any) -> None:
    with pytest.raises(ConfigurationError, match="every="):
        Schedule(every)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_measurement_is_allowed_and_the_next_one_when_both_fit_the_share() -> None:
    clock = Clock()
    budget = Budget(0.1, clock)
    assert budget.allows()
    with budget.spending():
        clock.now += 1.0
    assert not budget.allows()
    clock.now = 18.9
    assert not budget.allows()
    clock.now = 19.0  # two seconds of twenty
    assert budget.allows()


def test_a_training_that_asks_every_second_spends_its_share_and_no_more() -> None:
    clock = Clock()
    budget = Budget(0.05, clock)
    while clock.now < 1000.0:
        clock.now += 1.0
        if budget.allows():
            with budget.spending():
                clock.now += 0.5
    assert 0.045 < budget.spent / budget.elapsed <= 0.05


def test_time_is_counted_where_a_measurement_fails() -> None:
    clock = Clock()
    budget = Budget(0.5, clock)
    assert budget.allows()
    with pytest.raises(ValueError, match="failed"), budget.spending():
        clock.now += 3.0
        raise ValueError("failed")
    assert budget.spent == 3.0


def test_without_a_share_everything_is_allowed() -> None:
    clock = Clock()
    budget = Budget(None, clock)
    for _ in range(3):
        assert budget.allows()
        with budget.spending():
            clock.now += 5.0


@pytest.mark.parametrize("share", [0, -0.1, 1.5, "little"])
def test_what_is_no_share_is_refused(share: Any) -> None:
    with pytest.raises(ConfigurationError, match="budget="):
        Budget(share)
