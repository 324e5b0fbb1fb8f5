"""Runs of one training in order, and the figures of what changes between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic_spectra import with_outlier

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.evolution import Evolution
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum

STEPS = (0, 100, 200, 1000)
TOPS = (20.0, 25.0, 31.0, 37.0)


def run_at(step: int, top: float, **facts: object) -> Spectra:
    """A block whose outlier moves, and a small one; there is no small one at step 200."""
    small = [] if step == 200 else [Spectrum.exact("head.bias", 3, [-1.0, 0.5, 0.1 * top])]
    return Spectra([with_outlier(at=top, steps=20, seed=step), *small], {"config": {"seed": 0}, **facts})


@pytest.fixture(scope="module")
def runs() -> list[Spectra]:
    return [run_at(*pair) for pair in zip(STEPS, TOPS, strict=True)]


@pytest.fixture(scope="module")
def evolution(runs: list[Spectra]) -> Evolution:
    names = [f"step-{step}" for step in STEPS]
    return Evolution.of(runs[::-1], names[::-1])


def shown(figure: Figure) -> dict[str, object]:
    return {axes.get_title(): axes for axes in figure.axes if axes.axison}


def test_runs_are_in_the_order_of_the_numbers_in_their_names(evolution: Evolution) -> None:
    assert evolution.steps == STEPS and evolution.numbered
    assert evolution.names == ("step-0", "step-100", "step-200", "step-1000")
    assert evolution.blocks == ["layer.weight", "head.bias"]
    assert evolution.spectra("head.bias")[2] is None


def test_a_training_that_says_its_step_is_believed_rather_than_its_name() -> None:
    facts = [{"training": {"step": step, "metrics": {"hessian/two_over_lr": 2.0}}} for step in (7, 5)]
    found = Evolution.of([run_at(1, 9.0, **one) for one in facts], ["a-1", "a-2"])
    assert found.steps == (5, 7) and found.names == ("a-2", "a-1") and found.edge == [2.0, 2.0]


def test_names_without_numbers_stay_in_their_order(runs: list[Spectra]) -> None:
    found = Evolution.of(runs[:2], ["late", "early"])
    assert found.steps == (0, 1) and found.names == ("late", "early") and not found.numbered
    axes = found.plot("trace").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["late", "early"]


def test_what_is_no_evolution_is_refused(runs: list[Spectra], evolution: Evolution) -> None:
    with pytest.raises(ConfigurationError, match="two or more"):
        Evolution.of(runs[:1], ["a"])
    fisher = Spectra(runs[0].values(), {"config": {"matrix": "fisher"}})
    with pytest.raises(ConfigurationError, match="different matrices"):
        Evolution.of([runs[0], fisher], ["1", "2"])
    with pytest.raises(ConfigurationError, match="no figure 'colour'"):
        evolution.plot("colour")
    with pytest.raises(ConfigurationError, match="single block"):
        Evolution.of([Spectra([run["layer.weight"]]) for run in runs[:2]], "12").plot("js0")


def test_extremes_are_drawn_with_their_bars(evolution: Evolution) -> None:
    panels = shown(evolution.plot("extremes"))
    assert list(panels) == evolution.blocks
    largest, smallest = panels["layer.weight"].containers[0], panels["layer.weight"].containers[-1]
    x, y = largest.lines[0].get_data()
    assert tuple(x) == STEPS and y == pytest.approx(TOPS, abs=0.05)
    assert smallest.lines[0].get_ydata() == pytest.approx(
        [s.smallest().value for s in evolution.spectra("layer.weight")]
    )
    (low, high), ends = panels["layer.weight"].get_ylim(), [s.smallest() for s in evolution.spectra("layer.weight")]
    assert low < min(end.low for end in ends) and high > 37.0
    gap = panels["head.bias"].containers[0].lines[0].get_ydata()
    assert np.isnan(gap[2]) and np.isfinite(gap[[0, 1, 3]]).all()


def test_traces_have_bars_of_their_length(evolution: Evolution) -> None:
    axes = shown(evolution.plot("trace", blocks="layer*", figsize=(3.0, 2.0)))["layer.weight"]
    (bars,) = axes.containers[0].lines[2]
    for segment, spectrum in zip(bars.get_segments(), evolution.spectra("layer.weight"), strict=True):
        assert segment[:, 1] == pytest.approx([spectrum.trace().low, spectrum.trace().high])


def test_distances_are_those_of_all_pairs_and_of_each_block(evolution: Evolution) -> None:
    panels = shown(evolution.plot("js0"))
    assert list(panels) == ["all pairs of blocks", "layer.weight", "head.bias"]
    drawn = panels["all pairs of blocks"].containers[0].lines[0].get_ydata()
    assert drawn[0] == pytest.approx(evolution.runs[0].js0_estimate().value) and np.isnan(drawn[2])


def test_a_density_over_steps_reaches_what_each_of_them_reaches(evolution: Evolution) -> None:
    panels = shown(evolution.plot("density", scale="symlog"))
    axes = panels["layer.weight"]
    assert axes.get_ylim()[1] > 37.0 and axes.get_yscale() == "symlog"
    (mesh,) = axes.collections
    density = np.asarray(mesh.get_array())
    assert density.shape[1] == len(STEPS) and density.max() <= mesh.norm.vmax
    assert tuple(axes.lines[1].get_ydata()) == pytest.approx(TOPS, abs=0.05)  # where they are, whatever the colours
    shared = shown(evolution.plot("density", share_x=True))
    assert shared["layer.weight"].get_ylim() == shared["head.bias"].get_ylim()


def test_uneven_steps_are_on_a_logarithmic_axis(runs: list[Spectra], evolution: Evolution) -> None:
    assert evolution.plot("trace").axes[0].get_xscale() == "symlog"
    even = Evolution.of(runs[:3], ["1", "2", "3"])
    assert even.plot("trace").axes[0].get_xscale() == "linear"


def test_the_edge_of_stability_is_drawn_for_the_whole_model_where_it_is_near() -> None:
    def found(edge: float) -> Evolution:
        facts = {"training": {"step": 1, "metrics": {"hessian/two_over_lr": edge}}}
        later = {"training": {"step": 2, "metrics": {"hessian/two_over_lr": edge}}}
        whole = Spectrum.exact("full", 3, [0.0, 1.0, 8.0])
        return Evolution.of([Spectra([whole], facts), Spectra([whole], later)], "12")

    near, far = (found(edge).plot("extremes").axes[0] for edge in (10.0, 1e4))
    dashed = [line for line in near.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata().tolist() for line in dashed] == [[10.0, 10.0]] and near.get_ylim()[1] > 10.0
    assert far.get_ylim()[1] < 20.0


def test_folders_are_read_and_foreign_ones_refused(tmp_path: Path, runs: list[Spectra]) -> None:
    for name, spectra in zip(("step-000020", "step-000003"), runs, strict=False):
        spectra.save(tmp_path / name)
    found = Evolution.load([tmp_path / "step-000020", tmp_path / "step-000003"])
    assert found.steps == (3, 20) and list(found.runs[0]) == list(runs[1])
    with pytest.raises(RunFolderError):
        Evolution.load([tmp_path / "step-000020", tmp_path / "step-000004"])


def test_given_axes_are_drawn_on(evolution: Evolution) -> None:
    axes = Figure().subplots(1, 2)
    assert evolution.plot("extremes", ax=axes) is axes
    assert axes[0].get_xlabel() == "step" and axes[0].get_ylabel() == "eigenvalue"


@pytest.mark.parametrize("scale", ["linear", "symlog", "log"])
def test_endless_bars_leave_the_panel(scale: str) -> None:
    spectrum = Spectrum.from_tridiagonal("w", 5000, [[3.0]], [[]], [1])
    assert not np.isfinite(spectrum.largest().high)
    axes = Evolution.of([Spectra([spectrum]), Spectra([spectrum])], "12").plot("extremes", scale=scale).axes[0]
    (bars,) = axes.containers[0].lines[2]
    assert all(segment[:, 1].max() > axes.get_ylim()[1] for segment in bars.get_segments())
