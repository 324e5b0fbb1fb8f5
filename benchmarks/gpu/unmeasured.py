"""Let what measures time call everything once and never run out of time: where time means nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def call_once() -> None:
    """Replace the clocks of the benchmarks, for good; before a stage is imported."""
    import timing

    timing.seconds, timing.alternate = _once, _each_once
    from stages import ceilings, clock, measuring

    clock.Clock.has = lambda self, seconds: True
    ceilings._CALLS = measuring._ROUNDS = 1


def _once(method: Callable[[], object], device: object = None) -> float:
    method()
    return 1.0


def _each_once(methods: dict[str, Callable[[], object]], rounds: int, *more: Any, **options: Any) -> dict[str, float]:
    return {name: _once(method) for name, method in methods.items()}
