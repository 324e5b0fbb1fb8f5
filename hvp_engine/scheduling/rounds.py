"""The rounds of an adaptive job: which streams and whole matrices run together, and the memory that each takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hvp_engine.krylov.companions import COLUMNS_AT_ONCE, SINGLES_AT_ONCE
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.scheduling.expected import is_exact
from hvp_engine.scheduling.waves import WORK_VECTORS, StreamSizes

MATRIX = -1  # in a wave, in place of a probe's number: the whole matrix of a block
WHOLE = range(MATRIX, MATRIX + 1)


def first_round(numel: Mapping[str, int], settings: JobSettings, room: float) -> StreamSizes:
    """Return the sizes of what an adaptive job begins with: a stream per block, the whole matrix of a small one.

    Args:
        numel: Length of each block's vectors.
        settings: What was asked for; a stream has room for as many steps as it may take.
        room: As for :func:`matrix_fits`.
    """
    probes = {
        block: WHOLE if is_exact(size, settings) and matrix_fits(size, settings, room) else range(1)
        for block, size in numel.items()
    }
    return round_sizes(numel, settings, probes, dict.fromkeys(numel, settings.steps))


def matrix_fits(numel: int, settings: JobSettings, room: float) -> bool:
    """Say whether the whole matrix of a block has a place: a job that has one for its streams is not refused for it.

    Args:
        numel: Length of its vectors.
        settings: What was asked for.
        room: Bytes that there are for vectors; what a stream of the block takes is there in any case.
    """
    stream = round_sizes({"": numel}, settings, {"": range(1)}, {"": settings.steps}).largest
    return matrix_bytes(numel, settings) <= max(room, stream)


def matrix_bytes(numel: int, settings: JobSettings) -> int:
    """Return what the whole matrix of a block takes, with the vectors of a sweep."""
    return round_sizes({"": numel}, settings, {"": WHOLE}, {}).largest


def largest_matrix(room: int, settings: JobSettings) -> int:
    """Return the most parameters of a block whose whole matrix fits into some bytes."""
    item = settings.dtype.itemsize
    beside = matrix_bytes(1, settings) // item - 1  # rows of the sweep's vectors
    return max(0, (math.isqrt(beside**2 + 4 * max(room, 0) // item) - beside) // 2)


def round_sizes(
    numel: Mapping[str, int], settings: JobSettings, probes: Mapping[str, range], limits: Mapping[str, int]
) -> StreamSizes:
    """Return the sizes of some streams and whole matrices.

    Args:
        numel: Length of each block's vectors.
        settings: What was asked for.
        probes: Numbers of the probes of the blocks that take part, or ``WHOLE``.
        limits: Most steps of their streams.
    """
    item = settings.dtype.itemsize
    beside: dict[str, int] = {}
    for block, numbers in probes.items():
        size = numel[block]
        if numbers == WHOLE:
            beside[block] = (size + 2 * COLUMNS_AT_ONCE) * size * item
        elif 0 in numbers:  # single products have the place of the work vectors, whose stream has stopped
            beside[block] = max(0, 2 * SINGLES_AT_ONCE - WORK_VECTORS) * size * item
    return StreamSizes(
        {block: numel[block] for block in probes},
        settings.steps,
        probes,
        settings.dtype,
        settings.lanczos.kept,
        limits={block: 0 if numbers == WHOLE else limits[block] for block, numbers in probes.items()},
        beside=beside,
    )
