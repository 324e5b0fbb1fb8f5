"""The figure of densities."""

import sys
import threading

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from random_spectra import random_spectra
from synthetic_spectra import known_block, with_outlier

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
@pytest.mark.parametrize(("blocks", "probes", "scale"), [(1, 1, 1.0), (1, 3, 1e-9), (5, 3, 1e9)])
def test_figures_are_written(tmp_path, suffix, blocks, probes, scale):
    spectra = random_spectra(blocks, probes, scale, prefix="a.very.long.shared.prefix.of.the.modules")
    spectra.plot(tmp_path / f"spectra.{suffix}")
    head = (tmp_path / f"spectra.{suffix}").read_bytes()[:8]
    assert head.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])


def test_figure_of_a_zero_block_is_written(tmp_path):
    zero = Spectrum.from_tridiagonal("zero", 10, np.zeros((2, 1)), np.zeros((2, 0)), [1, 1])
    Spectra([zero]).plot(tmp_path / "zero.png")
    assert (tmp_path / "zero.png").stat().st_size > 1000


def test_figures_name_the_blocks_and_facts(tmp_path):
    random_spectra(3).plot(tmp_path / "s.svg")
    text = (tmp_path / "s.svg").read_text().replace("\u00a0", " ")
    facts = ("4–5 Lanczos steps", "3 probes", "seed 3", "precision fp64", "band: 95 %", "reading blended")
    for word in ("layer.2/weight", "n = 3,000", *facts):
        assert word in text


def test_figures_name_tolerance_and_readings(tmp_path):
    one = Spectrum.from_tridiagonal("a", 50, [[1.0, 2.0]], [[0.5]], [2], residuals=[0.3])
    small = Spectrum.exact("b", 3, [1.0, 2.0, 4.0])
    Spectra([one, small], {"config": {"tolerance": {"w1": 0.02, "js": 0.01}}}).plot(tmp_path / "s.svg")
    text = (tmp_path / "s.svg").read_text().replace("\u00a0", " ")
    for fact in ("2 Lanczos steps", "1 probe,", "tolerance w1=0.02 js=0.01", "reading blended and exact"):
        assert fact in text


def test_bad_figure_paths_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="image suffix"):
        random_spectra(1).plot(tmp_path / "figure.xyz")
    with pytest.raises(RunFolderError, match="could not be written"):
        random_spectra(1).plot(tmp_path / "missing" / "figure.png")


def marks_of(axes, colour):
    """Where the ticks of one colour are at the foot of a panel."""
    lines = [one for one in axes.collections if type(one).__name__ == "LineCollection" and len(one.get_segments())]
    mine = [one for one in lines if mpl.colors.to_hex(one.get_colors()[0]) == colour]
    return [start[0] for one in mine for start, end in one.get_segments() if start[1] != end[1]]


def area(x, y):
    return float(0.5 * (y[1:] + y[:-1]) @ np.diff(x))


def panels_of(figure):
    return [axes for axes in figure.axes if axes.axison]


KNOWN, LIGHT = "#b2182b", mpl.colors.to_hex("0.45")


@pytest.mark.parametrize("n", [1_000_000, 10**9])
@pytest.mark.parametrize("scale", ["linear", "symlog", "log"])
def test_an_outlier_of_a_large_block_is_marked_and_reached_whatever_it_weighs(n, scale):
    spectrum = with_outlier(n)
    axes = spectrum.plot(scale=scale).axes[0]
    value = spectrum.largest().value
    assert value == pytest.approx(37.0, abs=0.01)
    assert axes.get_xlim()[1] > value
    assert any(abs(mark - 37.0) < 0.01 for mark in marks_of(axes, KNOWN))
    curve = max(axes.lines, key=lambda line: len(line.get_xdata()))
    near = np.abs(np.asarray(curve.get_xdata()) - 37.0) < 2.0 * spectrum.default_sigma
    assert np.asarray(curve.get_ydata())[near].max() > axes.get_ylim()[0]  # the bump of one eigenvalue is seen


def test_a_value_that_may_be_a_single_one_is_marked_and_reached_too():
    spectrum = with_outlier(steps=4, probes=3, seed=2)
    rule = spectrum.reading.variance_reduced
    light = rule.nodes[~rule.accepted & (rule.weights * 3 * rule.numel < 4.0)]
    assert light.size and light.max() > 30.0
    axes = spectrum.plot().axes[0]
    assert marks_of(axes, LIGHT) == pytest.approx(np.sort(light))
    low, high = axes.get_xlim()
    assert low < spectrum.smallest().value and spectrum.largest().value < high


