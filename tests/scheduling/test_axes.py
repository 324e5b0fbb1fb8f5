"""Rules by which processes share a job."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from hvp_engine.processes.team import Axes
from hvp_engine.scheduling.axes import DataSizes, Sharing, Span, choose_axes, deal, part_of_data, part_of_streams
from hvp_engine.scheduling.waves import StreamSizes


def sharing(samples: tuple[int | None, ...], **changed: object) -> Sharing:
    data = DataSizes(samples, None, divisible=bool(changed.pop("divisible", True)))
    return Sharing(**{"streams": 100, "data": data, "kept": 0, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("samples", [(5, 2, 4), (64,), (3,) * 10, (None, None, None)])
def test_every_sample_is_in_one_part(samples: tuple[int | None, ...], processes: int) -> None:
    data = DataSizes(samples, None)
    most = data.cut_for(processes)
    seen: dict[int, list[int]] = {number: [] for number in range(len(samples))}
    for process in range(processes):
        for number, spans in part_of_data(data, most, process, processes).items():
            size = samples[number] or 1
            for span in spans:
                seen[number] += range(span.start, size if span.stop is None else span.stop)
    assert {number: sorted(found) for number, found in seen.items()} == {
        number: list(range(size or 1)) for number, size in enumerate(samples)
    }


def test_batches_are_cut_no_more_finely_than_even_parts_need() -> None:
    assert DataSizes((8, 8, 8, 8), None).cut_for(2) is None
    assert DataSizes((8, 8, 8, 8), 4).cut_for(2) == 4
    assert DataSizes((64,), None).cut_for(4) == 16
    assert DataSizes((64, 64, 64), None).cut_for(2) == 32
    assert DataSizes((64,), None, divisible=False).cut_for(4) is None
    assert DataSizes((None, 64), None).cut_for(4) is None
    assert DataSizes((1, 1), None).cut_for(4) is None


def test_the_heaviest_pieces_are_dealt_first() -> None:
    assert deal([1.0, 5.0, 4.0, 2.0], 2) == [0, 0, 1, 1]
    assert deal([1.0] * 5, 1) == [0] * 5
    assert deal([], 3) == []


def test_uneven_batches_make_even_parts() -> None:
    data = DataSizes((30, 10, 10, 10), None)
    assert data.largest_part(2, None) == 0.5
    assert part_of_data(data, None, 0, 2) == {0: (Span(0, None),)}


def test_streams_are_dealt_out_once_each_and_evenly() -> None:
    streams = StreamSizes({"a": 5, "b": 6, "c": 7}, 4, 3, torch.float32, None)
    parts = [part_of_streams(streams, group, 4) for group in range(4)]
    dealt = [[(block, k) for block in part.numel for k in part.probes_of(block)] for part in parts if part is not None]
    assert sorted(chain(*dealt)) == [(block, k) for block in "abc" for k in range(3)]
    assert [len(part) for part in dealt] == [3, 2, 2, 2]
    one = StreamSizes({"a": 5}, 4, range(6, 7), torch.float32, None)
    assert [part_of_streams(one, group, 2) is None for group in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("case", "axes"),
    [
        # Graphs that are built in every sweep are shared with the data.
        (sharing((8,) * 80), Axes(1, 8)),
        # Graphs that stay cost nothing more, and streams need no messages, where they divide ...
        (sharing((8,) * 80, kept=80, streams=96), Axes(8, 1)),
        # ... as evenly as the data.
        (sharing((8,) * 80, kept=80), Axes(4, 2)),
        # One batch that cannot be cut leaves the streams.
        (sharing((8,), divisible=False), Axes(8, 1)),
        # Two pieces serve two.
        (sharing((8, 8), divisible=False), Axes(4, 2)),
        # One stream leaves the data.
        (sharing((8,) * 80, streams=1, kept=80), Axes(1, 8)),
        # Streams that need each other stay together.
        (sharing((8,) * 80, kept=80, most_groups=1), Axes(1, 8)),
        # Those of an interrupted run were dealt out in two.
        (sharing((8,), divisible=False, most_groups=2), Axes(2, 4)),
        # Vectors that fit into one process's memory in many waves alone are shared.
        (sharing((8,) * 80, stream_bytes=80e9, room=1e9, streams=16), Axes(8, 1)),
    ],
)
def test_the_axes_follow_from_what_takes_longest(case: Sharing, axes: Axes) -> None:
    assert choose_axes(8, case) == axes


def test_all_processes_are_used() -> None:
    for processes in range(1, 13):
        assert choose_axes(processes, sharing((8,) * 24)).size == processes
