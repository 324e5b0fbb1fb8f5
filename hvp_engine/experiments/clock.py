"""How long the parts of a driver take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hvp_engine.system.phases import phase


class Clock(dict[str, float]):
    """Seconds by part, for ``Result.seconds``."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Take the time while the context is open, and say what is being done."""
        began = time.perf_counter()
        with phase(name):
            yield
        self[name] = time.perf_counter() - began