def test_extremes_have_triangles_with_their_bars_where_the_table_says():
    spectrum = with_outlier(steps=12)
    axes = spectrum.plot().axes[0]
    triangles = sorted(line.get_xdata()[0] for line in axes.lines if line.get_marker() == "v")
    assert triangles == pytest.approx([spectrum.smallest().value, spectrum.largest().value])
    bars = [one.get_segments()[0] for one in axes.collections if len(getattr(one, "get_segments", list)()) == 1]
    ends = [float(segment[:, 0].max()) for segment in bars if np.ptp(segment[:, 0]) > 0.0]
    assert any(end == pytest.approx(spectrum.largest().high) for end in ends)


@pytest.mark.parametrize("scale", ["linear", "symlog", "log"])
def test_endless_bars_leave_the_panel(scale):
    spectrum = Spectrum.from_tridiagonal("w", 5000, [[3.0]], [[]], [1])
    assert not np.isfinite(spectrum.largest().high)
    axes = spectrum.plot(scale=scale).axes[0]
    lines = [one for one in axes.collections if hasattr(one, "get_segments")]
    ends = [segment[:, 0].max() for one in lines for segment in one.get_segments()]
    assert max(ends) > axes.get_xlim()[1]


def test_known_eigenvalues_are_ticked_and_bands_drawn_where_there_are_any():
    exact = Spectrum.exact("b", 5, [1.0, 2.0, 4.0, 8.0, 16.0])
    assert marks_of(exact.plot().axes[0], KNOWN) == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0])
    # Its last residual is not known.
    unknown = Spectrum.from_tridiagonal("a", 5000, [[1.0, 1.5, 2.0]], [[0.5, 0.5]], [3])
    assert not np.isfinite(unknown.density_band().low).any()
    bands = [
        [type(one).__name__ for one in one.plot().axes[0].collections]
        for one in (unknown, random_spectra(1)["layer.0/weight"])
    ]
    assert "FillBetweenPolyCollection" not in bands[0] and "FillBetweenPolyCollection" in bands[1]


