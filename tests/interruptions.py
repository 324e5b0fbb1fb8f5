"""Ctrl-C at a chosen step of a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest


@contextmanager
def interrupted_at(stop: int, kind: type) -> Iterator[None]:
    """Interrupt what is called inside before step number ``stop`` of a kind of wave, and see that it was."""
    original, count = kind.step, 0  # type: ignore[attr-defined]

    def step(state: Any) -> Any:
        nonlocal count
        if count == stop:
            raise KeyboardInterrupt
        count += 1
        return original(state)

    with patch.object(kind, "step", step), pytest.raises(KeyboardInterrupt):
        yield
