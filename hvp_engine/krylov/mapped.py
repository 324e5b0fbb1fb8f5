"""Lanczos vectors in a memory-mapped file, for a machine that has less memory than its disk has room."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.krylov.basis import Elsewhere
from hvp_engine.krylov.settling import SettlingBasis, Shape
from hvp_engine.system.formatting import format_bytes
from hvp_engine.system.pages import map_temporary_file

_ALIGNMENT = 4096  # bytes; rows of two blocks share no page


class MappedBasis(SettlingBasis):
    """All vectors in a file of their own, and the newest two in memory: every step reads the others from there.

    The file lies where temporary files do (``TMPDIR``) and has no name: nothing is left of it when the process ends,
    however that happens. Its whole size is reserved at once. What of it the kernel keeps in memory is what nobody else
    asks for, and is no part of a job's budget. On a CPU the kernels read the mapped rows where they are.
    """

    elsewhere: ClassVar[Elsewhere | None] = "disk"

    @classmethod
    def _allocate(cls, shapes: Mapping[str, Shape], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Map a file for the rows of all blocks.

        Raises:
            OutOfMemoryError: The disk has no room for it.
        """
        step = _ALIGNMENT // dtype.itemsize
        sizes = {block: math.prod(shape) for block, shape in shapes.items()}
        room = {block: -(-size // step) * step for block, size in sizes.items()}
        try:
            pages = map_temporary_file(sum(room.values()), dtype, in_order=True)
        except OSError as error:
            narrower = "" if dtype == torch.int8 else "basis='int8-mmap', "
            need = format_bytes(sum(room.values()) * dtype.itemsize)
            raise OutOfMemoryError(
                f"The Lanczos vectors need a file of {need}, for which there is no room where temporary files "
                f"go ({tempfile.gettempdir()}: {error.strerror or error}). Free some there, set TMPDIR to a folder "
                f"with more, or use {narrower}fewer steps or smaller blocks."
            ) from error
        places = dict(zip(shapes, torch.split(pages, list(room.values())), strict=True))
        return {block: places[block][: sizes[block]].view(shape) for block, shape in shapes.items()}
