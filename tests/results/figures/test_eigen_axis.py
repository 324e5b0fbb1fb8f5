"""Axes of eigenvalues: what they show, where their ticks are, and how these are written."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from hvp_engine.results.figures.eigen_axis import SignedDecades, axis_of, power_text, shared

RANGES = [
    (-1.0, 37.0),
    (-8.0, 20.0),
    (0.3, 0.8),
    (100.0, 200.0),
    (-1e-9, 1e-7),
    (-1e9, 1.0),
    (-5.0, -1.0),
    (3.3, 3.3001),
]


@pytest.mark.parametrize("scale", ["linear", "symlog", "log"])
@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("room", [3, 4, 8])
def test_ticks_are_inside_and_few_and_more_than_one(scale, low, high, room):
    axis = axis_of(scale, low, high, 0.003 * (high - low))
    axes = Figure().subplots()
    axis.apply(axes, "x", room)
    left, right = axes.get_xlim()
    assert (left, right) == pytest.approx(axis.limits())
    major = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert (1 if high - low < 1e-3 * high else 2) <= len(major) <= 2 * room
    minor = [tick for tick in axes.get_xticks(minor=True) if left <= tick <= right]
    assert not set(major) & set(minor) and len(minor) <= 80
    texts = [axes.xaxis.get_major_formatter()(tick) for tick in major]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("scale", ["linear", "symlog", "log"])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_grid_is_strictly_increasing_from_end_to_end(scale, low, high):
    axis = axis_of(scale, low, high, 0.003 * (high - low))
    grid = axis.grid()
    assert (np.diff(grid) > 0.0).all()
    assert grid[[0, -1]] == pytest.approx([low, high])


def test_symmetric_axes_are_dense_around_zero_and_linear_below_what_gaussians_blur():
    axis = axis_of("symlog", -1.0, 37.0, 0.12)
    assert axis.threshold == pytest.approx(0.1)
    gaps = np.diff(axis.grid())
    assert gaps[np.abs(axis.grid()[1:]) < 0.09].max() < 0.02 * gaps.max()
    assert axis_of("symlog", -1.0, 1e9, 1e-9).threshold == pytest.approx(1e3)  # no more than six decades a side


@pytest.mark.parametrize("scale", ["linear", "symlog", "log"])
def test_room_at_the_ends_is_the_same_on_paper(scale):
    axis = axis_of(scale, -1.0, 37.0, 0.12)
    wide, axes = axis.padded(0.05), Figure().subplots()
    wide.apply(axes)
    ends = axes.transData.transform([[axis.low, 1.0], [axis.high, 1.0]])[:, 0]
    left, right = axes.bbox.x0, axes.bbox.x1
    assert 0.02 < (right - ends[1]) / (right - left) < 0.1
    assert scale == "log" or 0.02 < (ends[0] - left) / (right - left) < 0.1


def test_an_axis_of_magnitudes_begins_where_there_is_something():
    assert axis_of("log", 100.0, 200.0, 0.3).limits() == (100.0, 200.0)
    assert axis_of("log", -200.0, -100.0, 0.3).limits() == (100.0, 200.0)
    assert axis_of("log", -200.0, 3.0, 0.3).limits() == (pytest.approx(0.2), 200.0)


def test_a_shared_axis_shows_all_of_several():
    axis = shared([axis_of("symlog", -1.0, 3.0, 0.02), axis_of("symlog", 0.0, 50.0, 0.1)])
    assert (axis.low, axis.high, axis.threshold) == (-1.0, 50.0, pytest.approx(0.02))


def test_powers_of_ten_are_written_as_people_read_them():
    assert [power_text(value) for value in (0.0, 0.01, -5.0, 200.0, 1e4, -2e-5)] == [
        "0", "0.01", "-5", "200", "$10^{4}$", r"$-2\cdot10^{-5}$"
    ]  # fmt: skip


def test_ticks_follow_whoever_zooms():
    ticks = SignedDecades(0.1, 4)
    assert ticks.tick_values(-100.0, 1000.0) == [-10.0, 0.0, 10.0, 1000.0]
    assert ticks.tick_values(1.0, 9.0) == [1.0, 2.0, 5.0]
    assert ticks.tick_values(-0.05, 0.05) == [0.0]
