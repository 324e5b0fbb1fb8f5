"""Progress of long work: a live bar on a terminal and in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hvp_engine.errors import printable
from hvp_engine.system.formatting import format_clock
from hvp_engine.system.notebook import NotebookBar, in_notebook

_LINE_EVERY = 10.0  # seconds between lines where there is no terminal
_CHANGE_EVERY = 0.5  # seconds between changes of a notebook's bar


class ProgressReporter:
    """Display of done work, elapsed time and the time that remains, on standard error."""

    def __init__(self, label: str, total: int, enabled: bool | None) -> None:
        """Prepare; show nothing before ``with``.

        Args:
            label: What is being done.
            total: Amount of work, in any unit.
            enabled: True shows, False hides, None shows on a terminal and in a notebook only.
        """
        self._label, self._total, self._done, self._resumed = printable(label), total, 0, 0
        terminal = sys.stderr.isatty()
        notebook = in_notebook()
        self._enabled = terminal or notebook if enabled is None else enabled
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
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=Console(stderr=True),
            )
        self._started = self._last = time.monotonic()

    def __enter__(self) -> ProgressReporter:
        """Start showing."""
        self._started = self._last = time.monotonic()
        if self._notebook is not None:
            self._line("")
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
        elif self._enabled and kind is None:
            self._line(f"done in {format_clock(time.monotonic() - self._started)}")

    def resume(self, amount: int) -> None:
        """Count work that an earlier run finished: done, but no measure of this run's speed."""
        self._done += amount
        self._resumed += amount
        if amount and self._bar is not None and self._task is not None:
            self._bar.reset(self._task, completed=self._done)  # its speed is measured from here

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
        self._done += amount
        detail = printable(detail)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, detail=detail)
            return
        now = time.monotonic()
        if self._enabled and now - self._last >= (_LINE_EVERY if self._notebook is None else _CHANGE_EVERY):
            self._last = now
            elapsed = now - self._started
            rate = (self._done - self._resumed) / elapsed
            left = (self._total - self._done) / rate if rate > 0 else float("inf")
            share = 100.0 * self._done / self._total if self._total else 100.0
            self._line(f"{share:3.0f}% after {format_clock(elapsed)}, ETA {format_clock(left)}  {detail}")

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
