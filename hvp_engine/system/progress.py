"""Progress of long work: a live bar on a terminal and in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from hvp_engine.errors import printable
from hvp_engine.system.formatting import format_clock
from hvp_engine.system.notebook import NotebookBar, in_notebook
from hvp_engine.system.pace import Pace
from hvp_engine.system.phases import beside_bar
from hvp_engine.system.visible import is_visible

_LINE_EVERY = 10.0  # seconds between lines where there is no terminal
_REMINDED_AFTER = 30.0  # seconds without a line, in the middle of a long step
_CHANGE_EVERY = 0.5  # seconds between changes of a notebook's bar


class ProgressReporter:
    """Display of done work, elapsed time and the time that remains, on standard error."""

    def __init__(self, label: str, total: int, enabled: bool | None) -> None:
        """Prepare; show nothing before ``with``.

        Args:
            label: What is being done.
            total: Amount of work, in any unit.
            enabled: True shows, False hides; None shows on a terminal and in a notebook only, if nothing around says.
        """
        self._label, self._total, self._done, self._detail = printable(label), total, 0, ""
        terminal = sys.stderr.isatty()
        notebook = in_notebook()
        self._enabled = is_visible(enabled, otherwise=terminal or notebook)
        self._notebook = NotebookBar() if self._enabled and notebook else None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if self._enabled and terminal and not notebook:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                _Remaining(self),
                TextColumn("{task.fields[detail]}", markup=False),
                console=Console(stderr=True),
            )
        self._started = self._last = time.monotonic()
        self._pace = Pace(self._started)
        self._stack = ExitStack()

    def __enter__(self) -> ProgressReporter:
        """Start showing."""
        self._started = self._last = time.monotonic()
        self._pace.begin(self._started)
        if self._notebook is not None:
            self._line("")
        if self._enabled:
            self._stack.enter_context(beside_bar(self))
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, completed=self._done, detail="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing; lines end with a summary when the work was completed."""
        if self._bar is not None:
            self._bar.stop()
        self._stack.close()
        if self._bar is None and self._enabled and kind is None:
            self._line(f"done in {format_clock(time.monotonic() - self._started)}")

    @property
    def left(self) -> float:
        """Seconds that the rest takes at the speed of the last steps; infinity where that is not known."""
        return self._pace.left(self._total - self._done, time.monotonic())

    def resume(self, amount: int) -> None:
        """Count work that an earlier run finished: done, but no measure of this run's speed."""
        self._done += amount
        if amount:
            self._pace.begin(time.monotonic())
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self._done)

    def expect(self, left: int) -> None:
        """Say how much work is left, where that changes as it goes."""
        self._total = self._done + left
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self._total)

    def advance(self, amount: int, detail: str = "") -> None:
        """Report finished work.

        Args:
            amount: Work done since the last call.
            detail: A few words on where the work is.
        """
        now = time.monotonic()
        self._done += amount
        if amount:
            self._pace.add(amount, now)
        self._detail = printable(detail)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, detail=self._detail)
            return
        if self._enabled and now - self._last >= (_LINE_EVERY if self._notebook is None else _CHANGE_EVERY):
            self._tell(now)

    def remind(self, now: float) -> None:
        """Print where the work is once more, if a step takes long."""
        if self._bar is None and self._notebook is None and now - self._last >= _REMINDED_AFTER:
            self._tell(now)

    def _tell(self, now: float) -> None:
        self._last = now
        share = 100.0 * self._done / self._total if self._total else 100.0
        clocks = f"{format_clock(now - self._started)}, ETA {format_clock(self.left)}"
        self._line(f"{share:3.0f}% after {clocks}  {self._detail}")

    def note(self, text: str) -> None:
        """Show what is being done beside the steps, in place of the detail; an empty text brings that back."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, detail=text or self._detail)

    def reach(self, done: int) -> None:
        """Report that so much of the work is finished in all."""
        if done > self._done:
            self.advance(done - self._done)

    def _line(self, text: str) -> None:
        line = f"{self._label}: {text.rstrip()}"
        if self._notebook is not None:
            self._notebook.show(self._done / self._total if self._total else 0.0, line)
        else:
            print(line, file=sys.stderr, flush=True)


class _Remaining(ProgressColumn):
    """The time that remains, by the reporter's own measure: rich's forgets steps of more than half a minute."""

    max_refresh = 0.5

    def __init__(self, reporter: ProgressReporter) -> None:
        super().__init__()
        self._reporter = reporter

    def render(self, task: Task) -> Text:
        return Text(format_clock(self._reporter.left), style="progress.remaining")
