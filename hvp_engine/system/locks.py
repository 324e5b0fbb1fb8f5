"""Exclusive use of a folder by one job: a lock that the kernel takes back when its process ends, however it ends.

Where a file system has no such locks (some network mounts), a file with the holder's process and host stands for one;
of a process that is gone it is taken over, but only on the host that can tell.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import warnings
import weakref
from pathlib import Path
from typing import NoReturn

from hvp_engine.errors import RunFolderError
from hvp_engine.system.files import explained

LOCK = "lock"
OWNER = "lock-owner.json"  # the file that stands for a lock

_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_ENDED = "Z"  # state of such a process
_TRIES = 100  # a holder that ends just then deletes the file under the one who waits for it


class FolderLock:
    """A folder held by this process."""

    def __init__(self, folder: Path, shown: Path) -> None:
        """Take the lock.

        Args:
            folder: Where the lock's file lies.
            shown: What messages name.

        Raises:
            RunFolderError: Another job holds it (named by process and host), or the file cannot be written.
        """
        self._folder, self._shown, self._pid = folder, shown, os.getpid()
        self._descriptor: int | None = None
        with explained(folder / LOCK):
            self._descriptor = self._take()
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock, and the folder is still the one that it was taken in."""
        return self._descriptor is not None and self._pid == os.getpid() and _is_at(self._descriptor, self._file)

    def release(self, *, remove: bool) -> None:
        """Give the folder back, with or without deleting the lock's file."""
        try:
            if remove and self.held:
                with contextlib.suppress(OSError):
                    self._file.unlink()
        finally:
            self.close()

    def close(self) -> None:
        """Close the lock's file: what a child of this process does with the parent's, which stays locked."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        """Close the file of a lock that was interrupted before its job began."""
        self.close()

    def _take(self) -> int:
        self._file = self._folder / LOCK
        for _ in range(_TRIES):
            try:
                descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                self._folder.mkdir(exist_ok=True)
                continue
            try:
                if not _lock(descriptor):
                    self._refuse(_read_owner(self._file))
                if _is_at(descriptor, self._file):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps(myself()).encode())
                    return descriptor
            except _NoLocksError:
                os.close(descriptor)
                return self._take_by_name()
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise RunFolderError(f"{self._file} keeps being replaced; choose another folder for out=.")

    def _take_by_name(self) -> int:
        """Take the lock by creating a file, on a file system without locks."""
        warnings.warn(
            f"The file system of {self._shown} has no locks: {self._folder / OWNER} stands for one. Delete that file "
            "after a job on another host was killed.",
            RuntimeWarning,
            stacklevel=2,
        )
        with contextlib.suppress(OSError):
            self._file.unlink()
        self._file = self._folder / OWNER
        for _ in range(_TRIES):
            try:
                descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                owner = _read_owner(self._file)
                if not is_gone(owner):
                    self._refuse(owner)
                # Renamed and not deleted: of several that find the same dead owner one succeeds.
                aside = self._file.with_name(f"{OWNER}.{secrets.token_hex(6)}.stale")
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self._file, aside)
                    aside.unlink()
                continue
            os.write(descriptor, json.dumps(myself()).encode())
            os.fsync(descriptor)
            return descriptor
        raise RunFolderError(f"{self._file} keeps being replaced; choose another folder for out=.")

    def _refuse(self, owner: dict[str, str | int]) -> NoReturn:
        process = f"process {owner['pid']} on {owner['host']!r}" if owner else "a process that has not said which"
        if owner and (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname()):
            process += ", this one"
        by_name = f" If that one is gone, delete {self._file}." if self._file.name == OWNER else ""
        raise RunFolderError(
            f"Another job runs in {self._shown} ({process}). Wait for its end and call again, which then returns its "
            f"result, or choose another folder for out=.{by_name}"
        )


class _NoLocksError(Exception):
    """The file system has no locks."""


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close what a forked child inherited: it would keep the lock after its parent's death."""
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_close_in_child)


def _lock(descriptor: int) -> bool:
    """Lock an open file for this description of it, so that threads of one process exclude each other too.

    Raises:
        _NoLocksError: The file system has no locks.
        OSError: It failed for another reason.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _WITHOUT_LOCKS:
            raise _NoLocksError from error
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Say whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def myself() -> dict[str, str | int]:
    """Return what others know this process by: its number, host, and when it started."""
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "start": _started(pid)}


def _read_owner(path: Path) -> dict[str, str | int]:
    """Read who holds a lock; nothing where it is not (yet) said."""
    try:
        with open(path, "rb") as file:
            owner = json.loads(file.read(4096))
        return {"pid": int(owner["pid"]), "host": str(owner["host"]), "start": str(owner["start"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return {}


def is_gone(owner: dict[str, str | int]) -> bool:
    """Say whether a process is certainly dead: on this host, and not there, or another one of its number.

    Args:
        owner: As :func:`myself` gave it there; nothing known is not certain.
    """
    if not owner or owner["host"] != socket.gethostname():
        return False
    pid = int(owner["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return _started(pid) != owner["start"]


def _started(pid: int) -> str:
    """Return when a process started, by Linux's clock since the boot, and which boot; empty elsewhere.

    Empty is also that of one that has ended and that its parent has not looked at yet.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state[0] == _ENDED else f"{boot} {state[19]}"
    except (OSError, IndexError):
        return ""
