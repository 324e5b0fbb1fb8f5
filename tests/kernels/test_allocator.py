from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from hvp_engine.kernels import loader
from hvp_engine.kernels.allocator import retained_heap

PAGES = 4096  # 16 MiB
LARGE = 256 << 20  # bytes


def fewest_faults_of_a_large_temporary():
    """The lasting state: at first, left-over pieces between aligned blocks let the heap grow."""
    return min(faults_of_a_large_temporary() for _ in range(32))


def faults_of_a_large_temporary():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(PAGES * 4096, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_large_temporaries_are_reused_inside_and_given_back_after():
    with retained_heap():
        with retained_heap():
            assert fewest_faults_of_a_large_temporary() < PAGES // 8
        assert fewest_faults_of_a_large_temporary() < PAGES // 8
        torch.empty(LARGE, dtype=torch.uint8).fill_(1)
        inside = resident()
    assert inside - resident() > LARGE // 2


def test_the_callers_own_temporaries_are_reused_afterwards_as_glibc_does_by_itself():
    with retained_heap():
        pass
    assert fewest_faults_of_a_large_temporary() < PAGES // 8


def test_memory_is_given_back_after_an_error():
    def fail():
        with retained_heap():
            torch.empty(LARGE, dtype=torch.uint8).fill_(1)
            held.append(resident())
            raise RuntimeError("inside")

    held = []
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert held[0] - resident() > LARGE // 2


def test_it_does_nothing_without_the_extension(monkeypatch):
    monkeypatch.setattr(loader, "missing_reason", "it was not built")
    with retained_heap():
        assert torch.ones(3).sum() == 3


def test_negative_thresholds_are_refused():
    with pytest.raises(ValueError, match="negative"):
        loader.native.set_malloc_thresholds(-1, 0)
