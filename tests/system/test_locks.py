"""Exclusive use of a folder, by the kernel's locks and without them."""

import errno
import fcntl
import gc
import json
import os
import socket
import threading

import pytest

from hvp_engine.errors import RunFolderError
from hvp_engine.system import locks
from hvp_engine.system.locks import LOCK, OWNER, FolderLock

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # said by fork, Python 3.12 on


def in_a_child(function):
    """Run something in a forked process; return its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = int(function() or 0)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_refused(folder):
    try:
        FolderLock(folder, folder)
    except RunFolderError:
        return 7
    return 0


@pytest.fixture(params=[True, False], ids=["locks of the kernel", "no locks"])
def by_kernel(request, monkeypatch):
    if not request.param:

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


@pytest.mark.filterwarnings("ignore:The file system of .* has no locks")
def test_a_second_one_is_refused_until_the_first_ends(tmp_path, by_kernel):
    lock = FolderLock(tmp_path, tmp_path)
    assert lock.held
    message = f"Another job runs in .*process {os.getpid()} on '{socket.gethostname()}', this one"
    with pytest.raises(RunFolderError, match=message) as caught:
        FolderLock(tmp_path, tmp_path)
    assert (OWNER in str(caught.value)) != by_kernel
    found = []
    thread = threading.Thread(target=lambda: found.append(is_refused(tmp_path)))
    thread.start()
    thread.join()
    assert found == [7]
    assert in_a_child(lambda: is_refused(tmp_path)) == 7
    assert lock.held
    lock.release(remove=True)
    assert not lock.held and not os.listdir(tmp_path)
    assert is_refused(tmp_path) == 0


@pytest.mark.filterwarnings("ignore:The file system of .* has no locks")
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, by_kernel):
    def killed():
        lock = FolderLock(tmp_path, tmp_path)
        os.kill(os.getpid(), 9) if lock.held else None

    assert in_a_child(killed) == -9
    assert os.listdir(tmp_path) == [LOCK if by_kernel else OWNER]
    assert FolderLock(tmp_path, tmp_path).held


def test_a_child_neither_keeps_nor_breaks_its_parents_lock(tmp_path):
    lock = FolderLock(tmp_path, tmp_path)
    ready, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # as a worker that outlives the job
        status = 3 if lock.held else 0
        lock.release(remove=True)
        os.write(ready[1], b"x")
        os.close(end[1])
        os.read(end[0], 1)
        os._exit(status)
    os.close(end[0])
    os.read(ready[0], 1)
    assert lock.held and is_refused(tmp_path) == 7
    lock.release(remove=False)
    assert FolderLock(tmp_path, tmp_path).held
    os.close(end[1])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_lock_whose_file_was_deleted_is_not_held(tmp_path):
    lock = FolderLock(tmp_path, tmp_path)
    (tmp_path / LOCK).unlink()
    assert not lock.held
    other = FolderLock(tmp_path, tmp_path)
    lock.release(remove=True)
    assert other.held


def test_a_forgotten_lock_is_given_back(tmp_path):
    lock = FolderLock(tmp_path, tmp_path)
    del lock
    gc.collect()
    assert FolderLock(tmp_path, tmp_path).held


def test_a_link_of_the_locks_name_is_not_followed(tmp_path):
    (tmp_path / "diary").write_text("dear diary")
    (tmp_path / LOCK).symlink_to(tmp_path / "diary")
    with pytest.raises(RunFolderError, match="could not be written"):
        FolderLock(tmp_path, tmp_path)
    assert (tmp_path / "diary").read_text() == "dear diary"


@pytest.mark.filterwarnings("ignore:The file system of .* has no locks")
@pytest.mark.parametrize(
    ("owner", "free"),
    [
        ({"pid": os.getpid(), "host": socket.gethostname(), "start": "another boot 17"}, True),
        ({"pid": 1 << 22, "host": socket.gethostname(), "start": ""}, True),
        ({"pid": 1 << 22, "host": "elsewhere\x1b[31m", "start": ""}, False),
        ({"pid": 10**30, "host": socket.gethostname(), "start": ""}, False),
        ({}, False),
        ([1], False),
        ("[" * 100_000, False),
    ],
)
def test_without_locks_only_what_is_certainly_dead_is_taken_over(tmp_path, monkeypatch, owner, free):
    monkeypatch.setattr(locks, "_lock", lambda _: (_ for _ in ()).throw(locks._NoLocksError))
    (tmp_path / OWNER).write_text(owner if isinstance(owner, str) else json.dumps(owner))
    if free:
        assert FolderLock(tmp_path, tmp_path).held
        return
    with pytest.raises(RunFolderError, match=f"Another job runs.*delete .*{OWNER}") as caught:
        FolderLock(tmp_path, tmp_path)
    assert str(caught.value).isprintable()
    (tmp_path / OWNER).unlink()  # as the message says
    assert FolderLock(tmp_path, tmp_path).held


def test_the_lack_of_locks_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_lock", lambda _: (_ for _ in ()).throw(locks._NoLocksError))
    with pytest.warns(RuntimeWarning, match="has no locks"):
        FolderLock(tmp_path, tmp_path)


def test_a_process_that_has_ended_is_gone_before_its_parent_looks_at_it():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(locks.myself()).encode())
        os._exit(0)
    owner = json.loads(os.read(reader, 4096))
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and stays to be looked at
    assert locks.is_gone(owner)
    os.waitpid(child, 0)
    assert locks.is_gone(owner)
    assert not locks.is_gone(locks.myself())
    assert not locks.is_gone({**owner, "host": "elsewhere"}) and not locks.is_gone({})
    for end in (reader, writer):
        os.close(end)
