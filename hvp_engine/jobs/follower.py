"""The run folder of a job of several processes, as all but the first have it: held by the first, written by some."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hvp_engine.errors import RunFolderError
from hvp_engine.jobs.checkpoint import Checkpoint
from hvp_engine.jobs.folder import FOLDER, MARKER, RECORDS, JobFolder
from hvp_engine.jobs.resumable import Resumable
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.operators.head.shelf import Shelf
from hvp_engine.processes.team import Team
from hvp_engine.system import files
from hvp_engine.system.json_files import read_json
from hvp_engine.system.locks import LOCK, OWNER


class Briefing(NamedTuple):
    """What the first process tells the others of its checkpoint.

    Attributes:
        job: The checksum that binds the files to the job.
        known: What an earlier run remembered, by name.
        holder: What the lock's file says.
    """

    job: str
    known: dict[str, dict[str, Any]]
    holder: bytes


def briefing(checkpoint: Checkpoint) -> Briefing:
    """Say what the others must know of the first process's checkpoint."""
    names = [name.removesuffix(".json") for name in RECORDS if name not in ("identity.json", "waves.json")]
    known = {name: found for name in names if (found := checkpoint.recall(name)) is not None}
    return Briefing(checkpoint.job, known, _holder(checkpoint.run))


class Follower(Checkpoint):
    """A checkpoint that the first process has made, in another process.

    The first of a group writes what its streams find, the others read alone.
    """

    def __init__(self, run: Path, told: Briefing, team: Team) -> None:
        """Take the run folder along with the first process.

        Args:
            run: The run folder.
            told: What the first process says of it.
            team: Says what is this process's.

        Raises:
            RunFolderError: The folder is not there for this process.
        """
        folder = _Borrowed(run, told.holder)
        if not folder.held:
            raise RunFolderError(
                f"Rank {team.rank} does not see the run folder {run} as rank 0 does: several processes need out= on a "
                "file system that all of them share."
            )
        self._begin(run, folder)
        self._told, self._writes, self.job = told, team.leads, told.job
        # Groups form the same matrices; those of the first one are kept.
        self.shelf = Shelf(folder.path, told.job) if team.group == 0 else None

    def waves(self, planned: list[list[Stream]]) -> list[list[Stream]]:
        """Take the grouping of a round's streams that the first process has."""
        self._groups += planned
        return planned

    def due(self, step: float = 0.0) -> bool:
        """Say whether it is time for the next checkpoint of this process's streams."""
        return self._writes and super().due(step)

    def save(self, wave: int, streams: Resumable) -> bool:
        """Write what is new, where that is this process's business."""
        return self._writes and super().save(wave, streams)

    def finish(self, wave: int, streams: Resumable) -> None:
        """Record a completed wave, where that is this process's business."""
        if self._writes:
            super().finish(wave, streams)

    def complete(self, save: Callable[[Path], None]) -> None:
        """Leave the result to the first process."""

    def recall(self, name: str) -> dict[str, Any] | None:
        """Return what an earlier run remembered."""
        return self._told.known.get(name)

    def remember(self, name: str, document: Mapping[str, Any]) -> None:
        """Leave that to the first process."""

    def abandon(self) -> None:
        """Leave that to the first process."""

    def __exit__(self, *_: object) -> None:
        """Leave the folder to the first process."""

    def _drop_rows(self, wave: int, keep: list[tuple[int, int]]) -> None:
        if self._writes:
            super()._drop_rows(wave, keep)


class _Borrowed(JobFolder):
    """The folder of a job that another process holds."""

    def __init__(self, run: Path, holder: bytes) -> None:
        self.path = run / FOLDER
        self._run, self._holder = run, holder

    @property
    def held(self) -> bool:
        """Whether it is still the same job's, in the hands of the same process."""
        return (self.path / MARKER).exists() and _holder(self._run) == self._holder

    def reserve(self, size: int) -> None:
        """Leave that to the first process."""

    def free_reserve(self) -> None:
        """Leave that to the first process."""


def _holder(run: Path) -> bytes:
    """Read what the lock's file says; nothing where it is not there."""
    for name in (LOCK, OWNER):
        with contextlib.suppress(OSError):
            return (run / FOLDER / name).read_bytes()
    return b""


def recorded_waves(run: Path) -> int | None:
    """Return how many waves an interrupted run of the job in a folder has begun with; None where there was none."""
    with contextlib.suppress(RunFolderError, TypeError, KeyError):
        if any(name.startswith("wave-") for name in files.names(run / FOLDER)):
            return len(read_json(run / FOLDER / "waves.json")["waves"])
    return None
