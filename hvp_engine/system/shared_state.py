"""States of the whole process that the engine changes while it works, shared by all who are at work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

StateT = TypeVar("StateT")


class SharedState(Generic[StateT]):
    """A state that the first one to enter sets, and the last one to leave restores.

    Were each to restore what it found, one of two threads would find, and leave behind, what the other one had set.
    """

    def __init__(self, change: Callable[[], StateT], restore: Callable[[StateT], None]) -> None:
        """Take the two actions.

        Args:
            change: Sets the state and returns what is needed to restore the former one; undoes itself where it fails.
            restore: Restores it; may be called again after it was interrupted.
        """
        self._change = change
        self._restore = restore
        self._lock = threading.RLock()  # the garbage collector may end a context while the thread begins another
        self._inside: set[int] = set()  # by number, so that a lost one can go
        self._before: list[StateT] = []

    def held(self) -> Hold[StateT]:
        """Return a context in which the state is set; may be nested, and entered by several threads at once."""
        return Hold(self)

    def enter(self, hold: Hold[StateT]) -> None:
        """Add one that is inside, and set the state if it is the first."""
        with self._lock:
            if not self._before:
                self._before.append(self._change())
            self._inside.add(id(hold))

    def leave(self, hold: Hold[StateT]) -> None:
        """Take one out, wherever an interrupt may have stopped it, and restore the state if nobody is inside."""
        with self._lock:
            self._inside.discard(id(hold))
            if self._before and not self._inside:
                try:
                    self._restore(self._before[-1])
                except BaseException:  # an interrupt: from the beginning
                    self._restore(self._before[-1])
                    raise
                finally:
                    self._before.clear()


class Hold(Generic[StateT]):
    """One entry into a shared state; an interrupt at any moment leaves no entry that nobody will leave."""

    def __init__(self, state: SharedState[StateT]) -> None:
        """Make the context."""
        self._state = state

    def __enter__(self) -> None:
        """Enter."""
        try:
            self._state.enter(self)
        except BaseException:
            self._state.leave(self)
            raise

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self._state.leave(self)

    def __del__(self) -> None:
        """Leave, where an interrupt came just before that."""
        self._state.leave(self)
