"""The folder of a running job inside its run folder: marked, locked, and emptied by name.

Nothing is entered that lacks the marker, and nothing is deleted whose name is not one that a job gives: what somebody
else put there stays, and the folder with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hvp_engine.errors import RunFolderError
from hvp_engine.operators.head.shelf import SHELVED
from hvp_engine.system import files
from hvp_engine.system.json_files import read_json, write_json
from hvp_engine.system.locks import LOCK, OWNER, FolderLock
from hvp_engine.system.run_files import CHECKPOINT, MANIFEST, SPECTRA, refuse_strangers

FOLDER = CHECKPOINT
MARKER = "hvp_engine-marker.json"
RESERVE = "reserve"

_MARK = {
    "format": "hvp_engine checkpoint",
    "about": "A running job's; hvp_engine deletes it in the end.",
}
_LOCKS = re.compile(rf"{re.escape(LOCK)}|{re.escape(OWNER)}(\.[0-9a-f]{{12}}\.stale)?")
_WORK = re.compile(rf"wave-\d{{3,}}-(state|rows-\d{{5,}}-\d{{5,}})\.safetensors|{SHELVED.pattern}")
RECORDS = (
    "verification.json",
    "functions.json",
    "noise.json",
    "room.json",
    "head.json",
    "basis.json",
    "sittings.json",
    "waves.json",
    "identity.json",
)


def located(out: str | os.PathLike[str]) -> Path:
    """Say where a run folder is, from wherever the process goes meanwhile: a loss may change its directory.

    Raises:
        ConfigurationError: It is no path.
        RunFolderError: It is relative to a directory that is not there any more.
    """
    try:
        return files.path_of(out, "out").absolute()
    except OSError as error:
        raise RunFolderError(
            f"{out} cannot be found: the process's working directory was deleted; give out= from the root."
        ) from error


def prove_usable(run: Path) -> None:
    """Refuse a run folder in which no job can be run, before the data are touched; it is left as it was.

    Raises:
        RunFolderError: As of :class:`JobFolder`, or files cannot be written there.
    """
    if not os.path.lexists(run):
        _prove_creatable(run)
        return
    was_there = os.path.lexists(run / FOLDER)
    folder = JobFolder(run)
    try:
        for path in (run, folder.path):
            files.prove_writable(path)
    finally:
        if was_there:
            folder.close()  # with what a killed job has noted there
        else:
            folder.remove()


def _prove_creatable(run: Path) -> None:
    """Make a folder and what is missing above it in a trial folder beside its place.

    Not in its place: what is taken away again could be what another job of the same parent has just found there.
    """
    nearest = next(folder for folder in run.parents if os.path.lexists(folder))
    try:
        with tempfile.TemporaryDirectory(prefix=".hvp_engine-", dir=nearest) as trial:
            inside = Path(trial) / run.relative_to(nearest)
            inside.mkdir(parents=True)
            files.write_trial(inside)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise _uncreatable(run, error) from error


def _uncreatable(run: Path, error: Exception) -> RunFolderError:
    why = getattr(error, "strerror", None) or error
    return RunFolderError(f"{run} cannot be created ({why}); choose another folder for out=.")


def has_work(folder: Path) -> bool:
    """Say whether anything is in a job's folder that took time to compute."""
    return any(_WORK.fullmatch(name) for name in files.names(folder))


class JobFolder:
    """The folder of one job, which this process holds until :meth:`close`."""

    def __init__(self, run: Path) -> None:
        """Take the folder inside a run folder, both created where missing, and sweep what a killed process left.

        Raises:
            RunFolderError: Another job holds it, something else has its name, a result of somebody else is in the run
                folder, or it cannot be written.
        """
        self.path = run / FOLDER
        self._run = run
        try:
            run.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise _uncreatable(run, error) from error
        refuse_strangers(run)
        with files.explained(self.path):
            if not os.path.lexists(self.path):
                self.path.mkdir(exist_ok=True)
            self._refuse_stranger()
        self._lock = FolderLock(self.path, run)
        try:
            self._sweep()
            if not (self.path / MARKER).exists():
                write_json(self.path / MARKER, _MARK)
        except BaseException:
            self._give_back()
            raise

    @property
    def held(self) -> bool:
        """Whether this process still holds the folder: a forked child does not, and a deleted folder is nobody's."""
        return self._lock.held

    @property
    def has_work(self) -> bool:
        """Whether anything is there that took time to compute."""
        return has_work(self.path)

    def reserve(self, size: int) -> None:
        """Keep some disk space back for the end of the job, so that what is computed can be written."""
        self.free_reserve()
        try:
            with open(self.path / RESERVE, "xb") as file:
                files.allocate(file.fileno(), size)
        except OSError:  # the disk is full already, and what it still has is not to be held back
            self.free_reserve()

    def free_reserve(self) -> None:
        """Give the space back."""
        self.delete([RESERVE])

    def delete(self, names: Iterable[str]) -> None:
        """Delete files of the job; what cannot be deleted stays."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.path / name).unlink()

    def delete_records(self) -> None:
        """Delete what a job notes beside its work."""
        self.delete(RECORDS)

    def remove(self) -> None:
        """Delete every file of the job, and the folder where nothing else is in it; give it back."""
        if not self.held:
            self.close()
            return
        found = [name for name in files.names(self.path) if _WORK.fullmatch(name)]
        # The identity goes last of them: work without one could be taken for another job's.
        self.delete([*found, RESERVE, *RECORDS])
        if all(name == MARKER or _LOCKS.fullmatch(name) for name in files.names(self.path)):
            self.delete([MARKER])  # what somebody else put here keeps the folder, and the mark in it
        self._give_back()

    def close(self) -> None:
        """Give the folder back with what is in it."""
        self._lock.release(remove=False)

    def _give_back(self) -> None:
        """Let go of the folder, and delete it where nothing is in it."""
        self._lock.release(remove=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _refuse_stranger(self) -> None:
        """Raise unless the folder is marked, or as empty as one whose job was killed before it set the mark."""
        if not stat.S_ISDIR(os.lstat(self.path).st_mode):
            raise RunFolderError(f"{self.path} is a link or a file, no folder; move it away, or choose another out=.")
        if os.path.lexists(self.path / MARKER):
            if _is_marker(self.path / MARKER):
                return
        else:
            meant = {path.name: name for path, name in files.temporaries(self.path)}
            if all(meant.get(name) == MARKER or _LOCKS.fullmatch(name) for name in files.names(self.path)):
                return
        raise RunFolderError(
            f"{self.path} was not made by hvp_engine, or {MARKER} in it is damaged: it is left alone. Move it away, or "
            "choose another folder for out=."
        )

    def _sweep(self) -> None:
        """Delete temporary files of killed processes: nobody else writes here while this one holds the lock."""
        for path, name in [*files.temporaries(self._run), *files.temporaries(self.path)]:
            results = path.parent == self._run and name in (MANIFEST, SPECTRA)
            if results or (path.parent == self.path and _is_ours(name)):
                with contextlib.suppress(OSError):
                    path.unlink()
        self.delete(name for name in files.names(self.path) if name.startswith(OWNER) and name.endswith(".stale"))


def _is_marker(path: Path) -> bool:
    try:
        return read_json(path) == _MARK
    except RunFolderError:
        return False


def _is_ours(name: str) -> bool:
    return name == MARKER or _WORK.fullmatch(name) is not None or name in RECORDS
