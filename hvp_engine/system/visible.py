"""Whether progress is shown where a call leaves that open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_surroundings: ContextVar[bool | None] = ContextVar("hvp_engine_progress", default=None)


def is_visible(progress: bool | None, otherwise: bool) -> bool:
    """Say whether progress is shown.

    Args:
        progress: What a call asks for; None leaves it to :func:`progress_of_calls` around it.
        otherwise: What holds where nothing around it asks for anything.
    """
    asked = _surroundings.get() if progress is None else progress
    return otherwise if asked is None else asked


@contextmanager
def progress_of_calls(shown: bool) -> Iterator[None]:
    """Show or hide the progress of all that runs inside and does not say itself which."""
    token = _surroundings.set(shown)
    try:
        yield
    finally:
        _surroundings.reset(token)
