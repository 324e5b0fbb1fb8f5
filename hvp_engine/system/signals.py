"""SIGTERM and SIGHUP come as Ctrl-C does, as an exception, so that work is saved; then they end the process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(SystemExit):
    """The process was told to end; raised where it was, and not meant to be caught but to clean up."""

    def __init__(self, number: int) -> None:
        """Take the signal's number; should nothing end the process before, it exits as a shell would name it."""
        super().__init__(128 + number)
        self.number = number


class Ending:
    """Whether a signal has come."""

    def __init__(self) -> None:
        """Begin without one."""
        self.number: int | None = None
        self.raises = True

    def check(self) -> None:
        """Raise again what a signal raised, where someone's code caught it.

        Raises:
            Ended: A signal has come.
        """
        if self.number is not None:
            raise Ended(self.number)

    def take(self, number: int, _: FrameType | None) -> None:
        """Handle a signal: raise for the first one; more of them must not stop the cleaning up."""
        if self.number is None:
            self.number = number
            if self.raises:
                raise Ended(number)


@contextlib.contextmanager
def ending_signals_raise() -> Iterator[Ending]:
    """Let SIGTERM and SIGHUP raise :class:`Ended` inside; after the context the signal ends the process.

    A signal for which someone has a handler, or that is ignored, is left alone, and so are all where the context is
    entered in another thread than the main one, which alone receives them.
    """
    ending = Ending()
    handler = ending.take  # one object, to be recognised
    taken = [number for number in _ENDING if _is_free(number)]
    try:
        for number in taken:
            signal.signal(number, handler)
        yield ending
    finally:
        ending.raises = False
        for number in taken:
            if signal.getsignal(number) is handler:  # else the caller's code has set one of its own meanwhile
                signal.signal(number, signal.SIG_DFL)
        if ending.number is not None:
            os.kill(os.getpid(), ending.number)


def _is_free(number: int) -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and signal.getsignal(number) == signal.SIG_DFL
