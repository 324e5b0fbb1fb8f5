"""Files written whole or not at all, and opened without trusting what they are."""

import errno
import os

import pytest

from hvp_engine.errors import RunFolderError
from hvp_engine.system import files


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write_atomic({path: [b"first"]})
    for code, message in (
        (errno.ENOSPC, "disk is full.*intact.*free some space"),
        (errno.EDQUOT, "disk is full.*quota"),
        (errno.EROFS, "choose a folder that you may write to"),
        (errno.ENOENT, "not there any more"),
    ):

        def fails(*_, code=code):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(RunFolderError, match=message):
                files.write_atomic({path: [b"second"]})
        assert os.listdir(tmp_path) == ["a"] and path.read_bytes() == b"first"


def test_temporary_files_are_told_from_all_others(tmp_path):
    for name in (".a.json.0123456789ab.tmp", ".a.json.tmp", "a.json.0123456789ab.tmp", ".x.0123456789AB.tmp", "a.json"):
        (tmp_path / name).touch()
    assert list(files.temporaries(tmp_path)) == [(tmp_path / ".a.json.0123456789ab.tmp", "a.json")]


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing", tmp_path / "a\0b", "/dev/zero"):
        with pytest.raises(RunFolderError, match="not a regular file|cannot be read"):
            files.read_whole(tmp_path / path, 10)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 1 << 40)
    with pytest.raises(RunFolderError, match="too many"):
        files.read_whole(tmp_path / "a", 1 << 20)
