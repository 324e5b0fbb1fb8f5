"""How much of a training's time measurements may take."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from hvp_engine.errors import ConfigurationError


class Budget:
    """Keeps the time of measurements within a share of all time since the first question.

    Attributes:
        spent: Seconds that measurements took so far.
    """

    def __init__(self, share: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the share.

        Args:
            share: The share, above 0 and at most 1; None does not bound it.
            clock: Tells seconds.

        Raises:
            ConfigurationError: It is no such number.
        """
        if share is not None and not (isinstance(share, (int, float)) and 0 < share <= 1):
            raise ConfigurationError(f"budget={share!r} must be a share of the time, above 0 and at most 1, or None.")
        self._share = math.inf if share is None else float(share)
        self._clock = clock
        self._begun: float | None = None
        self._latest = 0.0
        self.spent = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the first question."""
        now = self._clock()
        if self._begun is None:
            self._begun = now
        return now - self._begun

    def allows(self) -> bool:
        """Say whether a measurement of the latest one's cost keeps the share; the first is always allowed."""
        elapsed = self.elapsed
        needed = self.spent + self._latest
        return needed <= 0.0 or needed <= self._share * (elapsed + self._latest)

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time that is spent inside, however that ends."""
        began = self._clock()
        try:
            yield
        finally:
            self._latest = self._clock() - began
            self.spent += self._latest
