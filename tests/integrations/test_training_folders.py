"""Run folders of a training: what is in them, and what becomes of them when it is resumed or takes another course."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import LOSS, OPTIONS, PROBE, Course, network, stepped, train
from typer.testing import CliRunner

import hvp_engine as he
from hvp_engine.cli import app
from hvp_engine.integrations import SpectrumLogger
from hvp_engine.integrations.budget import Budget

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
    assert "step-000002 holds another job (" in caplog.messages[-1]
    assert f"It is kept in {kept}" in caplog.messages[-1] and "Choose" not in caplog.messages[-1]
    measured(tmp_path)
    assert sorted(path.name for path in (tmp_path / ".replaced").iterdir()) == ["1", "2"]


def test_another_rate_moves_the_edge_of_a_network_measured_before(tmp_path: Path) -> None:
    measured(tmp_path, steps=1)
    measured(tmp_path, steps=1, rate=0.5)
    metrics = he.Spectra.load(tmp_path / "step-000000").manifest["training"]["metrics"]
    assert metrics["hessian/two_over_lr"] == 4.0


def test_numbers_of_a_step_that_is_read_are_those_asked_for_now(tmp_path: Path) -> None:
    out = tmp_path / "spectra"
    exact: dict[str, Any] = {"every": 1, "tolerance": 0.02}  # small blocks are then multiplied out
    model = network()
    first = SpectrumLogger(model, LOSS, PROBE, top=1, out=out, **exact).step(0, stepped(model))
    assert first is not None and {"hessian/preconditioned_largest", "hessian/preconditioned_edge"} <= set(first)
    rate = torch.optim.SGD(model.parameters(), 0.5)
    again = SpectrumLogger(model, LOSS, PROBE, top=2, out=out, **exact).step(0, rate)
    assert again is not None
    assert "hessian/largest_2" in again and again["hessian/seconds"] == first["hessian/seconds"]
    assert again["hessian/two_over_lr"] == 4.0
    assert not [name for name in again if "preconditioned" in name]
    assert again["hessian/largest"] == first["hessian/largest"]
    stored = he.Spectra.load(out / "step-000000").manifest["training"]["metrics"]
    assert set(stored) == set(again) - {TIMED}


def test_a_step_measured_for_the_first_time_sets_aside_steps_of_another_schedule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured(tmp_path)
    with caplog.at_level(logging.WARNING):
        train({**OPTIONS, "every": [0, 1, 3], "out": tmp_path}, rate=0.1, steps=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".replaced",
        "step-000000",
        "step-000001",
        "step-000003",
    ]
    assert sorted(path.name for path in (tmp_path / ".replaced" / "1").iterdir()) == ["step-000002", "step-000004"]
    assert "Step 1 was measured for the first time" in caplog.messages[-1]


def test_another_network_at_a_step_without_time_sets_it_aside_and_the_same_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(tmp_path)
    every_step = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(Budget, "allows", lambda budget: budget.spent == 0.0)
    assert measured(tmp_path).logger.skipped == [2, 4]  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == every_step
    measured(tmp_path, rate=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".replaced", "step-000000"]
    assert sorted(path.name for path in (tmp_path / ".replaced" / "1").iterdir()) == ["step-000002", "step-000004"]


def test_a_later_step_of_another_course_sets_aside_what_was_passed_over_before_it(tmp_path: Path) -> None:
    measured(tmp_path)
    train({**OPTIONS, "every": 4, "out": tmp_path}, rate=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".replaced", "step-000000", "step-000004"]


def test_a_training_resumed_amid_its_course_keeps_what_was_before(tmp_path: Path) -> None:
    model = network()
    for out_of in (0, 2):  # another network from step 2 on
        logger = SpectrumLogger(model, LOSS, PROBE, out=tmp_path, **OPTIONS)
        for step in range(out_of, 5):
            logger.step(step)
        stepped(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".replaced",
        "step-000000",
        "step-000002",
        "step-000004",
    ]
