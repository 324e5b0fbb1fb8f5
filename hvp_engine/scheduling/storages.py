"""Where Lanczos vectors are kept, ``basis="auto"`` among it: pure functions over sizes.

Engine and planner call them, as they do the other rules, in :mod:`hvp_engine.scheduling.policy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from hvp_engine.errors import ConfigurationError, OutOfMemoryError
from hvp_engine.krylov.basis import Elsewhere
from hvp_engine.krylov.registry import STORAGES, Storage
from hvp_engine.scheduling.policy import DISK_SHARE, choose_waves
from hvp_engine.scheduling.waves import StreamSizes
from hvp_engine.system.memory import budget as free_budget
from hvp_engine.system.memory import free_disk

# In the order of what is given up: digits, then the time to read vectors from elsewhere, which 8 bits keep shortest.
RESIDENT = ("fp32", "bf16", "int8")
ELSEWHERE = ("int8-offload", "int8-mmap")
LEANEST = ("int8", "int8-mmap")  # what a micro-batch is chosen beside, so that one of these fits wherever it can
# In a wave of so many streams a graph that is built anew in every sweep is a small part of the work: more waves than
# that takes cost time, and fewer gain none.
STREAMS_PER_WAVE = 8
# ||Q'Q - I|| of the kept vectors that is to be expected at most, by how they are kept: what is measured over 100 steps
# where outliers have eigenvectors of single entries (tests/krylov/test_storage_accuracy.py); most lose far less.
EXPECTED_LOSS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.int8: 1e-2}
_PLACES: dict[Elsewhere | None, str] = {None: "in memory", "host memory": "in host memory", "disk": "in a file"}


def rooms() -> dict[Elsewhere, float]:
    """Return the bytes that vectors may take now in this machine's memory, and on its disk."""
    return rooms_elsewhere(free_budget(torch.device("cpu")), free_disk())


def rooms_elsewhere(host: float, disk: float) -> dict[Elsewhere, float]:
    """Return the bytes that vectors may take where they are kept off the device.

    Args:
        host: Bytes of host memory that may be used.
        disk: Bytes free where temporary files go.
    """
    return {"host memory": host, "disk": DISK_SHARE * disk}


def read_from(
    elsewhere: Elsewhere | None, size: int, taken: int, rooms: Mapping[Elsewhere, float] | None, *, on_cpu: bool
) -> Elsewhere | None:
    """Say where steps read vectors from that are kept elsewhere: a file that fits beside the job is kept in memory.

    Args:
        elsewhere: Where they are kept.
        size: Bytes of them.
        taken: Bytes of the device's memory that the job takes.
        rooms: As for :func:`hvp_engine.scheduling.policy.choose_waves`.
        on_cpu: Whether the device's memory is the host's.
    """
    if elsewhere != "disk":
        return elsewhere
    room = math.inf if rooms is None else rooms["host memory"]
    if size > room - (taken if on_cpu else 0):
        return "disk"
    return None if on_cpu else "host memory"


def choose_basis(
    streams: Callable[[str], StreamSizes],
    budget: int,
    working: int,
    held: int,
    rooms: Mapping[Elsewhere, float] | None,
    *,
    on_cpu: bool,
) -> str:
    """Choose the storage of a job's vectors: the most accurate one in memory whose waves are full, or all there is.

    Of those in the device's memory, the first in which waves have eight streams each on average, or all streams are
    in one. Where there is none, the one with the fewest waves. Where not even one stream of 8 bits fits, host memory,
    then a file.

    Args:
        streams: Sizes of the job's streams by the name of their storage.
        budget: Bytes for everything.
        working: What one micro-batch's graph needs with the temporaries of its passes.
        held: Bytes of memory that the head's curvature takes.
        rooms: As for :func:`hvp_engine.scheduling.policy.choose_waves`.
        on_cpu: Whether the device is the host, whose memory is no other place.

    Returns:
        The storage's name; where nothing fits the last one, for ``choose_waves`` to refuse in words.
    """

    def waves(name: str) -> list[int] | None:
        try:
            return [len(wave) for wave in choose_waves(streams(name), budget, working, held, rooms).groups]
        except OutOfMemoryError:
            return None

    fits: dict[str, int] = {}
    for name in RESIDENT:
        if (found := waves(name)) is not None:
            if len(found) <= max(1, sum(found) // STREAMS_PER_WAVE):
                return name
            fits[name] = len(found)
    if fits:
        return min(fits, key=lambda name: fits[name])
    offers = [name for name in ELSEWHERE if not (on_cpu and STORAGES[name].elsewhere == "host memory")]
    return next((name for name in offers if waves(name) is not None), offers[-1])


def check_place(kept: Storage | None, *, on_cpu: bool) -> None:
    """Refuse to offload vectors to where they are.

    Raises:
        ConfigurationError: They are to be kept in host memory, which is the device's own.
    """
    if on_cpu and kept is not None and kept.elsewhere == "host memory":
        raise ConfigurationError(
            "The '-offload' storages keep vectors in the memory of the host, which is that of the CPU itself. Use the "
            "name without '-offload', or '-mmap' in its place to keep them in a file."
        )


def in_words(kept: Storage) -> str:
    """Say how vectors are kept."""
    dtype = "8 bits with scales" if kept.dtype == torch.int8 else str(kept.dtype).removeprefix("torch.")
    return f"{dtype}, {_PLACES[kept.elsewhere]}"


def note(name: str, kept: Storage) -> str:
    """Say what was chosen, and what is given up by it."""
    given_up = [f"a loss of orthogonality of up to {EXPECTED_LOSS[kept.dtype]:.0e}"]
    given_up += [f"the time to read them from {kept.elsewhere} in every step"] if kept.elsewhere else []
    return (
        f"Lanczos vectors are kept as {name} ({in_words(kept)}), for want of memory; it costs {' and '.join(given_up)}."
    )
