"""Writing files whole or not at all, and opening them to read without trusting what they are."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hvp_engine.errors import ConfigurationError, RunFolderError

Chunks = Sequence[bytes | memoryview]

_ZEROS = bytes(1 << 20)
_PROOF = bytes(4096)  # a block: a full disk may still have room for names
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.tmp")


def path_of(given: str | os.PathLike[str], name: str = "") -> Path:
    """Return a path, which an argument may have given.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        return Path(given)
    except TypeError as error:
        shown = f"{name}={given!r}" if name else repr(given)
        raise ConfigurationError(f"{shown} is no path; give a string or a pathlib.Path.") from error


def write_atomic(contents: Mapping[Path, Chunks]) -> None:
    """Write and sync every file under a temporary name beside its own, then rename all of them in order.

    Args:
        contents: Bytes of each file, in pieces; its folder must be there.

    Raises:
        RunFolderError: A file cannot be written; the earlier ones are then intact.
    """
    with ExitStack() as stack:
        pending: list[tuple[Path, Path]] = []
        for path, chunks in contents.items():
            with explained(path):
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
                with open(temporary, "xb") as file:
                    stack.callback(_forget, temporary)
                    for chunk in chunks:
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
            pending.append((temporary, path))
        for temporary, path in pending:
            with explained(path):
                os.replace(temporary, path)
                _sync_folder(path.parent)


def prove_writable(folder: Path) -> None:
    """Make a folder where it is missing, and write a file into it of which nothing is left: before hours of work.

    Raises:
        RunFolderError: It cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        why = getattr(error, "strerror", None) or error
        raise RunFolderError(
            f"The folder {folder} cannot be created ({why}); choose another folder, one that you may write to."
        ) from error
    with explained(folder):
        write_trial(folder)


def write_trial(folder: Path) -> None:
    """Write a file into a folder, of which nothing is left.

    Raises:
        OSError: It cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(_PROOF)
        file.flush()
        os.fsync(file.fileno())  # a quota, or a full disk on the network, may tell no earlier


def temporaries(folder: Path) -> Iterator[tuple[Path, str]]:
    """List what :func:`write_atomic` leaves in a folder when its process is killed: path, and name of the file meant.

    Raises:
        RunFolderError: The folder cannot be read.
    """
    for name in names(folder):
        if match := _TEMPORARY.fullmatch(name):
            yield folder / name, match["name"]


def names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none where there is no folder.

    Raises:
        RunFolderError: The folder cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


@contextmanager
def open_to_read(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; give it and its size in bytes.

    A pipe or a device of that name would block or never end, so those are refused.

    Raises:
        RunFolderError: It is missing, no regular file, or cannot be read, also while the context is open.
    """
    try:
        # A pipe without a writer would wait in open().
        with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RunFolderError(f"{path} is not a regular file; check the path.")
            yield file, status.st_size
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise unreadable(path, error) from error


def read_whole(path: Path, most: int) -> bytes:
    """Read a file of at most ``most`` bytes.

    Raises:
        RunFolderError: It is larger, missing, or cannot be read.
    """
    with open_to_read(path) as (file, size):
        if size > most:
            raise RunFolderError(f"{path} is damaged, {size} bytes are too many for it; restore it from a copy.")
        return file.read(most)


def unreadable(path: Path, error: Exception) -> RunFolderError:
    """Say that a file cannot be read, why, and what to do."""
    why = getattr(error, "strerror", None) or error
    return RunFolderError(f"{path} cannot be read ({why}); check the path and its permissions.")


def allocate(descriptor: int, size: int) -> None:
    """Take ``size`` bytes of disk space for a file that is open to be written.

    Raises:
        OSError: There is no room for them.
    """
    if size == 0:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, len(_ZEROS)):
        os.write(descriptor, _ZEROS[: size - start])


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` into a RunFolderError with its cause and fix."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise RunFolderError(_explanation(path, error)) from error


def _explanation(path: Path, error: Exception) -> str:
    code = error.errno if isinstance(error, OSError) else None
    why = getattr(error, "strerror", None) or error
    intact = f"the earlier files in {path.parent} are intact"
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"The disk is full: {path} could not be written ({why}); {intact}; free some space there "
            "(or raise your quota), or choose another folder."
        )
    if code == errno.ENOENT and not os.path.isdir(path.parent):
        return f"{path} could not be written: {path.parent} is not there any more; do not delete it while a job runs."
    return f"{path} could not be written ({why}); {intact}; choose a folder that you may write to."


def _forget(temporary: Path) -> None:
    """Remove a temporary file where that is possible: what stopped its writing must not be hidden by this."""
    with suppress(OSError):  # swept when the next job starts in this folder
        temporary.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Let a renaming reach the disk; not every file system can do that for a folder, and the file is whole anyway."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
