"""Where kernels leave their thread: below two grains never, beyond them they do, and the bits are the same."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hvp_engine.kernels import loader
from hvp_engine.kernels.attention import attention_backward, attention_forward
from hvp_engine.kernels.normalize import normalize_backward, normalize_forward
from hvp_engine.kernels.records import AttentionInputs, NormalizeShape
from hvp_engine.kernels.reorthogonalize import reorthogonalize

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CSRC = BENCHMARKS.parent / "csrc"
SUMS = {"kNormalizeSums", "kAttentionSums", "kReorthogonalizeSums"}  # added behind the kernels of other grains
KERNELS = (
    "kActivation",
    "kNormalize",
    "kSoftmax",
    "kCrossEntropy",
    "kEmbedding",
    "kPairs",
    "kMatvec",
    "kTridiagonal",
    "kAttentionForward",
    "kAttentionBackward",
    "kAttentionSecond",
    "kReorthogonalize",
    "kFingerprint",
    "kRead",
)


@pytest.fixture(scope="module")
def grain_sizes():
    if loader.missing_reason is not None:
        pytest.fail(loader.missing_reason)
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("grain_sizes")
    sys.path[:] = before


def settled_count() -> int:
    """Threads of this process when those that are about to end have ended."""
    found, again = -1, len(os.listdir("/proc/self/task"))
    while found != again:
        time.sleep(0.02)
        found, again = again, len(os.listdir("/proc/self/task"))
    return found


def threads_started(run, threads: int) -> int:
    """Threads that a call starts in a thread of its own, which has no team of helpers yet."""
    counts = []

    def watched():
        torch.set_num_threads(threads)
        before = settled_count()
        run()
        counts.append(len(os.listdir("/proc/self/task")) - before)

    thread = threading.Thread(target=watched)
    thread.start()
    thread.join()
    return counts[0]


@pytest.fixture
def quiet_main():
    """Make tensors on this thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_grain_is_measured(grain_sizes):
    assert set(KERNELS) == set(grain_sizes.CASES)
    assert set(grain_sizes.constants()) == set(KERNELS) | SUMS


def test_threads_are_started_in_one_place():
    sources = [path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp"}]
    assert sources
    starting = [path.name for path in sources if "#pragma omp parallel" in path.read_text()]
    assert starting == ["parallel.h"]


@pytest.mark.parametrize("name", KERNELS)
def test_work_below_two_grains_starts_no_thread(grain_sizes, quiet_main, name):
    job = grain_sizes.CASES[name](int(1.4 * grain_sizes.constants()[name]))
    assert job.work < 2 * grain_sizes.constants()[name]
    assert threads_started(job.run, 4) == 0


@pytest.mark.parametrize("name", KERNELS)
def test_work_beyond_two_grains_is_shared(grain_sizes, quiet_main, name):
    job = grain_sizes.CASES[name](int(4 * grain_sizes.constants()[name]))
    assert job.work > 2 * grain_sizes.constants()[name]
    assert threads_started(job.run, 2) == 1


def tensors_of(found) -> list[Tensor]:
    """The tensors and arrays among what a call returned."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, np.ndarray):
        return [torch.from_numpy(found)]
    if isinstance(found, tuple | list):
        return [tensor for part in found for tensor in tensors_of(part)]
    return [] if found is None else [torch.tensor(found % (1 << 62))]


def bits(make, threads: int) -> list[Tensor]:
    torch.manual_seed(0)
    job = make()
    torch.set_num_threads(threads)
    found = job.run()
    return [tensor.clone() for tensor in (*job.written, *tensors_of(found))]


def assert_same_bits(make) -> None:
    before = torch.get_num_threads()
    try:
        alone, *shared = (bits(make, threads) for threads in (1, 2, 3, 5))
    finally:
        torch.set_num_threads(before)
    assert alone
    for other in shared:
        assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_shared_work_has_the_same_bits_on_any_number_of_threads(grain_sizes, name):
    assert_same_bits(partial(grain_sizes.CASES[name], int(7 * grain_sizes.constants()[name])))


def normalization_with_sums(job):
    rows, size = 512, 4352
    x, g, y, dx = torch.randn(4, rows, size)
    w, b, dw, db = torch.randn(4, 1, size)
    statistics, shape = torch.empty(1, rows, 2), NormalizeShape(True, 1, rows, size)
    normalize_forward(shape, 1e-5, (x, 0), (w, 0), (b, 0), y, statistics)
    inputs = [(x, 0), (w, 0), (statistics, 0), (g, 0)]
    return job(partial(normalize_backward, shape, inputs, dx, dw, db), 64 * size, [dx, dw, db])


def attention_with_split_heads(job):
    query, key, value = torch.randn(3, 1, 2, 1024, 64)
    inputs = AttentionInputs(query, key, value, None, torch.empty(1, 2, 1024, 2), 0.1, True)
    out = attention_forward(inputs)
    run = partial(attention_backward, inputs, torch.randn_like(out), (True, True, True))
    return job(run, 2 * 4 * 1024 * 2 * 64)  # heads, shares of each, keys, columns


def reorthogonalization_with_many_sums(job):
    streams, size, rows = 64, 16384 + 1, 300
    basis = torch.randn(rows, size) / size**0.5
    vectors = list(torch.randn(streams, size))
    run = partial(reorthogonalize, [basis] * streams, vectors, [rows] * streams)
    return job(run, streams * 2 * (2 * rows + 1), vectors)


@pytest.mark.parametrize(
    ("grain", "make"),
    [
        ("kNormalizeSums", normalization_with_sums),
        ("kAttentionSums", attention_with_split_heads),
        ("kReorthogonalizeSums", reorthogonalization_with_many_sums),
    ],
)
def test_shared_sums_have_the_same_bits_on_any_number_of_threads(grain_sizes, grain, make):
    assert make(grain_sizes.Job).work > 2 * grain_sizes.constants()[grain]
    assert_same_bits(partial(make, grain_sizes.Job))
