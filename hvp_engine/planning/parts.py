"""Parts of a job: work and the time that a device takes for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hvp_engine.planning.devices import Device
from hvp_engine.planning.meter import Work
from hvp_engine.problem.precision import Precision


@dataclass(frozen=True)
class PartCost:
    """One part of a job.

    Attributes:
        flop: Floating-point operations.
        bytes: Bytes read and written.
        seconds: Predicted time.
        limit: What most of the time touches: ``"compute"``, ``"bandwidth"`` or ``"launch"``, or from where it reads.
    """

    flop: float
    bytes: float
    seconds: float
    limit: str

    def times(self, factor: float, slower: float = 1.0) -> PartCost:
        """Return the same work several times, each time slower by a factor."""
        return PartCost(self.flop * factor, self.bytes * factor, self.seconds * factor * slower, self.limit)

    def instead(self, old: PartCost, new: PartCost) -> PartCost:
        """Return this part with one piece of it replaced."""
        return PartCost(
            self.flop - old.flop + new.flop,
            self.bytes - old.bytes + new.bytes,
            self.seconds - old.seconds + new.seconds,
            self.limit,
        )


def operations(work: Work, device: Device, precision: Precision, streams: int = 1) -> PartCost:
    """Time of counted operations, each at the ceiling that it touches, and at least what the host takes to start them.

    Args:
        work: What was counted.
        device: Where it runs.
        precision: Arithmetic of products.
        streams: Vectors that share one launch; the times are per vector.
    """
    times = {"compute": 0.0, "bandwidth": 0.0, "launch": 0.0}
    starting = 0.0
    for operation, count in work.operations.items():
        seconds, limit, host = device.bound(operation, precision)
        host /= streams
        starting += count * host
        if not device.asynchronous and host > seconds:
            seconds, limit = host, "launch"
        times[limit] += count * seconds
    if device.asynchronous and starting > sum(times.values()):
        times = {"launch": starting}
    return PartCost(work.flop, work.bytes, sum(times.values()), max(times, key=lambda kind: times[kind]))


def total(parts: Sequence[PartCost]) -> PartCost:
    """Add parts; the limit is the longest one's."""
    longest = max(parts, key=lambda part: part.seconds)
    flop, size, seconds = (sum(getattr(part, name) for part in parts) for name in ("flop", "bytes", "seconds"))
    return PartCost(flop, size, seconds, longest.limit)
