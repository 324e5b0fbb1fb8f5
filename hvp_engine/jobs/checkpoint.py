"""Checkpoints of a running job inside its run folder: written as it goes, refused when foreign or damaged.

Layout: ``checkpoint/identity.json`` says which job it belongs to; ``wave-000/state.safetensors`` holds the scalars of a
wave and names its progress, and what its basis rewrites with every step (the newest vectors, unrounded, as
``window/<block>``); ``wave-000/rows-00000-00012.safetensors`` holds the Lanczos vectors of those positions. These are
written once, so that a checkpoint costs what is new, not what the basis has grown to.
"""

from __future__ import annotations

import logging
import math
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
from hvp_engine.krylov.basis import Basis
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.system.files import read_json, read_tensors, write_json_atomic, write_tensors_atomic

log = logging.getLogger(__name__)

_EVERY = 60.0  # seconds between checkpoints ...
_OVERHEAD = 20.0  # ... and at least this many times what the last one took to write
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
    """Saves and restores the waves of one job."""

    def __init__(self, run: Path, identity: Mapping[str, Any]) -> None:
        """Open the checkpoint of a run folder.

        The folder belongs to this job from :meth:`waves` on: a job that is refused before that, by its memory budget
        say, can be run again there with other settings.

        Args:
            run: The run folder; created where missing.
            identity: Everything that decides the job's numbers, as JSON data.

        Raises:
            RunFolderError: The folder belongs to another job, or cannot be read or written.
        """
        self.folder = run / "checkpoint"
        self._written: dict[int, int] = {}
        self._last = time.monotonic()
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

    def waves(self, planned: list[list[Stream]]) -> list[list[Stream]]:
        """Return the grouping of streams that this job started with; how much memory is free may have changed since.

        Raises:
            RunFolderError: The folder cannot be read or written.
        """
        path = self.folder / "waves.json"
        if self._owner.exists() and path.exists():
            return [[(str(block), int(probe)) for block, probe in wave] for wave in read_json(path)]
        write_json_atomic(path, planned)
        write_json_atomic(self._owner, self._identity)
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

    def due(self) -> bool:
        """Say whether it is time for the next checkpoint."""
        return time.monotonic() - self._last >= self._pause

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
        self._pause = max(_EVERY, _OVERHEAD * (self._last - started))
        return written

    def finish(self, wave: int, streams: Resumable) -> None:
        """Record a completed wave and drop its vectors."""
        if self.save(wave, streams):
            for path in self._wave(wave).glob("rows-*"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the checkpoint of a completed job."""
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


def refuse_foreign(found: Mapping[str, Any], wanted: Mapping[str, Any], run: Path) -> None:
    """Raise unless a stored identity equals this job's.

    Raises:
        RunFolderError: They differ; the message names in what.
    """
    keys = [key for key in {**found, **wanted} if not _same(found.get(key), wanted.get(key))]
    if keys:
        details = "; ".join(
            f"{key}: {_short(found.get(key))} there, {_short(wanted.get(key))} here" for key in keys[:3]
        )
        raise RunFolderError(
            f"{run} holds another job ({details}). Choose another folder for out=, or delete that one."
        )


def _same(a: object, b: object) -> bool:
    """Say whether two values are equal, but for rounding that thread counts and processors change."""
    return math.isclose(a, b, rel_tol=1e-5) if isinstance(a, float) and isinstance(b, float) else a == b


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
