"""Run folders of a training: what is in them, and what becomes of them when it is resumed or takes another course."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from trainings import OPTIONS, Course, train
from typer.testing import CliRunner

import hvp_engine as he
from hvp_engine.cli import app

TIMED = "hessian/share_of_time"


def measured(out: Path, **how: Any) -> Course:
    return train({**OPTIONS, "out": out}, **how)


def history(course: Course) -> dict[int, dict[str, float]]:
    assert course.logger is not None
    return {step: {k: v for k, v in found.items() if k != TIMED} for step, found in course.logger.history.items()}


def written(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_every_step_has_an_ordinary_run_folder_with_its_numbers(tmp_path: Path) -> None:
    course = measured(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000", "step-000002", "step-000004"]
    for step, found in history(course).items():
        facts = he.Spectra.load(tmp_path / f"step-{step:06d}").manifest["training"]
        assert facts == {"step": step, "metrics": found}
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "step-000002")])
    assert shown.exit_code == 0 and "full" in shown.output


def test_a_resumed_training_reads_what_was_measured(tmp_path: Path) -> None:
    first = measured(tmp_path, steps=3)
    before = written(tmp_path)
    second = measured(tmp_path)
    assert {path: when for path, when in written(tmp_path).items() if path in before} == before
    assert history(first) == {step: found for step, found in history(second).items() if step < 3}
    assert list(history(second)) == [0, 2, 4]


def test_another_course_sets_aside_its_step_and_all_later_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = measured(tmp_path)
    with caplog.at_level(logging.WARNING):
        second = measured(tmp_path, rate=0.1, steps=3)  # the same network at step 0, another one from then on
    assert sorted(path.name for path in tmp_path.iterdir()) == [".replaced", "step-000000", "step-000002"]
    kept = tmp_path / ".replaced" / "1"
    assert sorted(path.name for path in kept.iterdir()) == ["step-000002", "step-000004"]
    assert he.Spectra.load(kept / "step-000004").manifest["training"]["metrics"] == history(first)[4]
    assert he.Spectra.load(tmp_path / "step-000002").manifest["training"]["metrics"] == history(second)[2]
    assert str(kept) in caplog.messages[-1]
    measured(tmp_path)
    assert sorted(path.name for path in (tmp_path / ".replaced").iterdir()) == ["1", "2"]


def test_another_rate_moves_the_edge_of_a_network_measured_before(tmp_path: Path) -> None:
    measured(tmp_path, steps=1)
    measured(tmp_path, steps=1, rate=0.5)
    metrics = he.Spectra.load(tmp_path / "step-000000").manifest["training"]["metrics"]
    assert metrics["hessian/two_over_lr"] == 4.0
