"""What a CUDA graph is made of, and when there is none: on stand-ins for PyTorch's, which a card alone has."""

from __future__ import annotations

import contextlib

import pytest
import torch

from hvp_engine.operators.compiled.captured import Captures

CUDA = torch.device("cuda", 0)


class Graph:
    """Replays what was called while it was captured."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for call in self.calls:
            call()


class Stream:
    def __init__(self, device):
        self.device = device

    def wait_stream(self, other):
        events.append("wait")


events: list[object] = []


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """Stand-ins that note what happens in which order."""
    events.clear()
    modes = ["default"]

    @contextlib.contextmanager
    def noted(*what):
        events.append(("begin", *what))
        yield
        events.append(("end", *what))

    def set_mode(mode):
        modes.append(mode)
        events.append(mode)

    for name, instead in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: noted("stream"),
        "graph_pool_handle": object,
        "graph": lambda graph, pool, stream, capture_error_mode: noted("capture", pool),
        "get_sync_debug_mode": lambda: modes[-1],
        "set_sync_debug_mode": set_mode,
    }.items():
        monkeypatch.setattr(torch.cuda, name, instead)


def test_calls_run_on_a_stream_where_waiting_raises_and_are_captured_then():
    calls = [lambda: events.append("a"), lambda: events.append("b")]
    captures = Captures()
    assert captures.of(calls, CUDA) is not None
    pool = next(event[2] for event in events if event[:2] == ("begin", "capture"))
    assert events == [
        "wait", ("begin", "stream"), "error", "a", "b", "default", ("end", "stream"), "wait",
        ("begin", "capture", pool), "a", "b", ("end", "capture", pool),
    ]  # fmt: skip
    captures.of(calls, CUDA)
    assert events[-1] == ("end", "capture", pool)  # graphs share their memory


def test_a_call_that_waits_leaves_the_launches_as_they_are():
    def waits():
        raise RuntimeError("called a synchronizing CUDA operation")

    assert Captures().of([waits], CUDA) is None
    assert torch.cuda.get_sync_debug_mode() == "default"
    assert not any(event[:2] == ("begin", "capture") for event in events)


def test_a_lack_of_memory_is_not_taken_for_a_call_that_waits():
    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Captures().of([fails], CUDA)
