"""Times of calls on a device, and errors of results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

GROUPS, GROUP_MS = 3, 8.0  # timings of a call: so many groups of as many calls as take about this long


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call on the device."""
    call()
    once = _elapsed(call, 1)
    count = max(1, min(20, int(GROUP_MS / max(once, 1e-3))))
    return round(statistics.median(_elapsed(call, count) for _ in range(GROUPS)), 4)


def _elapsed(call: Callable[[], object], count: int) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(count):
        call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / count


def errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Return the relative errors of results, infinite where it is no number."""
    found = (((a.double() - b).norm() / b.norm()).item() for a, b in zip(results, exact, strict=True))
    return [float(f"{e:.3g}") if math.isfinite(e) else math.inf for e in found]
