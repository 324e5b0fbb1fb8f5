"""What is being done beside the steps that a bar counts, said as soon as it takes more than a moment.

Work that may take long says so where it is, by ``phase("hashing the parameters")``, as a context or as a decorator. It
costs next to nothing where nobody looks. Whoever was asked to show progress opens `showing`: on a terminal one line
then tells what is going on, and elsewhere a line is printed for a phase that lasts, and now and then while it does.
Where a bar is on the terminal already, what is going on is told at its end. A phase in which a bar begins is not told
beside it: the bar tells more.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, Protocol, TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn

from hvp_engine.errors import printable
from hvp_engine.system.formatting import format_clock
from hvp_engine.system.pace import Pace
from hvp_engine.system.visible import is_visible

_PATIENCE = 1.0  # seconds that a phase takes before anything is said of it
_LINE_EVERY = 10.0  # seconds between lines where there is no terminal
_LOOKS_EVERY = 0.25

P = ParamSpec("P")
T = TypeVar("T")


class Bar(Protocol):
    """Whatever shows the steps of a job."""

    def note(self, text: str) -> None:
        """Show a few words beside the steps; none for an empty text."""

    def remind(self, now: float) -> None:
        """Print where the work is, if nothing was printed for long; where there is no terminal."""


class Phase:
    """Something that is being done."""

    def __init__(self, name: str, now: float) -> None:
        """Begin.

        Args:
            name: What is done, in words: "hashing the parameters".
            now: The time.
        """
        self.name, self.began = printable(name), now
        self.said: float | None = None  # when a line was printed last
        self.noted = False  # whether it was shown beside the steps of a bar
        self._share = 0.0
        self._pace = Pace(now)

    def reach(self, share: float) -> None:
        """Report that a share of it is done, 0 to 1."""
        share = min(max(share, self._share), 1.0)
        self._pace.add(share - self._share, time.monotonic())
        self._share = share

    def text(self, now: float) -> str:
        """Put into words what is done, how much of it, for how long, and for how long still."""
        shown = f"{self.name}, {format_clock(now - self.began)}"
        if not self._share:
            return shown
        return f"{shown}, {100 * self._share:.0f}%, ETA {format_clock(self._pace.left(1.0 - self._share, now))}"


class Display:
    """Shows the innermost phase that has lasted for more than a moment."""

    def __init__(self, *, terminal: bool) -> None:
        """Prepare; nothing is shown before :meth:`look` finds something to show.

        Args:
            terminal: Whether there is one, with a line that can be written over.
        """
        self._terminal = terminal
        self._phases: list[Phase] = []
        self._bars: list[tuple[Bar, int]] = []  # each with the number of phases in which it began
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, phase: Phase) -> None:
        """Begin a phase within the one that is going on."""
        with self._lock:
            self._phases.append(phase)
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._watch, name="hvp_engine progress", daemon=True)
                self._thread.start()

    def leave(self, phase: Phase) -> None:
        """End a phase."""
        with self._lock:
            self._phases.remove(phase)
            if not self._phases:  # whoever prints next finds the terminal as it was
                self._stop_live()
            if self._bars and phase.noted:
                self._bars[-1][0].note("")

    def begin_bar(self, bar: Bar) -> None:
        """Leave the terminal to a bar."""
        with self._lock:
            self._stop_live()
            self._bars.append((bar, len(self._phases)))

    def end_bar(self, bar: Bar) -> None:
        """Take the terminal back."""
        with self._lock:
            self._bars = [entry for entry in self._bars if entry[0] is not bar]

    def look(self, now: float) -> None:
        """Show what is to be shown now."""
        with self._lock:
            within = self._phases[self._bars[-1][1] if self._bars else 0 :]
            lasting = [phase for phase in within if now - phase.began >= _PATIENCE]
            if not lasting:
                if self._bars and not self._terminal:
                    self._bars[-1][0].remind(now)
                return  # what was shown stays for the moment that the next phase takes
            phase = lasting[-1]
            if not self._terminal:
                if phase.said is None or now - phase.said >= _LINE_EVERY:
                    phase.said = now
                    print(phase.text(now), file=sys.stderr, flush=True)
            elif self._bars:
                phase.noted = True
                self._bars[-1][0].note(phase.text(now))
            else:
                self._show(phase.text(now))

    def end(self) -> None:
        """Take everything off the terminal."""
        self._ended.set()
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop_live()
        if thread is not None:
            thread.join(timeout=1.0)

    def _watch(self) -> None:
        while not self._ended.wait(_LOOKS_EVERY):
            self.look(time.monotonic())

    def _show(self, text: str) -> None:
        if self._ended.is_set():
            return
        if self._live is None or self._task is None:
            columns = SpinnerColumn(), TextColumn("{task.description}", markup=False)
            self._live = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._task = self._live.add_task(text, total=None)
            self._live.start()
        else:
            self._live.update(self._task, description=text)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = self._task = None


_display: ContextVar[Display | None] = ContextVar("hvp_engine_display", default=None)


@contextlib.contextmanager
def phase(name: str) -> Iterator[Phase]:
    """Say what is done inside; as a decorator, what a function does.

    Args:
        name: In words, as they are shown: "testing the second derivative".

    Yields:
        The phase, whose :meth:`Phase.reach` takes how much is done.
    """
    display, now = _display.get(), Phase(name, time.monotonic())
    if display is None:
        yield now
        return
    display.enter(now)
    try:
        yield now
    finally:
        display.leave(now)


@contextlib.contextmanager
def showing(progress: bool | None) -> Iterator[None]:
    """Show the phases of what runs inside.

    Args:
        progress: True shows them, False hides them; None shows them on a terminal, if nothing around says.
    """
    terminal = sys.stderr.isatty()
    wanted = is_visible(progress, otherwise=terminal)
    if wanted == (_display.get() is not None):  # someone shows them already, or hides them
        yield
        return
    display = Display(terminal=terminal) if wanted else None
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)
        if display is not None:
            display.end()


def shows_phases(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function whose argument ``progress`` says whether its phases are shown."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def shown(*args: P.args, **kwargs: P.kwargs) -> T:
        with showing(signature.bind_partial(*args, **kwargs).arguments.get("progress")):
            return function(*args, **kwargs)

    return shown


@contextlib.contextmanager
def beside_bar(bar: Bar) -> Iterator[None]:
    """Leave the terminal, if there is one, to a bar while the context is open."""
    display = _display.get()
    if display is None:
        yield
        return
    display.begin_bar(bar)
    try:
        yield
    finally:
        display.end_bar(bar)