def test_the_negative_part_can_be_read_on_logarithmic_axes():
    bulk = np.concatenate((-np.geomspace(1e-3, 8.0, 200), np.geomspace(1e-3, 20.0, 400)))
    spectrum = known_block("tails", bulk, n=100_000)
    symlog = spectrum.plot(scale="symlog").axes[0]
    assert symlog.get_xscale() == "symlog" and symlog.get_xlim()[0] < -8.0
    ticks = [tick for tick in symlog.get_xticks() if symlog.get_xlim()[0] < tick < symlog.get_xlim()[1]]
    assert 0.0 in ticks and min(ticks) <= -1.0 and max(ticks) >= 10.0 and len(ticks) <= 9
    assert len(symlog.get_xticks(minor=True)) > 8
    threshold = symlog.xaxis.get_transform().linthresh
    assert 0.4 * spectrum.default_sigma < threshold <= spectrum.default_sigma  # nothing finer is to be seen
    log = spectrum.plot(scale="log").axes[0]
    dashed = [line for line in log.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1 and np.asarray(dashed[0].get_xdata()).max() > 8.0
    band = spectrum.density_band()
    share = area(band.points, np.where(band.points < 0.0, band.value, 0.0))
    x, y = (np.asarray(part)[::-1] for part in dashed[0].get_data())
    assert area(x, y) == pytest.approx(share, rel=0.4)  # but for what is nearer to zero than a sigma


def test_sigma_is_that_of_the_gaussians_and_named():
    spectrum = Spectrum.exact("b", 2, [0.0, 10.0])
    figure = spectrum.plot(sigma=0.5)
    x, y = figure.axes[0].lines[1].get_data()
    assert y.max() == pytest.approx(0.5 / (0.5 * np.sqrt(2.0 * np.pi)), rel=1e-2)
    assert y[np.abs(x - 0.5).argmin()] == pytest.approx(y.max() * np.exp(-0.5), rel=0.05)
    assert "σ = 0.5" in figure.get_supxlabel().replace("\u00a0", " ")


def test_blocks_are_chosen_by_name_and_glob_in_the_order_asked_for():
    spectra = random_spectra(5)
    figure = spectra.plot(blocks=["layer.3/weight", "layer.[01]*"], figsize=(6.0, 2.0))
    titles = [axes.get_title().partition("\n")[0] for axes in panels_of(figure)]
    assert titles == ["layer.3/weight", "layer.0/weight", "layer.1/weight"]
    assert tuple(figure.get_size_inches()) == (6.0, 2.0)
    assert len(panels_of(spectra.plot(blocks="layer.2/weight"))) == 1


def test_panels_share_their_axis_on_demand():
    spectra = Spectra([Spectrum.exact("a", 2, [0.0, 1.0]), Spectrum.exact("b", 2, [-3.0, 100.0])])
    for scale in ("linear", "symlog", "log"):
        first, second = panels_of(spectra.plot(share_x=True, scale=scale))
        assert first.get_xlim() == second.get_xlim() and first.get_xlim()[1] > 100.0
        apart = [axes.get_xlim() for axes in panels_of(spectra.plot(scale=scale))]
        assert apart[0] != apart[1]


def test_given_axes_are_drawn_on_and_returned():
    figure = Figure()
    axes = figure.subplots(1, 2)
    spectra = random_spectra(2)
    assert spectra.plot(ax=axes) is axes
    assert [one.get_title().partition("\n")[0] for one in axes] == list(spectra)
    assert {one.get_xlabel() for one in axes} == {"eigenvalue"}
    single = Figure().subplots()
    assert spectra["layer.0/weight"].plot(ax=single) is single and single.lines
    assert spectra.plot(ax=single, blocks="layer.1*") is single


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "layer.9*"}, "none of the blocks"),
        ({"blocks": []}, "blocks is empty"),
        ({"blocks": [3]}, "names of blocks or globs"),
        ({"blocks": 3}, "names of blocks or globs"),
        ({"sigma": 0.0}, "sigma must be"),
        ({"sigma": float("nan")}, "sigma must be"),
        ({"sigma": "0.1"}, "sigma must be"),
        ({"sigma": 1e16}, "sigma=1e\\+16 is too wide for eigenvalues"),
        ({"figsize": (0.05, 3.0)}, "figsize must be width and height in inches, 0.5 to 400"),
        ({"scale": "cubic"}, "'linear', 'symlog', 'log'"),
        ({"figsize": (3.0,)}, "figsize must be"),
        ({"figsize": (0.0, 3.0)}, "figsize must be"),
        ({"figsize": "large"}, "figsize must be"),
        ({"ax": "axes"}, "axes of matplotlib"),
        ({"ax": [Figure()] * 3}, "axes of matplotlib"),
        ({"ax": Figure().subplots()}, "1 axes, but the figure has 3 panels"),
        ({"ax": Figure().subplots(2, 2)}, "4 axes, but the figure has 3 panels"),
        ({"ax": Figure().subplots(1, 3), "figsize": (3.0, 3.0)}, "leave them out"),
        ({"ax": Figure().subplots(1, 3), "path": "a.png"}, "leave them out"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        random_spectra(3).plot(**options)


def test_neither_pyplot_nor_anybodys_settings_are_touched(tmp_path):
    before, imported = dict(mpl.rcParams.copy()), "matplotlib.pyplot" in sys.modules
    with mpl.rc_context({"text.color": "white", "axes.facecolor": "black", "xtick.labelsize": 30.0}):
        mine = dict(mpl.rcParams.copy())
        figure = random_spectra(1).plot(tmp_path / "a.png", sigma=0.1)
        figure.savefig(tmp_path / "b.png")
        assert dict(mpl.rcParams.copy()) == mine
    figure.savefig(tmp_path / "c.png")
    assert dict(mpl.rcParams.copy()) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert (pyplot is not None) == imported and (pyplot is None or not pyplot.get_fignums())
    first, *others = [(tmp_path / f"{name}.png").read_bytes() for name in "abc"]
    assert all(other == first for other in others)  # drawn again it looks the same, whatever is set then
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_threads_that_draw_at_once_leave_the_settings_as_they_were():
    before = dict(mpl.rcParams.copy())
    spectra = random_spectra(1)
    spectra.js0_estimate()
    threads = [threading.Thread(target=spectra.plot) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(mpl.rcParams.copy()) == before


def test_too_many_blocks_are_the_largest_ones(monkeypatch):
    from hvp_engine.results.figures import densities

    monkeypatch.setattr(densities, "MOST_PANELS", 2)
    figure = random_spectra(4).plot()
    titles = [axes.get_title().partition("\n")[0] for axes in panels_of(figure)]
    assert titles == ["layer.2/weight", "layer.3/weight"]
    assert "the 2 largest of 4 blocks" in figure.get_supxlabel().replace("\u00a0", " ")
