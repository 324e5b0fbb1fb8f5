"""What the emulation can catch: sanitizers stay silent on the kernels as they are, and broken copies do not pass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cuda_cases import ORDERS, streams, tridiagonals
from emulated import Emulator, Failure, build, copy_of_sources
from rough_streams import DELAYED, NEAR, rough_streams

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread",)
PROJECTION = "reorthogonalize_kernels.cuh"

# Each change breaks one thing; the orders of threads or a sanitizer must notice.
BROKEN = {
    "no barrier between an update and the dots that follow": (
        PROJECTION,
        "    __syncthreads();  // the tile is read by all warps next, and `parts` is written again\n",
        "",
    ),
    "no barrier before the parts of a tile are added": (
        PROJECTION,
        "    __syncthreads();\n    double square = 0.0;\n    if (thread < kTileColumns<Q>",
        "    double square = 0.0;\n    if (thread < kTileColumns<Q>",
    ),
    "no barrier before the sums of a task are written": (
        PROJECTION,
        "    __syncthreads();\n    double* partial =",
        "    double* partial =",
    ),
    "a barrier that only some threads reach": (
        PROJECTION,
        "    __syncthreads();  // the next task of this block clears the dots\n",
        "    if (thread < 64) __syncthreads();\n",
    ),
    "dots that are not cleared": (PROJECTION, "dots[row] = 0.0;", "(void)dots[row];"),
    "a shuffle that leaves out lanes": ("warp.cuh", "kAllLanes = 0xffffffffu", "kAllLanes = 0x7fffffffu"),
    "one column too many": (PROJECTION, "tile + kTileColumns<Q> <= size;", "tile + kTileColumns<Q> <= size + 1;"),
    "one row too many": (PROJECTION, "row + r < count ? row + r : count - 1", "row + r <= count ? row + r : count - 1"),
    "too little shared memory": (PROJECTION, "vectors * max_count + kProjectionWarps +", "vectors * max_count +"),
    "one entry too many of a matrix": ("tridiagonal_kernels.cuh", "i + 1 < n; ++i) largest", "i < n; ++i) largest"),
}
NEEDS_SANITIZER = {
    "one column too many",
    "one row too many",
    "too little shared memory",
    "one entry too many of a matrix",
}


def exercise(emulator: Emulator, order: str = "fwd") -> list[torch.Tensor]:
    """Runs the kernels on tails, odd strides, more tasks than blocks and every type; returns what they give."""
    results = []
    for basis_dtype, vector_dtype in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        plain = streams([(2, 1), (4200, 3), (256, 33), (20000, 1)], basis_dtype, vector_dtype)
        padded = streams([(255, 5), (130, 2)], basis_dtype, vector_dtype, extra_columns=1)
        bases, vectors, counts = (a + b for a, b in zip(plain, padded, strict=True))
        projection, vectors = emulator.reorthogonalize(bases, vectors, counts, order=order)
        results += [*projection, *vectors]
    for rule in (NEAR, DELAYED):
        bases, vectors, counts = rough_streams([(4200, 5), (255, 3)], torch.float32, torch.float32, extra_columns=1)
        projection, vectors = emulator.reorthogonalize(bases, vectors, counts, rule, order=order)
        results += [*projection, *vectors, *(basis[:count] for basis, count in zip(bases, counts, strict=True))]
    nodes, weights, _ = emulator.tridiagonal_quadrature(*tridiagonals(33, 12), order=order)
    return [*results, torch.from_numpy(nodes.copy()), torch.from_numpy(weights.copy())]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return build(tmp_path_factory.mktemp("address"), *ADDRESS)


@pytest.fixture(scope="module")
def thread(tmp_path_factory):
    return build(tmp_path_factory.mktemp("thread"), *THREAD)


@pytest.fixture(scope="module")
def broken(tmp_path_factory, emulator, address):
    """A build of each broken copy."""
    folder = tmp_path_factory.mktemp("broken")

    def make(name: str) -> Emulator:
        file, old, new = BROKEN[name]
        kernels = ("tridiagonal.cu",) if file == "tridiagonal_kernels.cuh" else ("reorthogonalize.cu",)
        place = folder / name.replace(" ", "-")
        sources = copy_of_sources(place / "sources", file, old, new)
        same, flags = (address, ADDRESS) if name in NEEDS_SANITIZER else (emulator, ())
        return build(place, *flags, sources=sources, kernels=kernels, rest=same.folder)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(BROKEN, pool.map(make, BROKEN), strict=True))


def test_address_and_undefined_behaviour_sanitizers_find_nothing(address, emulator):
    for found, wanted in zip(exercise(address), exercise(emulator), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_the_thread_sanitizer_finds_no_race(thread):
    bases, vectors, counts = streams([(300, 5), (70, 34)], torch.float32, torch.float32)
    projection, _ = thread.reorthogonalize(bases, vectors, counts, order="rand:3")
    assert projection.norms.isfinite().all()
    bases, vectors, counts = rough_streams([(300, 5)], torch.float32, torch.float32)
    projection, _ = thread.reorthogonalize(bases, vectors, counts, DELAYED, order="rand:3")
    assert projection.norms.isfinite().all()
    assert thread.tridiagonal_quadrature(*tridiagonals(5, 6)).failed == -1


def test_the_thread_sanitizer_sees_a_race_that_does_no_harm_in_this_order(tmp_path, thread):
    change = BROKEN["no barrier between an update and the dots that follow"]
    sources = copy_of_sources(tmp_path / "sources", *change)
    racing = build(tmp_path, *THREAD, sources=sources, kernels=("reorthogonalize.cu",), rest=thread.folder)
    bases, vectors, counts = streams([(300, 5)], torch.float32, torch.float32)
    with pytest.raises(Failure, match="data race"):
        racing.reorthogonalize(bases, vectors, counts)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_copy_is_caught(broken, emulator, name):
    if name in NEEDS_SANITIZER:
        with pytest.raises(Failure, match="AddressSanitizer"):
            exercise(broken[name])
        return
    wanted = exercise(emulator)
    for order in ORDERS:
        try:
            found = exercise(broken[name], order)
        except Failure:
            return
        if not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)):
            return
    pytest.fail("no order of threads showed it")


def test_the_harness_refuses_more_shared_memory_than_a_block_may_have(emulator):
    bases, vectors, counts = streams([(8, 5000)], torch.float32, torch.float32)
    with pytest.raises(Failure, match="shared memory"):
        emulator.reorthogonalize(bases, vectors, counts)
