"""Seconds of the parts of a driver."""

from __future__ import annotations

import time

from hvp_engine.experiments.clock import Clock


def test_every_part_has_its_own_time() -> None:
    seconds = Clock()
    with seconds.part("short"):
        pass
    with seconds.part("long"):
        time.sleep(0.02)
    assert list(seconds) == ["short", "long"] and seconds["long"] >= 0.02 > seconds["short"] >= 0.0
