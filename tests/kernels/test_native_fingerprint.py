from __future__ import annotations

import numpy as np
import pytest
import torch

from hvp_engine.kernels.loader import native

SIZES = [1, 7, 8, 63, 64, 65, 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 9, 3 << 20]


def random_bytes(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def fingerprint(array):
    return native.fingerprint(array.ctypes.data, array.nbytes)


@pytest.mark.parametrize("size", SIZES)
def test_one_flipped_bit_anywhere_changes_the_fingerprint(size):
    data = random_bytes(size)
    before = fingerprint(data)
    places = range(size) if size < 100 else [*np.random.default_rng(1).integers(0, size, 50).tolist(), 0, size - 1]
    for place in places:
        for bit in range(8):
            data[place] ^= 1 << bit
            assert fingerprint(data) != before
            data[place] ^= 1 << bit
    assert fingerprint(data) == before


@pytest.mark.parametrize("width", [1, 4, 8, 64, 4096, 1 << 20])
def test_swapped_pieces_change_the_fingerprint(width):
    pieces = random_bytes(4 * width).reshape(4, width)
    before = fingerprint(pieces)
    for i in range(4):
        for j in range(i):
            order = np.arange(4)
            order[[i, j]] = j, i
            assert fingerprint(np.ascontiguousarray(pieces[order])) != before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_changed_signs_change_the_fingerprint(dtype):
    values = np.random.default_rng(0).standard_normal(64).astype(dtype)
    before, seen = fingerprint(values), set()
    for i in range(64):
        for j in range(i):
            values[[i, j]] *= -1
            seen.add(fingerprint(values))
            values[[i, j]] *= -1
    assert before not in seen
    assert len(seen) == 64 * 63 // 2


def test_the_number_of_bytes_counts_even_if_they_are_zero():
    zeros = np.zeros(300, dtype=np.uint8)
    assert len({fingerprint(zeros[:size]) for size in range(301)}) == 301


@pytest.mark.parametrize("size", [5, 100, (1 << 20) + 13])
def test_the_address_does_not_count_and_need_not_be_aligned(size):
    data = random_bytes(size)
    room = np.empty(size + 64, dtype=np.uint8)
    found = set()
    for offset in (0, 1, 2, 3, 8, 33):
        room[offset : offset + size] = data
        found.add(fingerprint(room[offset : offset + size]))
    assert found == {fingerprint(data)}


def test_the_number_of_threads_does_not_count():
    data = random_bytes((17 << 20) + 5)
    before, found = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.add(fingerprint(data))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_fingerprints_of_similar_contents_are_spread_over_64_bits():
    data = np.zeros(256, dtype=np.uint8)
    found = []
    for place in range(256):
        data[place] = 1
        found.append(fingerprint(data))
        data[place] = 0
    counts = [sum(number >> bit & 1 for number in found) for bit in range(64)]
    assert min(counts) > 64
    assert max(counts) < 192  # 8 standard deviations


def test_no_bytes_have_a_fingerprint_at_any_address():
    assert native.fingerprint(0, 0) == native.fingerprint(64, 0)


@pytest.mark.parametrize(("pointer", "size"), [(0, 1), (-1, 1), (64, -1), (64, 1 << 64), ("64", 1), (64.0, 1)])
def test_what_is_no_memory_is_refused(pointer, size):
    with pytest.raises((ValueError, TypeError)):
        native.fingerprint(pointer, size)
