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
    ):

        def fails(*_, code=code):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(RunFolderError, match=message):
                files.write_atomic({path: [b"second"]})
        assert os.listdir(tmp_path) == ["a"] and path.read_bytes() == b"first"
    with pytest.raises(RunFolderError, match="deleted is not there any more"):
        files.write_atomic({tmp_path / "deleted" / "a": [b""]})


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


def test_a_folder_is_made_and_proved_writable_without_a_trace(tmp_path):
    for folder in (tmp_path / "new" / "deeper", tmp_path):
        before = sorted(os.listdir(folder)) if folder.is_dir() else []
        files.prove_writable(folder)
        assert sorted(os.listdir(folder)) == before


def test_a_folder_that_cannot_be_made_or_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("missing/deeper")
    for folder in ("file", "file/run", "link", "a\0b", "x" * 300, "/proc/x/run"):
        with pytest.raises(RunFolderError, match=r"folder .* cannot be created \(.*choose another folder"):
            files.prove_writable(tmp_path / folder)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(RunFolderError, match="/proc could not be written .*choose a folder"):
        files.prove_writable(files.Path("/proc"))
    monkeypatch.setattr(os, "fsync", lambda _: os.truncate("/dev/full/x", 0))
    with pytest.raises(RunFolderError, match="could not be written .*choose a folder that you may write to"):
        files.prove_writable(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
