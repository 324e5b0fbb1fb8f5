"""The runs of one job from start to stop: how long each took and what it ran on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvp_engine.jobs.environment import Environment, changes


class Sittings:
    """Those that are over, and the one that goes on.

    Attributes:
        before: Seconds that the earlier ones took, as far as they were saved.
    """

    def __init__(self, here: Environment, started: float) -> None:
        """Begin one.

        Args:
            here: What it runs on.
            started: When it began, by the monotonic clock.
        """
        self._earlier: list[dict[str, Any]] = []
        self._here = here
        self._started = started
        self.before = 0.0

    def follow(self, saved: Mapping[str, Any] | None, run: Path) -> None:
        """Take those before it; warn where it runs on something else than the last: the bits of the rest may differ.

        Args:
            saved: ``{"sittings": ...}`` as :meth:`record` gave it last; None where this is the first.
            run: The run folder.
        """
        if saved is None:
            return
        self._earlier = saved["sittings"]
        self.before = sum(sitting["seconds"] for sitting in self._earlier)
        if self._earlier and (different := changes(self._earlier[-1], self._here)):
            warnings.warn(
                f"The job in {run} goes on under other conditions than before ({'; '.join(different)}): its results "
                "may differ from those of a run without a break, by rounding.",
                RuntimeWarning,
                stacklevel=2,
            )

    @property
    def seconds(self) -> float:
        """Seconds that all of them have taken until now."""
        return self.before + time.monotonic() - self._started

    def record(self) -> list[dict[str, Any]]:
        """Return all of them as plain data."""
        now = round(time.monotonic() - self._started, 3)
        return [*self._earlier, {"seconds": now, **self._here}]
