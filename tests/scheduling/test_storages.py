"""Which storage ``basis="auto"`` takes, given sizes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hvp_engine.errors import ConfigurationError, OutOfMemoryError
from hvp_engine.krylov.registry import STORAGES, bytes_elsewhere
from hvp_engine.scheduling import policy
from hvp_engine.scheduling.storages import EXPECTED_LOSS, check_place, choose_basis, note, read_from, rooms_elsewhere
from hvp_engine.scheduling.waves import StreamSizes

SIZES = StreamSizes({"a": 10_000}, 100, 4, torch.float32, None)
ROOMS = rooms_elsewhere(1e12, 1e12)


def sizes(name: str, probes: int = 4) -> StreamSizes:
    return replace(SIZES, kept=STORAGES[name], probes=probes)


def chosen(budget: float, probes: int = 4, *, on_cpu: bool = True, rooms=ROOMS) -> str:
    return choose_basis(lambda name: sizes(name, probes), int(budget), 0, 0, rooms, on_cpu=on_cpu)


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8"])
def test_the_first_in_memory_that_has_room_for_all_streams_is_taken(name: str) -> None:
    all_streams = 4 * sizes(name).bytes_of("a")
    assert chosen(all_streams) == name
    assert chosen(all_streams - 1) != name


def test_waves_that_are_full_are_no_reason_to_give_up_digits() -> None:
    nine = 9 * sizes("fp32").bytes_of("a")
    assert chosen(nine, probes=90) == "fp32"
    # In waves of seven a graph is built too often for the work that it does.
    assert chosen(7 * sizes("fp32").bytes_of("a"), probes=90) == "bf16"


def test_where_few_streams_fit_at_once_the_fewest_waves_count() -> None:
    one = sizes("int8").bytes_of("a")
    assert chosen(2 * one) == "int8"
    assert chosen(2 * sizes("bf16").bytes_of("a")) == "bf16"  # two waves, as with 8 bits


@pytest.mark.parametrize(("on_cpu", "name"), [(True, "int8-mmap"), (False, "int8-offload")])
def test_what_fits_nowhere_on_the_device_goes_elsewhere(on_cpu: bool, name: str) -> None:
    assert chosen(sizes("int8").bytes_of("a") - 1, on_cpu=on_cpu) == name


def test_a_host_without_room_leaves_the_disk() -> None:
    need = bytes_elsewhere(100, 10_000, STORAGES["int8-offload"])
    tight = sizes("int8").bytes_of("a") - 1
    assert chosen(tight, on_cpu=False, rooms=rooms_elsewhere(need - 1, 1e12)) == "int8-mmap"
    assert chosen(tight, on_cpu=False, rooms=rooms_elsewhere(need, 1e12)) == "int8-offload"


def test_a_disk_too_small_for_all_streams_makes_waves_and_for_one_an_error_with_ways_out() -> None:
    streams = sizes("fp32-mmap")
    one = bytes_elsewhere(100, 10_000, streams.kept)
    assert one == 100 * 10_000 * 4
    rooms = rooms_elsewhere(0, 3 * one / policy.DISK_SHARE)
    waves = policy.choose_waves(streams, 1 << 40, 0, 0, rooms)
    assert [len(group) for group in waves.groups] == [3, 1] and waves.elsewhere_bytes == 3 * one
    rooms = rooms_elsewhere(0, 0.5 * one / policy.DISK_SHARE)
    with pytest.raises(OutOfMemoryError, match=r"needs 3\.81 MiB on the disk; 1\.91 MiB .*set TMPDIR"):
        policy.choose_waves(streams, 1 << 40, 0, 0, rooms)


def test_vectors_are_not_offloaded_to_the_memory_that_they_come_from() -> None:
    check_place(STORAGES["fp32-offload"], on_cpu=False)
    check_place(STORAGES["fp32-mmap"], on_cpu=True)
    with pytest.raises(ConfigurationError, match="Use the name without '-offload'"):
        check_place(STORAGES["fp32-offload"], on_cpu=True)


def test_a_file_that_fits_beside_the_job_is_read_from_memory() -> None:
    rooms = rooms_elsewhere(100, 1e12)
    assert read_from(None, 0, 10, rooms, on_cpu=True) is None
    assert read_from("disk", 90, 10, rooms, on_cpu=True) is None
    assert read_from("disk", 91, 10, rooms, on_cpu=True) == "disk"
    assert read_from("disk", 91, 10, rooms, on_cpu=False) == "host memory"
    assert read_from("host memory", 91, 10, rooms, on_cpu=False) == "host memory"


@pytest.mark.parametrize("name", sorted(STORAGES))
def test_every_storage_says_what_it_gives_up(name: str) -> None:
    kept = STORAGES[name]
    words = note(name, kept)
    assert f"{EXPECTED_LOSS[kept.dtype]:.0e}" in words and name in words
    assert ("the time to read them" in words) == (kept.elsewhere is not None)
