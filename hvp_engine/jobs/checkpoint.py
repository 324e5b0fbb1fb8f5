"""Checkpoints of a running job inside its run folder: written as it goes, refused when foreign or damaged.

Layout: ``checkpoint/identity.json`` says which job it belongs to; ``wave-000/state.safetensors`` holds the scalars of a
wave and names its progress, and what its basis rewrites with every step (the newest vectors, unrounded, as
``window/<block>``); ``wave-000/rows-00000-00012.safetensors`` holds the Lanczos vectors of those positions. These are
written once, so that a checkpoint costs what is new, not what the basis has grown to.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.jobs.comparison import refuse_foreign
from hvp_engine.krylov.basis import Basis
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.operators.head.shelf import Shelf
from hvp_engine.system.files import read_json, read_tensors, write_json_atomic, write_tensors_atomic

log = logging.getLogger(__name__)

# Seconds between checkpoints: _EVERY, or _OVERHEAD times what the last one took to write where that is more; but then
# no more than a share of the work so far, which a crash may cost, or _LEAST times the writing, lest it take over.
_EVERY, _OVERHEAD, _SHARE, _LEAST = 30.0, 20.0, 0.05, 3.0
_WINDOW = "window/"
_ROWS = re.compile(r"rows-(\d{5})-(\d{5})\.safetensors")


class Resumable(Protocol):
    """What a checkpoint keeps of a wave: scalars, rewritten every time, and Lanczos vectors, written once."""

    position: int
    """Steps done by the live streams."""

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """(streams,): steps done by each."""

    @property
    def finished(self) -> bool:
        """Whether no stream has a step left."""

    @property
    def scalars(self) -> Mapping[str, Tensor]:
        """A few numbers per stream by name, to be copied from and to."""

    @property
    def basis(self) -> Basis | None:
        """The vectors; None for streams that keep none."""

    def resume(self, position: int) -> None:
        """Go on from restored scalars and vectors."""


class Checkpoint:
    """Saves and restores the waves of one job.

    Attributes:
        folder: Where it is.
        shelf: Keeps the head's curvature.
        worked_before: Seconds that earlier runs of the job took.
    """

    def __init__(self, run: Path, identity: Mapping[str, Any]) -> None:
        """Open the checkpoint of a run folder.

        The folder belongs to this job from :meth:`claim` on, unless it is refused before its first step, by its memory
        budget say: then it can be run again there with other settings.

        Args:
            run: The run folder; created where missing.
            identity: Everything that decides the job's numbers, as JSON data.

        Raises:
            RunFolderError: The folder belongs to another job, or cannot be read or written.
        """
        self.folder = run / "checkpoint"
        self.worked_before = 0.0
        self.shelf = Shelf(self.folder / "curvature")
        self._written: dict[int, int] = {}
        self._started = self._last = time.monotonic()
        self._pause = _EVERY
        self._identity = dict(identity)
        if self._owner.exists():
            refuse_foreign(read_json(self._owner), identity, run)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{run} cannot be created ({error}); choose another folder for out=.") from error

    @property
    def _owner(self) -> Path:
        return self.folder / "identity.json"

    def claim(self) -> None:
        """Say that the folder belongs to this job.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        write_json_atomic(self._owner, self._identity)

    def abandon(self) -> None:
        """Give the folder back where no step has been saved: a job that was refused may be run again otherwise."""
        if not any(self.folder.glob("wave-*/state.safetensors")):
            self.remove()

    def recall(self, name: str) -> dict[str, Any] | None:
        """Return what :meth:`remember` kept of an earlier run of this job; None where it kept nothing.

        Raises:
            RunFolderError: It cannot be read.
        """
        path = self.folder / f"{name}.json"
        return dict(read_json(path)) if path.exists() else None

    def remember(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep what a run need not find out again; where that cannot be written, it will be."""
        try:
            write_json_atomic(self.folder / f"{name}.json", document)
        except RunFolderError as error:
            warnings.warn(f"Not kept for a resumed run: {error} The job goes on.", RuntimeWarning, stacklevel=2)

    def waves(self, planned: list[list[Stream]]) -> list[list[Stream]]:
        """Return the grouping of streams that this job started with; how much memory is free may have changed since.

        Raises:
            RunFolderError: The folder cannot be read or written.
        """
        path = self.folder / "waves.json"
        if path.exists():
            return [[(str(block), int(probe)) for block, probe in wave] for wave in read_json(path)]
        write_json_atomic(path, planned)
        return planned

    def restore(self, wave: int, streams: Resumable) -> None:
        """Continue a wave where its last checkpoint left it; a wave without one is left alone.

        Raises:
            RunFolderError: The checkpoint is damaged.
        """
        folder = self._wave(wave)
        if not (folder / "state.safetensors").exists():
            return
        state, _ = read_tensors(folder / "state.safetensors")
        try:
            position = int(state.pop("position"))
            for key, target in streams.scalars.items():
                value = state[key]
                if target.shape != value.shape:
                    raise ValueError(f"{key} has shape {tuple(value.shape)}, not {tuple(target.shape)}")
                target.copy_(value)
        except (KeyError, ValueError) as error:
            raise self._damaged(folder, f"its state does not fit this job ({error})") from error
        streams.resume(position)
        if streams.finished:
            return
        if streams.basis is not None:
            self._written[wave] = self._read_rows(folder, streams.basis, position + 1)
            window = {key.removeprefix(_WINDOW): value for key, value in state.items() if key.startswith(_WINDOW)}
            try:
                streams.basis.restore_window(window)
            except ConfigurationError as error:
                raise self._damaged(folder, f"its newest vectors do not fit this job ({error})") from error
        log.info("resumed wave %d at step %d", wave, position)

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
        if self.save(wave, streams):
            for path in self._wave(wave).glob("rows-*"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the checkpoint of a completed job."""
        self.shelf.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self, wave: int, streams: Resumable) -> None:
        folder = self._wave(wave)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{folder} cannot be created ({error}).") from error
        tensors: dict[str, Tensor] = {key: value.cpu().clone() for key, value in streams.scalars.items()}
        tensors["position"] = torch.tensor(streams.position)
        if streams.basis is not None and not streams.finished:
            first, last = self._written.get(wave, 0), streams.position + 1
            if first < last and (rows := streams.basis.export(first, last)):
                write_tensors_atomic(folder / f"rows-{first:05d}-{last:05d}.safetensors", rows)
            tensors |= {_WINDOW + name: window for name, window in streams.basis.export_window().items()}
            self._written[wave] = max(first, last)
        # The state names the progress, so it is written last: a crash before this line leaves the earlier checkpoint.
        write_tensors_atomic(folder / "state.safetensors", tensors)

    def _read_rows(self, folder: Path, basis: Basis, needed: int) -> int:
        """Load all vectors up to ``needed``; return how many positions are on disk."""
        if not basis.keeps_all:
            return needed
        have = 0
        for path in sorted(folder.glob("rows-*.safetensors")):
            match = _ROWS.fullmatch(path.name)
            if match is None or int(match[1]) != have:
                continue
            if int(match[2]) > needed:
                path.unlink()  # written just before a crash; its steps are taken again, and written again
                break
            rows, _ = read_tensors(path)
            try:
                basis.restore(have, int(match[2]), rows)
            except ConfigurationError as error:
                raise self._damaged(path, f"its vectors do not fit this job ({error})") from error
            have = int(match[2])
        if have < needed:
            raise self._damaged(folder, f"Lanczos vectors {have} to {needed - 1} are missing")
        return have

    def _wave(self, wave: int) -> Path:
        return self.folder / f"wave-{wave:03d}"

    @staticmethod
    def _damaged(path: Path, why: str) -> RunFolderError:
        return RunFolderError(f"The checkpoint {path} is damaged: {why}. Delete the run folder and start again.")
