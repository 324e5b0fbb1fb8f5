"""Progress as a user sees it: names shown literally, resumed work counted as done but not as speed."""

from __future__ import annotations

import io
import sys

import pytest
from strange_names import STRANGE_NAMES

from hvp_engine.system import progress
from hvp_engine.system.progress import ProgressReporter


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_details_are_shown_literally_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "4000")
    monkeypatch.setenv("TERM", "dumb")  # no colours and no cursor: every escape sequence is a stranger's
    with ProgressReporter("slq [red]label[/red]", len(STRANGE_NAMES), True) as reporter:
        for name in STRANGE_NAMES[:20]:
            reporter.advance(1, name)
            reporter._bar.refresh()
            assert progress.printable(name) in reporter._bar.tasks[0].fields["detail"]
    shown = terminal.getvalue()
    assert "slq [red]label[/red]" in shown
    assert "[red]markup[/red]" in shown or "\x1b[31m" not in shown
    for escape in ("\x1b[31m", "\x1b]0;", "\x07", "\x9b", "\u202e"):
        assert escape not in shown


def test_details_are_shown_literally_in_lines(monkeypatch):
    lines = io.StringIO()
    monkeypatch.setattr(sys, "stderr", lines)
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    with ProgressReporter("slq", len(STRANGE_NAMES), True) as reporter:
        for name in STRANGE_NAMES:
            reporter.advance(1, name)
    assert len(lines.getvalue().splitlines()) == len(STRANGE_NAMES) + 1
    assert all(line.isprintable() for line in lines.getvalue().splitlines())


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
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressReporter("job", 100, True) as reporter:
        assert reporter._bar is not None
        clock.now = 60.0  # what was there was read
        reporter.resume(50)
        for now in (70.0, 80.0, 90.0):
            clock.now = now
            reporter.advance(5)
        (task,) = reporter._bar.tasks
        assert task.completed == 65
        assert reporter.left == pytest.approx(70.0)


def test_what_is_left_may_change_as_the_work_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with ProgressReporter("job", 0, True) as reporter:
        reporter.expect(100)
        clock.now = 10.0
        reporter.advance(10)
        assert "10% after 0:10, ETA 1:30" in capsys.readouterr().err
        reporter.expect(20)  # most of it turned out to be unnecessary
        clock.now = 20.0
        reporter.advance(10)
        assert "67% after 0:20, ETA 0:10" in capsys.readouterr().err
