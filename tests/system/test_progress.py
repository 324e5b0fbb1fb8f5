"""What the progress of a resumed job says."""

from __future__ import annotations

import sys

import pytest

from hvp_engine.system import progress
from hvp_engine.system.progress import ProgressReporter


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_count_resumed_work_as_done_but_not_as_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with ProgressReporter("job", 100, True) as reporter:
        reporter.resume(50)
        clock.now = 20.0
        reporter.advance(10)
    assert "60% after 0:20, ETA 1:20" in capsys.readouterr().err


def test_the_bar_counts_resumed_work_as_done_but_not_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressReporter("job", 100, True) as reporter:
        assert reporter._bar is not None
        clock = Clock()
        reporter._bar.get_time = clock
        reporter.resume(50)
        for now in (10.0, 20.0, 30.0):
            clock.now = now
            reporter.advance(5)
        (task,) = reporter._bar.tasks
        assert task.completed == 65
        assert task.time_remaining == pytest.approx(70.0, abs=1.0)
