"""The time that remains is told from the last steps, and is neither negative nor beyond belief."""

from __future__ import annotations

import math
import random

import pytest

from hvp_engine.system.pace import Pace


def test_nothing_is_known_before_the_first_step() -> None:
    pace = Pace(5.0)
    assert math.isinf(pace.left(10, 5.0)) and math.isinf(pace.left(10, 500.0))
    assert pace.left(0, 5.0) == 0.0


def test_slow_first_steps_are_forgotten() -> None:
    pace, now = Pace(0.0), 600.0
    pace.add(1, now)  # graphs were built and kernels compiled
    assert pace.left(10, now) == pytest.approx(6000.0)
    for _ in range(40):
        now += 2.0
        pace.add(1, now)
    assert pace.left(10, now) == pytest.approx(20.0)


def test_steps_longer_than_the_window_are_measured_too() -> None:
    pace, now = Pace(0.0), 0.0
    for _ in range(30):
        now += 300.0
        pace.add(4, now)
    assert pace.left(4, now) == pytest.approx(300.0)


def test_many_quick_steps_take_little_memory() -> None:
    pace, now = Pace(0.0), 0.0
    for _ in range(100_000):
        now += 1e-4
        pace.add(1, now)
    assert len(pace._marks) < 300 and pace.left(1000, now) == pytest.approx(0.1, rel=0.01)


def test_time_runs_down_between_two_steps_by_no_more_than_a_step() -> None:
    pace = Pace(0.0)
    for now in (10.0, 20.0, 30.0):
        pace.add(1, now)
    assert pace.left(3, 30.0) == pytest.approx(30.0)
    assert pace.left(3, 34.0) == pytest.approx(26.0)
    assert pace.left(3, 300.0) == pytest.approx(20.0)  # a step that hangs


def test_the_speed_before_a_resume_does_not_count() -> None:
    pace = Pace(0.0)
    pace.begin(120.0)  # what came before was reading
    assert math.isinf(pace.left(10, 121.0))
    pace.add(1, 122.0)
    assert pace.left(10, 122.0) == pytest.approx(20.0)


def test_streams_that_drop_out_leave_the_speed_per_step_as_it_was() -> None:
    pace, now = Pace(0.0), 0.0
    for streams in [20] * 30 + [5] * 30:
        now += 0.1 * streams
        pace.add(streams, now)
    assert pace.left(50, now) == pytest.approx(5.0)


def test_no_time_is_negative_whatever_happens() -> None:
    random.seed(0)
    pace, now = Pace(0.0), 0.0
    for _ in range(3000):
        now += random.choice([0.0, 1e-6, 0.5, 40.0, -1e-3])
        pace.add(random.choice([0, 1, 1000]), now)
        left = pace.left(random.choice([-3, 0, 1, 10**6]), now + random.choice([0.0, 100.0]))
        assert left >= 0.0 and not math.isnan(left)
