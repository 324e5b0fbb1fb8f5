"""The time that a stage has left, and measurements that may fail without ending it."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

import torch

from hvp_engine.system.formatting import first_line

from .runner import Emit

_POISONED = ("illegal memory access", "device-side assert", "misaligned address", "unspecified launch failure")


class Clock:
    """Counts down the seconds of a stage, so that what is least worth is left out and not cut."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def has(self, seconds: float) -> bool:
        """Say whether so many seconds are left."""
        return seconds <= self.left()

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()


@contextlib.contextmanager
def tried(emit: Emit, what: str, **facts: object) -> Iterator[None]:
    """Emit a row with the error where a measurement fails, and go on.

    Raises:
        Exception: One after which the device can do nothing more.
    """
    try:
        yield
    except Exception as error:
        emit(what=what, **facts, error=f"{type(error).__name__}: {first_line(error)}"[:400])
        if any(words in str(error) for words in _POISONED):
            raise
    free()


def free() -> None:
    """Give back what nothing refers to any more; graphs of gradients refer to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
