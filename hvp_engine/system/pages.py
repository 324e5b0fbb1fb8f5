"""Files whose pages serve as memory: for matrices that are too large for it."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from hvp_engine.system.files import allocate


def map_new_file(path: Path, size: int, dtype: torch.dtype) -> Tensor:
    """Map a file of ``size`` numbers, made anew; all of its space is reserved before the first one is written.

    A page for which the disk has no room any more ends the process when it is written to: there must be none.

    Raises:
        OSError: The file cannot be made that large.
    """
    path.unlink(missing_ok=True)  # an older mapping of it keeps its pages
    try:
        with open(path, "xb") as file:
            allocate(file.fileno(), size * dtype.itemsize)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return map_file(path, size, dtype)


def map_file(path: Path, size: int, dtype: torch.dtype) -> Tensor:
    """Map the pages of a file of ``size`` numbers, which must be there; writing to them writes to it.

    Raises:
        OSError: It is not there, or cannot be mapped.
    """
    try:
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be mapped: {str(error).splitlines()[0]}") from error


def map_temporary_file(size: int, dtype: torch.dtype, *, in_order: bool = False) -> Tensor:
    """Map a file that has no name, so that no crash leaves it behind; all of its space is reserved first.

    Args:
        size: Its numbers, at least 1.
        dtype: Their type.
        in_order: Whether it will be read from front to back, many rows side by side perhaps: the kernel then reads
            ahead of each, and lets go of what was read before it lets go of other files.

    Raises:
        OSError: There is no room for it where temporary files go.
    """
    with tempfile.TemporaryFile(prefix="hvp_engine_") as file:
        allocate(file.fileno(), size * dtype.itemsize)
        pages = mmap.mmap(file.fileno(), size * dtype.itemsize)
    if in_order and hasattr(mmap, "MADV_SEQUENTIAL"):
        pages.madvise(mmap.MADV_SEQUENTIAL)
    return torch.frombuffer(pages, dtype=dtype)


def sync(path: Path) -> None:
    """Let the disk have what was written to the pages of a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
