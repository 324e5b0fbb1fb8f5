"""The command plot: one run with options, and several runs over time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from random_spectra import random_spectra

from hvp_engine import cli
from hvp_engine.cli.kinds import KINDS
from hvp_engine.system.run_files import write_run


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hvp-engine", "plot", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def training(tmp_path: Path) -> Path:
    folder = tmp_path / "RUN"
    for number, step in enumerate((1000, 20, 300)):
        random_spectra(2, scale=1.0 + number).save(folder / f"step-{step:06d}")
    return folder


def test_options_reach_the_figures_that_take_them(
    training: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}
    for name in ("spectra", "js_distance"):
        entry = KINDS["slq"].figures[name]

        def draw(_: object, figure: str = name, **options: object) -> None:
            seen[figure] = options

        monkeypatch.setitem(KINDS["slq"].figures, name, entry._replace(draw=draw))
    run = training / "step-000020"
    options = ("--blocks", "layer.1*", "--blocks", "layer.0*", "--sigma", "0.1", "--scale", "symlog", "--share-x")
    assert call(monkeypatch, str(run), *options, "--figsize", "4,3", "--suffix", "svg") == 0
    common = {"blocks": ["layer.1*", "layer.0*"], "figsize": (4.0, 3.0)}
    assert seen["js_distance"] == {"path": run / "js_distance.svg", **common}
    more = {"sigma": 0.1, "scale": "symlog", "share_x": True}
    assert seen["spectra"] == {"path": run / "spectra.svg", **common, **more}
    assert capsys.readouterr().out.splitlines() == [str(run / "spectra.svg"), str(run / "js_distance.svg")]


def test_several_runs_are_drawn_over_time_into_the_folder_that_has_them(
    training: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (training / "step-002000" / "checkpoint").mkdir(parents=True)
    for _ in range(2):  # the second time the shell names the figures of the first one too
        assert call(monkeypatch, *sorted(map(str, training.iterdir())), "--figsize", "4,2") == 0
        said = capsys.readouterr().out
        assert "step-002000 has no result yet, and is left out." in said
    names = {path.name for path in training.iterdir() if path.is_file()}
    assert names == {f"evolution_{name}.png" for name in ("extremes", "trace", "js0", "density")}


def test_two_runs_are_too_few_for_a_heat_map(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = sorted(map(str, training.iterdir()))[:2]
    assert call(monkeypatch, *runs, "--suffix", "svg", "--blocks", "layer.0*") == 0
    assert not (training / "evolution_density.svg").exists() and (training / "evolution_trace.svg").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--figsize", "large"), "not of the form W,H"),
        (("--figsize", "4"), "figsize must be width and height"),
        (("--sigma", "-1"), "sigma must be"),
        (("--blocks", "nothing"), "none of the blocks"),
        (("--suffix", "xyz"), "image suffix"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    training: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert call(monkeypatch, str(training / "step-000020"), *options) == 1
    assert message in capsys.readouterr().err


def test_runs_that_cannot_be_drawn_together_are_refused(
    training: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(training / f"step-{step}") for step in ("000020", "000300")]
    assert call(monkeypatch, runs[0], str(training / "missing")) == 1
    assert "missing" in capsys.readouterr().err
    write_run(training / "other", {"run": {"config": {"job": "norms"}}})
    assert call(monkeypatch, *runs, str(training / "other")) == 1
    assert "only runs of hvp-engine slq" in capsys.readouterr().err
    assert call(monkeypatch, str(training / "other"), "--sigma", "1") == 0  # which has no figure at all
