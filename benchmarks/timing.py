"""Ratios of things timed alternately in one run: the only numbers that a shared machine gives honestly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def alternate(methods: dict[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> dict[str, float]:
    """Median seconds of each method, all of them run in turn ``rounds`` times after an optional first turn."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + warm_up):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
