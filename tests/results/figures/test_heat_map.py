"""The figure of distances and of their errors."""

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from random_spectra import random_spectra
from summaries import NONE, bar

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.estimate import MatrixEstimate
from hvp_engine.results.figures import heat_map
from hvp_engine.results.figures.heat_map import plot_js


def matrix(*pairs, reading="averaged"):
    """Three blocks: values and half-widths of the pairs (0, 1), (0, 2) and (1, 2)."""
    value, half = np.zeros((2, 3, 3))
    for (i, j), (entry, error) in zip([(0, 1), (0, 2), (1, 2)], pairs, strict=True):
        value[i, j] = value[j, i] = entry
        half[i, j] = half[j, i] = error
    return MatrixEstimate(value, value - half, value + half, reading)


def texts(path):
    return ["".join(node.itertext()) for node in ElementTree.parse(path).iter() if node.tag.endswith("}text")]


def drawn(tmp_path, js, names=("a", "b", "c"), zero=(), js0=None):
    plot_js(names, js, bar(0.5, 0.01, "averaged") if js0 is None else js0, zero, tmp_path / "js.svg")
    return texts(tmp_path / "js.svg")


def test_entries_have_the_digits_that_their_bars_leave_and_errors_their_own_panel(tmp_path):
    found = drawn(tmp_path, matrix((0.5123, 0.02), (0.73, 0.33), (0.0123, 0.001)))
    for entry in ("0.51", ".020", "0.7", "0.33", ".012", ".001"):
        assert found.count(entry) == 2  # both halves of the matrix; ticks of the scales have two decimals
    assert "0.73" not in found
    assert "JS0 (mean over pairs) = 0.500 ± 0.010" in found
    assert "half-width of the 95 % bar" in found
    assert "95 % bars (averaged reading)" in found


def test_an_entry_that_its_bar_exceeds_is_hatched_and_has_no_number(tmp_path):
    found = drawn(tmp_path, matrix((0.5, 0.02), (0.31, 0.4), (0.21, 0.01)))
    assert found.count("?") == 2
    assert "0.31" not in found and "0.3" not in found
    assert "hatched: bar exceeds entry (1)" in found
    assert (tmp_path / "js.svg").read_text().count("<pattern") == 1
    sure = drawn(tmp_path, matrix((0.5, 0.02), (0.31, 0.04), (0.21, 0.01)))
    assert "?" not in sure
    assert "<pattern" not in (tmp_path / "js.svg").read_text()


def test_entries_without_bars_are_hatched_too(tmp_path):
    nan = float("nan")
    found = drawn(tmp_path, matrix((0.5, nan), (0.31, nan), (0.21, nan)), js0=bar(0.34, nan))
    assert found.count("?") == 6
    assert "no 95 % bars are known" in found
    assert "JS0 (mean over pairs) = 0.34 ± ?" in found


def test_blocks_of_zero_curvature_have_no_entries(tmp_path):
    found = drawn(tmp_path, matrix((0.51, 0.02), (0.91, 0.03), (0.92, 0.03)), zero=["c"])
    assert found.count("0.51") == 2
    assert not {"0.91", "0.92"} & set(found)
    assert "grey: zero curvature (1)" in found


@pytest.mark.parametrize(("blocks", "suffix"), [(1, "png"), (2, "pdf"), (30, "png")])
def test_any_number_of_blocks_can_be_drawn(tmp_path, blocks, suffix):
    value = np.full((blocks, blocks), 0.4) - 0.4 * np.eye(blocks)
    js = MatrixEstimate(value, 0.9 * value, 1.1 * value, "gauss")
    names = [f"a.very.long.shared.prefix.of.the.modules.{i}.weight" for i in range(blocks)]
    plot_js(names, js, NONE if blocks == 1 else bar(0.4, 0.04), [], tmp_path / f"js.{suffix}")
    assert (tmp_path / f"js.{suffix}").stat().st_size > 1000


def test_bad_paths_are_refused(tmp_path):
    js = matrix((0.5, 0.1), (0.5, 0.1), (0.5, 0.1))
    with pytest.raises(ConfigurationError, match="image suffix"):
        plot_js("abc", js, NONE, [], tmp_path / "figure.xyz")
    with pytest.raises(RunFolderError, match="could not be written"):
        plot_js("abc", js, NONE, [], tmp_path / "missing" / "figure.png")


def drawn_on(ax, **options):
    js = matrix((0.5, 0.02), (0.31, 0.4), (0.21, 0.01))
    return plot_js(("a", "b", "c"), js, bar(0.5, 0.01, "averaged"), [], ax=ax, **options)


def test_given_axes_get_the_distances_and_where_there_are_two_their_errors():
    alone, two = Figure().subplots(), Figure().subplots(1, 2)
    assert drawn_on(alone) is alone and drawn_on(two) is two
    for axes in (alone, two[0]):
        (image,) = axes.images
        assert np.asarray(image.get_array())[0, 1] == 0.5 and axes.get_title().startswith("JS0")
    assert np.asarray(two[1].images[0].get_array())[0, 2] == pytest.approx(0.4)
    with pytest.raises(ConfigurationError, match="3 axes, but the figure has 1 or 2 panels"):
        drawn_on(Figure().subplots(1, 3))


def test_colours_end_where_they_are_told_to():
    for most in (1.0, 0.25):
        axes = drawn_on(Figure().subplots(), vmax=most)
        assert axes.images[0].get_clim() == (0.0, most)
    for wrong in (0.0, float("inf"), "1", None):
        with pytest.raises(ConfigurationError, match="vmax must be"):
            drawn_on(Figure().subplots(), vmax=wrong)


def test_blocks_are_chosen_and_capped(monkeypatch):
    spectra = random_spectra(4)
    chosen = spectra.plot_js(blocks=["layer.3*", "layer.1*"]).axes[0]
    assert [label.get_text() for label in chosen.get_xticklabels()] == ["layer.3/weight", "layer.1/weight"]
    assert np.asarray(chosen.images[0].get_array())[0, 1] == pytest.approx(spectra.js_estimate().value[3, 1])
    monkeypatch.setattr(heat_map, "MOST_BLOCKS", 2)
    capped = spectra.plot_js(figsize=(5.0, 3.0))
    assert "the 2 largest of 4 blocks" in capped.axes[0].get_title()
    assert tuple(capped.get_size_inches()) == (5.0, 3.0)
    with pytest.raises(ConfigurationError, match="none of the blocks"):
        spectra.plot_js(blocks="nothing")
