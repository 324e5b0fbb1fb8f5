"""Checkpoints of a running job inside its run folder: written as it goes, refused when foreign or damaged.

Files in ``hvp_engine-checkpoint/``: ``identity.json`` says which job it belongs to, ``waves.json`` how its streams are
grouped. ``wave-000-state.safetensors`` holds the scalars of a wave, its progress, what its basis rewrites with every
step (the newest vectors, unrounded, as ``window/<block>``), and which rows files belong to it;
``wave-000-rows-00000-00012.safetensors`` holds the Lanczos vectors of those positions. These are written once (the
newest again with the next ones, where it is corrected meanwhile), so that a checkpoint costs what is new, not what the
basis has grown to.

Every file has a checksum that covers the job, the wave's streams and the file's name beside the content: one of another
job, another wave or another place does not fit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvp_engine.errors import RunFolderError
from hvp_engine.jobs.comparison import differences, refuse_foreign
from hvp_engine.jobs.folder import FOLDER, JobFolder, has_work
from hvp_engine.jobs.resumable import Resumable, SavedVectors
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.operators.head.shelf import Shelf
from hvp_engine.scheduling.waves import WORK_VECTORS
from hvp_engine.system import files
from hvp_engine.system.json_files import CHECKSUM, checksum, read_json, sealed, write_json
from hvp_engine.system.tensor_files import read_sealed_tensors, write_tensors

log = logging.getLogger(__name__)

# Seconds between checkpoints: _EVERY, or _OVERHEAD times what the last one took to write where that is more; but then
# no more than a share of the work so far, which a crash may cost, or _LEAST times the writing, lest it take over.
_EVERY, _OVERHEAD, _SHARE, _LEAST = 30.0, 20.0, 0.05, 3.0
_SCALAR, _WINDOW, _KEEPS = "scalar/", "window/", "keeps_"
_JOB = "of job"
# Vectors are copied to be written: no more positions at once than the budget has work vectors for, or than these bytes.
_PIECE, _PIECE_BYTES = WORK_VECTORS, 4 << 20
_SPARE = 1 << 20  # bytes kept back on the disk for the manifest

Range = tuple[int, int]  # first and last + 1 of the positions in a rows file


class Checkpoint:
    """Saves and restores the waves of one job; a context in which the run folder is this job's alone.

    Attributes:
        job: The checksum that binds the files to the job.
        shelf: Keeps the head's curvature; None where another process does.
        worked_before: Seconds that earlier runs of the job took.
    """

    def __init__(self, run: Path, identity: Mapping[str, Any]) -> None:
        """Take the run folder for this job, or refuse it.

        A folder in which no work was saved is given to whoever comes: a job that is refused before its first step, by
        its memory budget say, can be run again there with other settings.

        Args:
            run: The run folder; created where missing.
            identity: Everything that decides the job's numbers, as JSON data.

        Raises:
            RunFolderError: The folder belongs to another job, another one runs in it, or it cannot be read or written.
        """
        self._begin(run, JobFolder(run))
        self._resumes = False
        try:
            self.job = self._claim(identity)
            self.shelf: Shelf | None = Shelf(self._folder.path, self.job)
        except BaseException:
            self.__exit__()
            raise

    def _begin(self, run: Path, folder: JobFolder) -> None:
        """Begin with nothing known of any wave."""
        self.run = run
        self._folder = folder
        self._rows: dict[int, list[Range]] = {}
        self._groups: list[list[Stream]] = []  # of all rounds so far
        self._kept = True
        self.worked_before = 0.0
        self._started = self._last = time.monotonic()
        self._pause = _EVERY

    def __enter__(self) -> Checkpoint:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the run folder back: with the work in it, or as it was where there is none."""
        try:
            with contextlib.suppress(RunFolderError):
                if not self._folder.has_work:
                    self._folder.remove()
        finally:
            self._folder.close()

    def waves(self, planned: list[list[Stream]]) -> list[list[Stream]]:
        """Return the grouping of a round's streams that this job started with; free memory may have changed since.

        A job asks once per round, in order, before the round's first step.

        Raises:
            RunFolderError: The folder cannot be read or written.
        """
        streams = sorted(chain(*planned))
        groups: list[list[Stream]] = []
        for wave in self._recorded[len(self._groups) :]:
            if sum(map(len, groups)) < len(streams):
                groups.append(wave)
        if groups and sorted(chain(*groups)) != streams:
            raise self._damaged(self._waves_file, "its streams are not those of this job")
        self._groups += groups or planned
        if not groups:
            write_json(self._waves_file, {"waves": self._groups})
        return groups or planned

    @cached_property
    def _recorded(self) -> list[list[Stream]]:
        """The waves of all rounds of an earlier process; none where it had not begun its work."""
        path = self._waves_file
        if not (self._folder.has_work and os.path.lexists(path)):
            return []
        found = self._resumed(lambda: read_json(path)).get("waves")
        try:
            waves = [[(str(block), int(probe)) for block, probe in wave] for wave in found or []]
        except (TypeError, ValueError) as error:
            raise self._damaged(path, "it is no grouping of streams") from error
        if not waves:
            raise self._damaged(path, "its streams are not those of this job")
        return waves

    def restore(self, wave: int, streams: Resumable) -> None:
        """Continue a wave where its last checkpoint left it; a wave without one is left alone.

        Raises:
            RunFolderError: The checkpoint is damaged.
        """
        scalars = sum(value.nbytes for value in streams.scalars.values())
        self._folder.reserve(_SPARE + 4 * scalars * sum(map(len, self._groups)) // len(self._groups[wave]))
        path = self._folder.path / self._state(wave)
        ranges: list[Range] = []
        if os.path.lexists(path):
            state = self._resumed(lambda: read_sealed_tensors(path, self._key(wave, path)))
            try:
                ranges = self._restore_state(state, streams)
                self._restore_basis(wave, ranges, state, streams)
            except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
                raise self._damaged(path, f"it does not fit this job ({error})") from error
            log.info("resumed wave %d at step %d", wave, streams.position)
        self._rows[wave] = ranges
        self._drop_rows(wave, ranges)

    def due(self, step: float = 0.0) -> bool:
        """Say whether it is time for the next checkpoint.

        Args:
            step: Seconds until it can be asked again: a step that would end too late comes after it.
        """
        return time.monotonic() - self._last + step >= self._pause

    def save(self, wave: int, streams: Resumable) -> bool:
        """Write what is new since the last checkpoint; on a full disk warn, keep the last one and return False."""
        started = time.monotonic()
        written = True
        try:
            self._save(wave, streams)
        except RunFolderError as error:
            written = False
            warnings.warn(f"Checkpoint not written: {error} The job goes on.", RuntimeWarning, stacklevel=2)
        self._last = time.monotonic()
        writing, work = self._last - started, self.worked_before + self._last - self._started
        self._pause = max(_EVERY, min(_OVERHEAD * writing, max(_LEAST * writing, _SHARE * work)))
        return written

    def finish(self, wave: int, streams: Resumable) -> None:
        """Record a completed wave and drop its vectors."""
        self._folder.free_reserve()
        if self.save(wave, streams):
            self._drop_rows(wave, [])
        else:
            self._kept = False

    def complete(self, save: Callable[[Path], None]) -> None:
        """Write the result of the job into its run folder, then delete the checkpoint.

        Raises:
            ConfigurationError: The result cannot be written as JSON.
            RunFolderError: The result cannot be written; the checkpoint stays.
        """
        self._folder.free_reserve()
        try:
            save(self.run)
        except RunFolderError as error:
            kept = "All that was computed is" if self._kept else "What the last checkpoint could write is"
            then = "finishes without a step" if self._kept else "goes on from there"
            raise RunFolderError(f"{error} {kept} kept in {self._folder.path}; the same call again {then}.") from error
        self.discard()

    def discard(self) -> None:
        """Delete the checkpoint."""
        self._folder.remove()

    def recall(self, name: str) -> dict[str, Any] | None:
        """Return what :meth:`remember` kept of an earlier run of this job; None where it kept nothing.

        Raises:
            RunFolderError: It cannot be read, or is damaged.
        """
        path = self._folder.path / f"{name}.json"
        if not os.path.lexists(path):
            return None
        found = self._resumed(lambda: read_json(path))
        if found.pop(_JOB, None) != self.job or not isinstance(found.get(name), dict):
            raise self._damaged(path, "it is of another job")
        return dict(found[name])

    def remember(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep what a run need not find out again; where that cannot be written, it will be."""
        try:
            write_json(self._folder.path / f"{name}.json", {_JOB: self.job, name: document})
        except RunFolderError as error:
            warnings.warn(f"Not kept for a resumed run: {error} The job goes on.", RuntimeWarning, stacklevel=2)

    def abandon(self) -> None:
        """Forget what was kept before the first step: a job that was refused may run here again otherwise.

        What an earlier run has kept stays: a resumed job is refused for its settings of memory, say, not for its work.
        """
        if not self._resumes and self.shelf is not None:
            self.shelf.clear()

    def _claim(self, identity: Mapping[str, Any]) -> str:
        """Write whose folder this is, or compare; return the checksum that binds the other files to it."""
        path = self._folder.path / "identity.json"
        found: dict[str, Any] | None = None
        if os.path.lexists(path):
            try:
                found = self._resumed(lambda: read_json(path))
            except RunFolderError:
                if self._folder.has_work:
                    raise
        self._resumes = found is not None and self._folder.has_work
        if found is not None and self._resumes:
            refuse_foreign(found, identity, self.run)
        if found is not None and not differences(found, identity):
            return checksum(found)
        self._folder.delete_records()
        write_json(path, identity)
        return str(sealed(identity)[CHECKSUM])

    def _restore_state(self, state: Mapping[str, Tensor], streams: Resumable) -> list[Range]:
        """Put the scalars and the position back; return the ranges of the rows files.

        A scalar that says what a version keeps, ``keeps_...``, is nan where an earlier one wrote the file.
        """
        position = int(state["position"])
        for key, target in streams.scalars.items():
            name = _SCALAR + key
            value = torch.full_like(target, math.nan) if key.startswith(_KEEPS) and name not in state else state[name]
            if (target.shape, target.dtype) != (value.shape, value.dtype):
                raise ValueError(f"{key} has another shape or dtype.")
            target.copy_(value)
        if position < 0:
            raise ValueError(f"The position is {position}.")
        streams.resume(position)
        return [(int(first), int(last)) for first, last in state["rows"].tolist()]

    def _restore_basis(self, wave: int, ranges: list[Range], state: Mapping[str, Tensor], streams: Resumable) -> None:
        """Put the vectors back that the wave's next steps need."""
        if streams.finished or streams.basis is None:
            return
        reached = 0
        for first, last in ranges:
            path = self._folder.path / self._rows_file(wave, first, last)
            rows = self._resumed(lambda path=path: read_sealed_tensors(path, self._key(wave, path)))  # type: ignore[misc]
            if first > reached:
                raise self._damaged(path, f"Lanczos vectors {reached} to {first - 1} are missing")
            streams.basis.restore(first, last, rows)
            reached = last
        if streams.basis.keeps_all and reached != streams.position + 1:
            raise ValueError(f"Of {streams.position + 1} Lanczos vectors {reached} are there.")
        streams.basis.restore_window(
            {key.removeprefix(_WINDOW): value for key, value in state.items() if key.startswith(_WINDOW)}
        )

    def _save(self, wave: int, streams: Resumable) -> None:
        if not self._folder.held:
            raise RunFolderError(
                f"{self._folder.path} was deleted or replaced while the job ran, or this process is a child of its own."
            )
        tensors = {_SCALAR + key: value.cpu() for key, value in streams.scalars.items()}
        tensors["position"] = torch.tensor(streams.position, device="cpu")
        ranges: list[Range] = []
        if streams.basis is not None and not streams.finished:
            ranges = self._rows.get(wave, [])
            first, last = ranges[-1][1] if ranges else 0, streams.position + 1
            if 0 < first < last and streams.basis.corrects_newest:
                first -= 1
            for start, stop in _pieces(streams.basis, first, last):
                self._write(wave, self._rows_file(wave, start, stop), streams.basis.export(start, stop))
                ranges = [*ranges, (start, stop)]
            tensors |= {_WINDOW + name: window for name, window in streams.basis.export_window().items()}
        tensors["rows"] = torch.tensor(ranges, dtype=torch.int64, device="cpu").reshape(-1, 2)
        # The state names the progress and its rows, so it is written last: a crash before this line leaves the earlier
        # checkpoint, and rows that nobody names.
        self._write(wave, self._state(wave), tensors)
        self._rows[wave] = ranges

    def _write(self, wave: int, name: str, tensors: Mapping[str, Tensor]) -> None:
        path = self._folder.path / name
        write_tensors(path, tensors, self._key(wave, path))

    def _key(self, wave: int, path: Path) -> str:
        """Say what a file of a wave is for."""
        return checksum([self.job, self._groups[wave], path.name])

    def _drop_rows(self, wave: int, keep: list[Range]) -> None:
        """Delete the rows files of a wave that its state does not name."""
        kept = {self._rows_file(wave, first, last) for first, last in keep}
        prefix = f"{_prefix(wave)}-rows-"
        self._folder.delete(n for n in files.names(self._folder.path) if n.startswith(prefix) and n not in kept)

    def _resumed(self, read: Callable[[], Any]) -> Any:
        """Read a file of an earlier process; where that fails, say what to do."""
        try:
            return read()
        except RunFolderError as error:
            raise RunFolderError(f"{error} {_fresh_start(self._folder.path)}") from error

    def _damaged(self, path: Path, why: str) -> RunFolderError:
        return RunFolderError(f"The checkpoint {path} is damaged: {why}. {_fresh_start(self._folder.path)}")

    @property
    def _waves_file(self) -> Path:
        return self._folder.path / "waves.json"

    @staticmethod
    def _state(wave: int) -> str:
        return f"{_prefix(wave)}-state.safetensors"

    @staticmethod
    def _rows_file(wave: int, first: int, last: int) -> str:
        return f"{_prefix(wave)}-rows-{first:05d}-{last:05d}.safetensors"


def _pieces(basis: SavedVectors, first: int, last: int) -> Iterator[Range]:
    """Cut a range of positions into pieces that are small beside the basis."""
    if not basis.keeps_all or first >= last:
        return
    one = sum(vectors.nbytes for vectors in basis.export(first, first + 1).values())
    count = max(_PIECE, _PIECE_BYTES // max(1, one))
    for start in range(first, last, count):
        yield start, min(start + count, last)


def _prefix(wave: int) -> str:
    return f"wave-{wave:03d}"


def _fresh_start(folder: Path) -> str:
    return f"To compute from the beginning, delete {folder}."


def begun(run: Path) -> dict[str, Any] | None:
    """Return the identity of the job whose work is in a run folder; None where there is no such work.

    Raises:
        RunFolderError: It cannot be read.
    """
    path = run / FOLDER / "identity.json"
    if not (has_work(path.parent) and os.path.lexists(path)):
        return None
    try:
        return read_json(path)
    except RunFolderError as error:
        raise RunFolderError(f"{error} {_fresh_start(path.parent)}") from error


def sweep_finished(run: Path, identity: Mapping[str, Any]) -> None:
    """Delete what this job left in a folder if it was killed after its result was written, where that is possible."""
    if os.path.lexists(run / FOLDER):
        # Refused is also the work of another job, which is not lost because a result was put beside it.
        with contextlib.suppress(RunFolderError), Checkpoint(run, identity) as checkpoint:
            checkpoint.discard()
