"""What is going on is said once it lasts, to whoever looks, and costs nothing where nobody does."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator

import pytest

from hvp_engine.system import phases, progress
from hvp_engine.system.phases import Display, Phase, phase, showing, shows_phases
from hvp_engine.system.progress import ProgressReporter


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(phases.time, "monotonic", found)
    return found


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def display(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Display]:
    """The display of an open context, which looks only when it is told to."""
    monkeypatch.setattr(phases, "_LOOKS_EVERY", 1e6)
    with showing(True):
        found = phases._display.get()
        assert found is not None
        yield found


def test_a_short_phase_is_not_shown(display: Display, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with phase("hashing"):
        clock.now = 0.9
        display.look(clock.now)
    display.look(5.0)
    assert capsys.readouterr().err == ""


def test_a_phase_that_lasts_is_shown_once_and_then_now_and_again(
    display: Display, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with phase("hashing"):
        for now in range(23):
            clock.now = float(now)
            display.look(clock.now)
    assert capsys.readouterr().err.splitlines() == ["hashing, 0:01", "hashing, 0:11", "hashing, 0:21"]


def test_the_innermost_phase_that_lasts_is_shown(
    display: Display, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with phase("testing"), phase("reading"):
        clock.now = 2.0
        display.look(2.0)
    assert capsys.readouterr().err == "reading, 0:02\n"


def test_a_share_that_is_done_gives_the_time_that_is_left(display: Display, clock: Clock) -> None:
    with phase("reading") as now:
        assert now.text(0.0) == "reading, 0:00"
        clock.now = 10.0
        now.reach(0.25)
        assert now.text(10.0) == "reading, 0:10, 25%, ETA 0:30"
        now.reach(0.1)  # never back
        now.reach(7.0)
        assert "100%, ETA 0:00" in now.text(10.0)


def test_nothing_is_shown_and_no_thread_runs_without_progress(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = threading.active_count()
    for asked in (False, None):  # none: there is no terminal
        with showing(asked), phase("hashing") as now:
            clock.now += 100.0
            now.reach(0.5)
            assert threading.active_count() == before
    assert capsys.readouterr().err == ""


def test_a_quiet_job_within_a_shown_one_stays_quiet(display: Display, clock: Clock) -> None:
    with phase("outer"), showing(False), phase("inner"):
        assert [shown.name for shown in display._phases] == ["outer"]


def test_a_shown_job_within_a_shown_one_uses_its_display(display: Display) -> None:
    with showing(True), phase("inner"):
        assert phases._display.get() is display and [shown.name for shown in display._phases] == ["inner"]


def test_the_watching_thread_ends_with_the_context_also_by_an_exception(clock: Clock) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), showing(True), phase("hashing"):
        assert threading.active_count() == before + 1
        raise KeyboardInterrupt
    assert threading.active_count() == before
    assert phases._display.get() is None


def test_on_a_terminal_one_line_is_written_over_and_gone_in_the_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(phases, "_LOOKS_EVERY", 1e6)
    with showing(None):
        display = phases._display.get()
        assert display is not None
        with phase("hashing [red]names[/red]"):
            clock.now = 2.0
            display.look(2.0)
            live = display._live
            assert live is not None and live.tasks[0].description == "hashing [red]names[/red], 0:02"
            with phase("reading"):
                display.look(2.5)
                assert display._live is live  # it stays for the moment until the inner one is one that lasts
                clock.now = 4.0
                display.look(4.0)
                assert display._live is live and live.tasks[0].description == "reading, 0:02"
        assert display._live is None  # at once: a result may be printed next


def test_beside_a_bar_a_phase_is_shown_at_the_end_of_the_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(phases, "_LOOKS_EVERY", 1e6)
    with showing(None), ProgressReporter("slq", 100, None) as reporter:
        display = phases._display.get()
        assert display is not None and reporter._bar is not None
        reporter.advance(1, "step 1 of 100")
        with phase("writing a checkpoint"):
            clock.now = 3.0
            display.look(3.0)
            (task,) = reporter._bar.tasks
            assert task.fields["detail"] == "writing a checkpoint, 0:03" and display._live is None
        assert task.fields["detail"] == "step 1 of 100"


def test_a_phase_in_which_a_bar_begins_is_not_told_beside_it(
    display: Display, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with phase("the whole part"):
        clock.now = 2.0
        with ProgressReporter("slq", 10, True):
            display.look(clock.now)
            with phase("hashing"):
                clock.now = 4.0
                display.look(clock.now)
            display.look(clock.now)
            assert [line for line in capsys.readouterr().err.splitlines() if "slq" not in line] == ["hashing, 0:02"]
        display.look(clock.now)
        assert "the whole part, 0:04" in capsys.readouterr().err


def test_a_long_step_is_told_in_a_log(display: Display, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with phase("the whole part"), ProgressReporter("slq", 4, True) as reporter:
        clock.now = 20.0
        reporter.advance(1, "step 1 of 4")
        told = []
        for clock.now in (30.0, 49.0, 50.0, 60.0, 80.0):
            display.look(clock.now)
            told.append(capsys.readouterr().err)
    assert "25% after 0:20, ETA 1:00  step 1 of 4" in told[0]
    assert told[1] == told[3] == ""
    assert "25% after 0:50" in told[2] and "25% after 1:20" in told[4]


def test_a_decorated_function_is_shown_by_its_own_argument(clock: Clock) -> None:
    seen: list[bool] = []

    @shows_phases
    def job(size: int, progress: bool | None = None) -> int:
        """Do it."""
        seen.append(phases._display.get() is not None)
        return size

    assert job(3) == 3 and job(4, True) == 4 and job(5, progress=True) == 5
    assert seen == [False, True, True] and job.__doc__ == "Do it."


def test_a_phase_may_be_a_decorator_and_is_new_in_every_call(display: Display) -> None:
    names: list[list[Phase]] = []

    @phase("hashing")
    def work() -> None:
        names.append(list(display._phases))

    work()
    work()
    assert [shown.name for call in names for shown in call] == ["hashing", "hashing"]
    assert names[0][0] is not names[1][0] and not display._phases


def test_a_step_longer_than_half_a_minute_has_a_time_that_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressReporter("slq", 10, None) as reporter:
        assert reporter.left == float("inf")
        for step in range(1, 4):
            clock.now = 120.0 * step
            reporter.advance(1)
        assert reporter.left == pytest.approx(840.0)
