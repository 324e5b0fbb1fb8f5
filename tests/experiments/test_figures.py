"""Figures of drivers: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes

from hvp_engine.experiments import figures


@pytest.fixture
def axes() -> Axes:
    with figures.style():
        return figures.page(1, 1, 3.0, 2.0)[1][0, 0]


def test_heat_maps_share_one_scale_and_leave_doubtful_numbers_out(axes: Axes) -> None:
    matrix = np.array([[0.0, 0.3], [0.3, np.nan]])
    image = figures.heat_map(axes, matrix, ["a", "b"], errors=np.array([[0.0, 0.4], [0.1, 0.0]]))
    assert image.get_clim() == (0.0, 1.0)
    assert [text.get_text() for text in axes.texts] == ["0.30"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_without_a_given_top_the_largest_entry_is_the_top(axes: Axes) -> None:
    assert figures.heat_map(axes, [[0.0, 4.0], [1.0, 0.0]], [], most=None).get_clim() == (0.0, 4.0)


def test_curves_are_medians_with_a_band_of_quartiles(axes: Axes) -> None:
    figures.curves(axes, {"SGD": ([1, 2], [[1.0, 5.0], [2.0, np.inf], [9.0, 7.0]])})
    assert axes.lines[0].get_ydata().tolist() == [2.0, 6.0]
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (1.5, 6.5)


def test_a_point_that_no_seed_reached_is_a_gap_not_an_error(axes: Axes) -> None:
    figures.curves(axes, {"SGD": ([1, 2], [[1.0, np.nan], [2.0, np.inf]])}, bars=True)
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True]


def test_scatters_have_labels_groups_and_bars_over_seeds(axes: Axes) -> None:
    figures.scatter(axes, [[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0], ["vgg", "vit"], groups=["cnn", "transformer"])
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("vgg", (2.0, 5.0)), ("vit", (3.0, 6.0))]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cnn", "transformer"]


def test_bars_have_a_dot_for_every_seed(axes: Axes) -> None:
    figures.bars(axes, {"gini": {"cnn": [0.4, 0.6], "vit": [0.8]}, "spread": {"vit": [1.0, 3.0]}})
    assert sorted(bar.get_height() for bar in axes.patches) == [0.5, 0.8, 2.0]
    assert sorted(value for line in axes.lines for value in line.get_ydata()) == [0.4, 0.6, 0.8, 1.0, 3.0]
    assert axes.get_ylim()[1] > 3.2  # room for the legend above them


def labels_of(axes: Axes, low: float, high: float) -> list[str]:
    """The numbers that the y axis has once it was written, between two ends."""
    axes.plot([0.0, 1.0], [low, high])
    axes.set(yscale="log", ylim=(low, high))
    figures.image(axes.get_figure(), "png")
    return [label.get_text() for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]


def test_a_logarithmic_axis_of_few_decades_is_written_plainly(axes: Axes) -> None:
    assert labels_of(axes, 0.04, 0.9) == ["0.05", "0.1", "0.2", "0.5"]


def test_one_of_less_than_a_decade_has_more_than_one_number_on_it(axes: Axes) -> None:
    assert len(labels_of(axes, 2.01, 2.24)) >= 3


def test_one_of_many_decades_keeps_its_powers_of_ten(axes: Axes) -> None:
    assert "$\\mathdefault{10^{-3}}$" in labels_of(axes, 1e-5, 1.0)


def test_ticks_that_a_driver_has_set_stay(axes: Axes) -> None:
    axes.plot([1.0, 64.0], [1.0, 1.0])
    figures.label_logs(axes, (1, 4, 64))
    figures.image(axes.get_figure(), "png")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "64"] and axes.get_xscale() == "log"


def test_an_axis_logarithmic_on_both_sides_has_ticks_where_something_is(axes: Axes) -> None:
    figures.symmetric_logs(axes, -8.0, 75.0)
    assert axes.get_xscale() == "symlog"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["-2", "0", "2", "10"]


def test_labels_of_points_lie_towards_the_middle(axes: Axes) -> None:
    figures.scatter(axes, [0.0, 1.0], [0.0, 1.0], ["left", "right"])
    assert [text.get_ha() for text in axes.texts] == ["left", "right"]


def test_panels_fill_rows_and_the_last_one_is_left_empty() -> None:
    with figures.style():
        figure, panels = figures.panels(5, 4, 1.8, 1.6)
    assert len(panels) == 5 and len(figure.axes) == 8 and figure.get_size_inches().tolist() == [4 * 1.8, 2 * 1.6]
    assert [axes.axison for axes in figure.axes] == [True] * 5 + [False] * 3
