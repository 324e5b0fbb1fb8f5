"""Times of things run in turn: the only ratios that a shared machine gives honestly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hvp_engine.system.memory import peak_memory

CPU = torch.device("cpu")


def alternate(
    methods: dict[str, Callable[[], object]], rounds: int, warm_up: bool = True, device: torch.device = CPU
) -> dict[str, float]:
    """Median seconds of each method, all of them run in turn ``rounds`` times after an optional first turn."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + warm_up):
        for name, method in methods.items():
            taken = seconds(method, device)
            if turn >= warm_up:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def seconds(method: Callable[[], object], device: torch.device = CPU) -> float:
    """Time one call: between two events of the current stream on a GPU, of the wall clock on a CPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        method()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        before.record()
        method()
        after.record()
        after.synchronize()
    return before.elapsed_time(after) / 1e3


def waiting(method: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return the method and the wait for the device, for a clock that does not know of devices (pytest-benchmark)."""
    if device.type != "cuda":
        return method

    def run() -> object:
        result = method()
        torch.cuda.synchronize(device)
        return result

    return run


def peak_gib(method: Callable[[], object], device: torch.device) -> float | None:
    """GiB by which memory rose during one call; None where the system does not tell."""
    with peak_memory(device) as peak:
        method()
    return None if peak.bytes is None else peak.bytes / 2**30


def process_peak_gib() -> float:
    """Most resident memory of this process in GiB so far. `ru_maxrss` would count that of the parent before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20
