"""Whether the checkpoints of a job will fit on the disk: said before the first step, not hours later."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from hvp_engine.jobs.folder import FOLDER
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.registry import bytes_per_stream
from hvp_engine.scheduling.waves import StreamSizes
from hvp_engine.system.formatting import format_bytes

log = logging.getLogger(__name__)


def warn_of_too_little_disk(
    run: Path, streams: StreamSizes, waves: Sequence[Sequence[Stream]], at_once: int = 1
) -> None:
    """Log a warning where the largest checkpoint takes more than is free.

    Args:
        run: The run folder.
        streams: Sizes of the streams.
        waves: How they are grouped.
        at_once: How many waves run at the same time, in as many groups of processes.
    """
    sizes = sorted((checkpoint_bytes(streams, wave) for wave in waves), reverse=True)
    need = sum(sizes[:at_once])
    try:
        free = shutil.disk_usage(run).free + _written(run / FOLDER)
    except OSError:  # it does not tell
        return
    if need > free:
        log.warning(
            "A checkpoint of this job takes up to %s in %s, where there is room for %s. The job goes on without those "
            "that do not fit, and an interruption then costs what was done since the last one that did: free some "
            "space there, or choose another folder for out=.",
            format_bytes(need),
            run,
            format_bytes(free),
        )


def checkpoint_bytes(streams: StreamSizes, wave: Sequence[Stream]) -> int:
    """Return what the vectors of a wave take in its last checkpoint, wherever they are kept while it runs."""
    return sum(
        bytes_per_stream(streams.steps_of(block), streams.numel[block], streams.dtype, streams.kept)
        + streams.elsewhere_of(block)
        for block, _ in wave
    )


def _written(folder: Path) -> int:
    """Return what earlier checkpoints take, which the next ones go on with or replace."""
    return sum(path.stat().st_size for path in folder.glob("wave-*"))
