"""Times on the device, and what a profiler saw there; on a CPU its operations stand for the kernels."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from timing import seconds
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

_ROUNDS = 5
_CALLS, _GROUP = 20, 4e-3  # calls between two events: so many that they take about this long, up to a number
_AHEAD = 4  # products that keep the device busy while the host prepares the calls


class Timer:
    """Measures calls that are shorter than the host takes to launch them."""

    def __init__(self, device: torch.device, small: bool) -> None:
        self.device = device
        self._rounds = 1 if small else _ROUNDS
        self._busy: torch.Tensor | None = None
        if device.type == "cuda":
            size = 16 if small else 8192
            self._busy = torch.ones(size, size, device=device, dtype=torch.bfloat16)

    def ms(self, call: Callable[[], object]) -> float:
        """Return the milliseconds that the device takes for a call, the median of several rounds.

        The device is given other work first, so that the calls wait for it in its queue and not it for the host.
        """
        call()
        if self._rounds == 1:
            return self._round(call, 1)
        count = max(1, min(_CALLS, int(_GROUP / max(seconds(call, self.device), 1e-6))))
        return statistics.median(self._round(call, count) for _ in range(self._rounds))

    def _round(self, call: Callable[[], object], count: int) -> float:
        if self._busy is None:
            return 1e3 * seconds(lambda: [call() for _ in range(count)]) / count
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        for _ in range(_AHEAD):
            torch.mm(self._busy, self._busy)
        before.record()
        for _ in range(count):
            call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / count


@dataclass(frozen=True)
class Ran:
    """One kernel that the device ran, or one operation of a CPU by itself.

    Attributes:
        name: Its name.
        us: Microseconds.
        within: The operations that it was launched by, the innermost first.
        shapes: Sizes that the innermost one was given.
    """

    name: str
    us: float
    within: tuple[str, ...]
    shapes: frozenset[int]


@dataclass(frozen=True)
class Profile:
    """What ran during a call.

    Attributes:
        ran: All of it.
        launches: How many kernels, copies and fills.
        busy_us: Time in which at least one was running.
        span_us: From the begin of the first to the end of the last.
    """

    ran: list[Ran]
    launches: int
    busy_us: float
    span_us: float


def profile(call: Callable[[], object], device: torch.device) -> Profile:
    """Run a call once under PyTorch's profiler."""
    on_card = device.type == "cuda" and ProfilerActivity.CUDA in torch.profiler.supported_activities()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with torch.profiler.profile(activities=activities, record_shapes=True) as found:
        call()
        if on_card:
            torch.cuda.synchronize(device)
    events = [event for event in found.events() if not event.is_user_annotation]
    host = [event for event in events if event.device_type == DeviceType.CPU and not event.is_async]
    ran = list(_kernels(host) if on_card else _operations(host))
    there = [event for event in events if event.device_type == DeviceType.CUDA] if on_card else host
    spans = sorted((event.time_range.start, event.time_range.end) for event in there)
    busy, until = 0.0, spans[0][0] if spans else 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return Profile(ran, len(spans), busy, until - spans[0][0] if spans else 0.0)


def _kernels(host: list) -> Iterator[Ran]:
    for event in host:
        for kernel in event.kernels:
            yield Ran(kernel.name, kernel.duration, _within(event), _sizes(event))


def _operations(host: list) -> Iterator[Ran]:
    for event in host:
        yield Ran(event.name, event.self_cpu_time_total, _within(event), _sizes(event))


def _within(event) -> tuple[str, ...]:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return tuple(names)


def _sizes(event) -> frozenset[int]:
    return frozenset(size for shape in event.input_shapes or () for size in shape if isinstance(size, int))
