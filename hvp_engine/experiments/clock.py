"""How long the parts of a driver take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock(dict[str, float]):
    """Seconds by part, for ``Result.seconds``."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Take the time while the context is open."""
        began = time.perf_counter()
        yield
        self[name] = time.perf_counter() - began
