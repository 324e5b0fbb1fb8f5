"""How several processes share a job: which axis gets how many, which streams and which samples go to whom.

Pure rules over sizes, which engine and planner share. Groups of processes on the axis of the probes have streams of
their own, and build every graph for them; processes on the axis of the data build the graphs of their part, for all
streams of their group, and add up products.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hvp_engine.processes.team import Axes
from hvp_engine.scheduling.waves import StreamSizes

# In units of the forward pass's products of matrices: a gradient graph takes 3, a product about 2.
_GRAPH, _PRODUCT = 3.0, 2.0
_EVEN = 0.9  # of the processes' time is used, at least, before batches are cut more finely


class Span(NamedTuple):
    """Samples of a batch that one process multiplies.

    Attributes:
        start: The first.
        stop: The last + 1; None for a batch that is not cut.
    """

    start: int
    stop: int | None


WHOLE = Span(0, None)


@dataclass(frozen=True)
class DataSizes:
    """What can be dealt out.

    Attributes:
        samples: Samples of each batch; None for one that cannot be cut.
        microbatch: The most samples of a piece; None for whole batches.
        divisible: Whether batches may be cut more finely than that.
    """

    samples: tuple[int | None, ...]
    microbatch: int | None
    divisible: bool = True

    @property
    def total(self) -> int:
        """Samples of all batches; one that cannot be cut counts as one where no size is known."""
        return sum(self._weights)

    @property
    def _weights(self) -> list[int]:
        unknown = None in self.samples
        return [1 if unknown else size or 0 for size in self.samples]

    def spans(self, most: int | None) -> list[tuple[int, Span, int]]:
        """Cut every batch into pieces of at most so many samples: number of the batch, span and weight of each."""
        found: list[tuple[int, Span, int]] = []
        for number, (size, weight) in enumerate(zip(self.samples, self._weights, strict=True)):
            if size is None or most is None or size <= most:
                found.append((number, WHOLE, weight))
                continue
            found += [(number, Span(a, min(a + most, size)), min(a + most, size) - a) for a in range(0, size, most)]
        return found

    def cut_for(self, processes: int) -> int | None:
        """Choose the samples of a piece so that processes get about equal parts; None leaves batches whole.

        They are halved until nine tenths of the processes' time are used, or a piece is one sample.
        """
        most = self.microbatch
        if processes == 1 or not self.divisible or None in self.samples:
            return most
        most = min(most or self._largest, self._largest)
        while most > 1 and self.largest_part(processes, most) * processes * _EVEN > 1.0:
            most = -(-most // 2)
        return self.microbatch if most >= self._largest else most

    def largest_part(self, processes: int, most: int | None) -> float:
        """Return the largest share of the data that a process has, of pieces of at most so many samples."""
        weights = [weight for _, _, weight in self.spans(most)]
        return max(_loads(weights, processes)) / max(1, self.total)

    def part(self, share: Mapping[int, Sequence[Span]]) -> float:
        """Return which share of the data some spans are."""
        weights = self._weights
        size = sum(
            weights[number] if span.stop is None else span.stop - span.start
            for number, spans in share.items()
            for span in spans
        )
        return size / max(1, self.total)

    @property
    def _largest(self) -> int:
        return max((size or 1 for size in self.samples), default=1)


@dataclass(frozen=True)
class Sharing:
    """What decides how processes are arranged.

    Attributes:
        streams: Streams of all blocks together.
        data: What can be dealt out.
        kept: How many graphs stay in the memory of a process, so that they are built once.
        stream_bytes: What the vectors of all streams take.
        room: Bytes for vectors in a process.
        most_groups: Groups that can share the streams: one where these need each other, as many as there are waves
            where they were dealt out before; None for any number.
    """

    streams: int
    data: DataSizes
    kept: int
    stream_bytes: float = 0.0
    room: float = math.inf
    most_groups: int | None = None

    def cost(self, axes: Axes) -> float:
        """Return what a sweep of all streams takes, in forward passes over the data, as far as the axes change it."""
        most = self.data.cut_for(axes.data)
        part = self.data.largest_part(axes.data, most)
        streams = -(-self.streams // axes.probes)
        waves = max(1.0, self.stream_bytes / axes.probes / self.room) if self.room > 0 else 1.0
        built = -(-len(self.data.spans(most)) // axes.data) > self.kept
        return part * ((_GRAPH * waves if built else 0.0) + _PRODUCT * streams)


def choose_axes(processes: int, sharing: Sharing) -> Axes:
    """Choose how processes are arranged: so that the slowest has the least to do, with few messages where equal.

    Args:
        processes: How many there are.
        sharing: Sizes of the job.
    """
    most = sharing.most_groups or processes
    small = [p for p in range(1, math.isqrt(processes) + 1) if processes % p == 0]
    divisors = sorted({*small, *(processes // p for p in small)}, reverse=True)
    fits = [Axes(p, processes // p) for p in divisors if p <= max(1, most)]
    return min(fits, key=lambda axes: round(sharing.cost(axes), 9))


def deal(weights: Sequence[float], processes: int) -> list[int]:
    """Deal pieces out, the heaviest first, each to whom has least: who gets each.

    Args:
        weights: Of the pieces.
        processes: How many share them.
    """
    loads = [(0.0, process) for process in range(processes)]
    owners = [0] * len(weights)
    for piece in sorted(range(len(weights)), key=lambda piece: -weights[piece]):
        load, process = heapq.heappop(loads)
        owners[piece] = process
        heapq.heappush(loads, (load + weights[piece], process))
    return owners


def part_of_data(data: DataSizes, most: int | None, process: int, processes: int) -> dict[int, tuple[Span, ...]]:
    """Return the spans of one process, by number of the batch.

    Args:
        data: What is dealt out.
        most: Samples of a piece at most.
        process: Which one.
        processes: How many share the data.
    """
    spans = data.spans(most)
    owners = deal([float(weight) for _, _, weight in spans], processes)
    found: dict[int, tuple[Span, ...]] = {}
    for (number, span, _), owner in zip(spans, owners, strict=True):
        if owner == process:
            found[number] = (*found.get(number, ()), span)
    return found


def part_of_streams(streams: StreamSizes, group: int, groups: int) -> StreamSizes | None:
    """Return the streams of one group: probes are dealt out in turn, from one block to the next.

    Args:
        streams: All of a round.
        group: Which group.
        groups: How many share them.

    Returns:
        None where there is none for it.
    """
    probes = dict(_dealt(streams, group, groups))
    if not probes:
        return None
    return replace(streams, numel={block: streams.numel[block] for block in probes}, probes=probes)


def _dealt(streams: StreamSizes, group: int, groups: int) -> Iterator[tuple[str, range]]:
    before = 0
    for block in streams.numel:
        probes = streams.probes_of(block)
        mine = probes[(group - before) % groups :: groups]
        if mine:
            yield block, mine
        before += len(probes)


def _loads(weights: Sequence[int], processes: int) -> list[float]:
    loads = [0.0] * processes
    for owner, weight in zip(deal([float(w) for w in weights], processes), weights, strict=True):
        loads[owner] += weight
    return loads
