"""Groups of neighbouring samples whose products are kept apart: where the data are cut for them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from hvp_engine.problem import batches
from hvp_engine.problem.objective import MicroBatch
from hvp_engine.scheduling.axes import WHOLE, Span
from hvp_engine.scheduling.passes import Key


@dataclass(frozen=True)
class Groups:
    """A division of the data into runs of neighbouring samples.

    Attributes:
        starts: Where each group begins, as (batch number, sample), in order.
        samples: How many samples each has; batches where they are not counted.
    """

    starts: tuple[Key, ...]
    samples: tuple[int, ...]

    def of(self, key: Key) -> int:
        """Return the group of a micro-batch, which lies in one."""
        return bisect_right(self.starts, key) - 1

    def cuts(self, number: int) -> tuple[int, ...]:
        """Return the samples inside a batch at which a group begins."""
        return tuple(start for batch, start in self.starts if batch == number and start > 0)


def of_whole_batches(sizes: Sequence[int | None], count: int) -> Groups:
    """Divide data between batches, into groups of about equal numbers of samples.

    Args:
        sizes: Samples of each batch; where one is unknown, all count alike.
        count: How many groups; fewer where batches are too few or too uneven, but two for any two batches.
    """
    known = [1 if None in sizes else size or 0 for size in sizes]
    total = max(1, sum(known))
    ends = list(accumulate(known))
    # A batch belongs to where its middle lies.
    places = [min(count - 1, count * (2 * end - size) // (2 * total)) for end, size in zip(ends, known, strict=True)]
    firsts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1]]
    bounds = [*firsts, len(known)]
    samples = tuple(sum(known[a:b]) for a, b in pairwise(bounds))
    return Groups(tuple((i, 0) for i in firsts), samples)


def of_samples(sizes: Sequence[int], count: int) -> Groups:
    """Divide data between any two samples, into groups of numbers of samples that differ by 1 at most.

    Args:
        sizes: Samples of each batch.
        count: How many groups; fewer where samples are fewer.
    """
    ends = list(accumulate(sizes))
    groups = min(count, ends[-1])
    firsts = [ends[-1] * g // groups for g in range(groups)]
    starts = []
    for first in firsts:
        batch = bisect_right(ends, first)
        starts.append((batch, first - ends[batch] + sizes[batch]))
    bounds = [*firsts, ends[-1]]
    return Groups(tuple(starts), tuple(b - a for a, b in pairwise(bounds)))


def pieces(
    number: int, batch: Any, most: int | None, groups: Groups | None, span: Span = WHOLE
) -> Iterator[MicroBatch]:
    """Cut a batch into micro-batches.

    Args:
        number: Which batch it is.
        batch: The batch.
        most: Samples of a piece; None leaves batches whole.
        groups: Parts of the data that no piece crosses; None where there are none.
        span: Samples that are wanted.
    """
    size = batches.samples(batch)
    step = most or size
    cuts = () if groups is None else groups.cuts(number)
    if step is None or size is None or (size <= step and not cuts and span.stop is None):
        yield MicroBatch((number, 0), batch)
        return
    begin, end = span.start, size if span.stop is None else span.stop
    for first, last in pairwise((begin, *(cut for cut in cuts if begin < cut < end), end)):
        for start in range(first, last, step):
            yield MicroBatch((number, start), batches.cut(batch, start, min(start + step, last)))
