"""The head's curvature in a folder, so that a resumed job has it without forming it again.

Every micro-batch's matrices have a file of their own, ``head-<batch>-<first sample>-<call>.safetensors``, with a
checksum that covers the job; where memory is too small for them their packed triangles are the pages of a second one,
``head-....pages``, which serve as memory. What is damaged there is said, and formed again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hvp_engine.errors import RunFolderError
from hvp_engine.ops.head.curvature import HeadCurvature
from hvp_engine.ops.head.dropping import Dropped
from hvp_engine.system.files import names
from hvp_engine.system.pages import map_file, map_new_file, sync
from hvp_engine.system.tensor_files import read_sealed_tensors, write_tensors

log = logging.getLogger(__name__)

Piece = tuple[int, int, int]  # number of the batch, of its first sample, and of the head's call in the loss

SHELVED = re.compile(r"head-\d{6,}-\d{6,}-\d{2,}\.(safetensors|pages)")  # names of the files

_EVERY = 20.0  # seconds of forming between writings
_SMALL = 64 << 20  # bytes that are written whatever they took to form ...
_RATE = 50e6  # ... and bytes per second: what is formed faster is not worth the writing


@dataclass(frozen=True)
class Formed:
    """The matrices of one call of the head, and what was measured of them.

    Attributes:
        curvature: The matrices.
        error: Their relative error.
        explained: As much of it as dropped classes explain.
    """

    curvature: HeadCurvature
    error: float
    explained: float


class Shelf:
    """The folder of one job's matrices."""

    def __init__(self, folder: Path, job: str) -> None:
        """Take a folder.

        Args:
            folder: Where files go.
            job: What tells the job from others.
        """
        self._folder = folder
        self._job = job
        self._pending: dict[Piece, Formed] = {}
        self._seconds = 0.0
        self._writes = True
        self._mapped: set[Piece] = set()  # what lies in pages

    @property
    def stored_bytes(self) -> int:
        """Size of what is there."""
        return sum(path.stat().st_size for path in self._files())

    @property
    def free_bytes(self) -> int:
        """Room that is left beside it."""
        return shutil.disk_usage(self._folder).free

    def pages(self, piece: Piece, size: int, dtype: torch.dtype) -> Tensor:
        """Return mapped pages for packed matrices.

        Raises:
            OSError: There is no room for them.
        """
        self._mapped.discard(piece)
        packed = map_new_file(self._path(piece, "pages"), size, dtype)
        self._mapped.add(piece)
        return packed

    def add(self, piece: Piece, formed: Formed, seconds: float) -> None:
        """Take matrices in, and write them and those before them when that is due.

        Args:
            piece: What they belong to.
            formed: The matrices.
            seconds: What it took to form them.
        """
        self._pending[piece] = formed
        self._seconds += seconds
        if self._seconds >= _EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what was taken in and is worth it; on a full disk warn, and write nothing more."""
        pending, seconds = self._pending, self._seconds
        self._pending, self._seconds = {}, 0.0
        size = sum(formed.curvature.packed.nbytes for formed in pending.values())
        if not self._writes or (size > _SMALL and size > _RATE * seconds):
            return
        try:
            for piece, formed in pending.items():
                self._write(piece, formed)
        except (RunFolderError, OSError) as error:
            self._writes = False
            warnings.warn(f"The head's curvature is not kept ({error}); the job goes on.", RuntimeWarning, stacklevel=2)

    def find(self, piece: Piece, tokens: int, dtype: torch.dtype, *, mapped: bool) -> Formed | None:
        """Return matrices of an earlier run of this job, on the CPU.

        Args:
            piece: What they belong to.
            tokens: How many there must be.
            dtype: Of the matrices.
            mapped: Whether they must not take memory.

        Returns:
            None where there are none of so many tokens, or they are damaged, which is said.
        """
        try:
            return self._read(piece, tokens, dtype, mapped=mapped)
        except (RunFolderError, KeyError, TypeError, ValueError) as error:
            warnings.warn(f"The head's curvature is formed again: {error}", RuntimeWarning, stacklevel=2)
            return None

    def clear(self) -> None:
        """Delete all matrices; what else is in the folder stays."""
        self._pending.clear()
        for path in self._files():
            path.unlink(missing_ok=True)

    def _read(self, piece: Piece, tokens: int, dtype: torch.dtype, *, mapped: bool) -> Formed | None:
        path = self._path(piece, "safetensors")
        if not os.path.lexists(path):
            return None
        stored = read_sealed_tensors(path, self._key(path))
        lse = stored["lse"]
        if lse.shape[0] != tokens:
            return None
        packed = stored.get("packed")
        if packed is None:
            packed = self._open_pages(piece, stored, dtype)
        elif mapped:
            packed = self._in_pages(piece, packed)
        dropped = None
        if "bound" in stored:
            dropped = Dropped(stored["bound"], *stored["dropped"].tolist())
        curvature = HeadCurvature(packed, int(stored["hidden_size"]), lse, None, dropped)
        return Formed(curvature, *stored["errors"].tolist())

    def _write(self, piece: Piece, formed: Formed) -> None:
        curvature = formed.curvature
        tensors = {
            "lse": curvature.lse,
            "hidden_size": torch.tensor(curvature.hidden_size, device="cpu"),
            "errors": torch.tensor([formed.error, formed.explained], dtype=torch.float64, device="cpu"),
        }
        if curvature.dropped is not None:
            dropped = curvature.dropped
            tensors["bound"] = dropped.bound
            tensors["dropped"] = torch.tensor([dropped.relative, dropped.kept], dtype=torch.float64, device="cpu")
        if piece in self._mapped:
            sync(self._path(piece, "pages"))
            tensors["digest"] = _digest(curvature.packed)
        else:
            tensors["packed"] = curvature.packed
        path = self._path(piece, "safetensors")
        write_tensors(path, tensors, self._key(path))

    def _open_pages(self, piece: Piece, stored: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Map pages that are whole."""
        path = self._path(piece, "pages")
        tokens = stored["lse"].shape[0]
        try:
            packed = map_file(path, path.stat().st_size // dtype.itemsize, dtype).view(tokens, -1)
        except (OSError, RuntimeError) as error:
            raise RunFolderError(f"{path} cannot be read ({error}).") from error
        if not torch.equal(_digest(packed), stored["digest"]):
            raise RunFolderError(f"{path} is damaged, its checksum differs.")
        self._mapped.add(piece)
        return packed

    def _in_pages(self, piece: Piece, packed: Tensor) -> Tensor:
        """Move what an earlier run had in memory into pages, where there is room for them."""
        try:
            return self.pages(piece, packed.numel(), packed.dtype).view_as(packed).copy_(packed)
        except OSError as error:
            log.warning("the head's curvature stays in memory: %s", error)
            return packed

    def _path(self, piece: Piece, suffix: str) -> Path:
        batch, first, call = piece
        return self._folder / f"head-{batch:06d}-{first:06d}-{call:02d}.{suffix}"

    def _key(self, path: Path) -> str:
        """Say what a file is for."""
        return f"{self._job} {path.name}"

    def _files(self) -> list[Path]:
        return [self._folder / name for name in names(self._folder) if SHELVED.fullmatch(name)]


def _digest(packed: Tensor) -> Tensor:
    hasher = hashlib.blake2b(packed.reshape(-1).view(torch.uint8).numpy().data, digest_size=16)
    return torch.tensor(list(hasher.digest()), dtype=torch.uint8, device="cpu")
