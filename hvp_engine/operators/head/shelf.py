"""The head's curvature in a folder, so that a resumed job has it without forming it again.

Every micro-batch's matrices have a file of their own with a checksum, ``matrices-<batch>-<first sample>-<call>``; where
memory is too small for them their packed triangles are the pages of a second one, ``pages-...``, which serve as memory.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hvp_engine.errors import RunFolderError
from hvp_engine.operators.head.pages import map_file, map_new_file, sync
from hvp_engine.ops.head.curvature import HeadCurvature
from hvp_engine.ops.head.dropping import Dropped
from hvp_engine.system.files import read_tensors, write_tensors_atomic

log = logging.getLogger(__name__)

Piece = tuple[int, int, int]  # number of the batch, of its first sample, and of the head's call in the loss

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

    def __init__(self, folder: Path) -> None:
        """Take a folder; it is made when there is something to put there."""
        self.folder = folder
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
        nearest = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        return shutil.disk_usage(nearest).free

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
        except RunFolderError as error:
            self._writes = False
            warnings.warn(f"The head's curvature is not kept: {error} The job goes on.", RuntimeWarning, stacklevel=2)

    def find(self, piece: Piece, tokens: int, dtype: torch.dtype, *, mapped: bool) -> Formed | None:
        """Return matrices of an earlier run of this job, on the CPU.

        Args:
            piece: What they belong to.
            tokens: How many there must be.
            dtype: Of the matrices.
            mapped: Whether they must not take memory.

        Returns:
            None where there are none of so many tokens.

        Raises:
            RunFolderError: They are damaged.
        """
        path = self._path(piece, "matrices")
        if not path.exists():
            return None
        stored, _ = read_tensors(path)
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

    def clear(self) -> None:
        """Delete all matrices; what else is in the folder stays."""
        self._pending.clear()
        for path in self._files():
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _write(self, piece: Piece, formed: Formed) -> None:
        curvature = formed.curvature
        tensors = {
            "lse": curvature.lse,
            "hidden_size": torch.tensor(curvature.hidden_size),
            "errors": torch.tensor([formed.error, formed.explained], dtype=torch.float64),
        }
        if curvature.dropped is not None:
            dropped = curvature.dropped
            tensors["bound"] = dropped.bound
            tensors["dropped"] = torch.tensor([dropped.relative, dropped.kept], dtype=torch.float64)
        if piece in self._mapped:
            sync(self._path(piece, "pages"))
            tensors["digest"] = _digest(curvature.packed)
        else:
            tensors["packed"] = curvature.packed
        write_tensors_atomic(self._path(piece, "matrices"), tensors)

    def _open_pages(self, piece: Piece, stored: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Map pages that are whole."""
        path = self._path(piece, "pages")
        tokens = stored["lse"].shape[0]
        try:
            packed = map_file(path, path.stat().st_size // dtype.itemsize, dtype).view(tokens, -1)
        except (OSError, RuntimeError) as error:
            raise RunFolderError(f"{path} cannot be read ({error}); delete the run folder and start again.") from error
        if not torch.equal(_digest(packed), stored["digest"]):
            raise RunFolderError(f"{path} is damaged: its checksum differs; delete the run folder and start again.")
        self._mapped.add(piece)
        return packed

    def _in_pages(self, piece: Piece, packed: Tensor) -> Tensor:
        """Move what an earlier run had in memory into pages, where there is room for them."""
        try:
            return self.pages(piece, packed.numel(), packed.dtype).view_as(packed).copy_(packed)
        except OSError as error:
            log.warning("the head's curvature stays in memory: %s", error)
            return packed

    def _path(self, piece: Piece, kind: str) -> Path:
        batch, first, call = piece
        return self.folder / f"{kind}-{batch:06d}-{first:06d}-{call:02d}{_SUFFIX[kind]}"

    def _files(self) -> Iterator[Path]:
        for kind, suffix in _SUFFIX.items():
            yield from self.folder.glob(f"{kind}-*-*-*{suffix}")


_SUFFIX = {"matrices": ".safetensors", "pages": ".bin"}


def _digest(packed: Tensor) -> Tensor:
    hasher = hashlib.blake2b(packed.reshape(-1).view(torch.uint8).numpy().data, digest_size=16)
    return torch.tensor(list(hasher.digest()), dtype=torch.uint8)
