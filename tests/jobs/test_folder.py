"""The folder of a running job: what it takes, what it leaves alone, and what a crash at any moment leaves of it."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from counting import STEPS, WAVES, count
from problems import mlp

import hvp_engine as he
from hvp_engine.errors import RunFolderError
from hvp_engine.jobs import checkpoint as checkpoints
from hvp_engine.jobs import folder as folders
from hvp_engine.jobs.checkpoint import Checkpoint
from hvp_engine.jobs.folder import FOLDER, MARKER, JobFolder

ALL = STEPS * len(WAVES)
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.posix_fallocate")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: what is cut here is the program, at its operations."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class PowerCut(BaseException):
    """Nothing reaches the disk any more, not even what an exception handler would clean up."""


class Power:
    """Counts what is done to files, and cuts the power at one of them."""

    def __init__(self) -> None:
        self.on, self.left = False, 0
        self.error: BaseException | None = None

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or event not in OPERATIONS or not self._changes(event, arguments):
            return
        self.left -= 1
        if self.left < 0:
            assert self.error is not None
            raise self.error

    @staticmethod
    def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether an operation changes files; opening one to read does not."""
        if event != "open":
            return True
        flags = arguments[2]
        return isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) != 0

    @contextmanager
    def lasts(self, operations: int, error: BaseException) -> Iterator[None]:
        """Let some operations pass; every one after them fails."""
        self.on, self.left, self.error = True, operations, error
        try:
            yield
        finally:
            self.on, self.error = False, None


POWER = Power()
sys.addaudithook(POWER.watch)  # cannot be taken back; it does nothing while the power is not watched


def crash(run: Path, operations: int, saves: tuple[int, ...]) -> bool:
    """Run the job until the power is cut; say whether it came to its end before."""
    try:
        with POWER.lasts(operations, PowerCut()):
            count(run, saves=saves)
    except PowerCut:
        return False
    return True


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_crash_at_any_operation_loses_no_checkpoint_and_changes_no_bit(tmp_path: Path) -> None:
    wanted, taken = count(tmp_path / "whole")
    assert taken == ALL
    least = []
    for operations in range(1000):
        run = tmp_path / str(operations)
        ended = crash(run, operations, (1, 2, 3))
        # Checkpoints at other steps than before the crash: what the first run left must not be taken for theirs.
        crash(run, operations // 2 + 7, (2,))
        found, taken = count(run, saves=(3,))
        assert found == wanted
        assert names(run) == ["manifest.json"]
        least.append(taken)
        if ended:
            break
    assert len(least) > 60 and sorted(least, reverse=True)[0] == ALL and least[-1] == 0


def test_a_crash_costs_no_more_than_what_was_done_since_the_last_checkpoint(tmp_path: Path) -> None:
    previous = ALL
    for operations in range(1000):
        run = tmp_path / str(operations)
        ended = crash(run, operations, (1, 2, 3))
        _, taken = count(run)
        assert taken <= previous
        previous = taken
        if ended:
            break
    assert previous == 0


def test_a_full_disk_at_any_operation_is_survived(tmp_path: Path) -> None:
    wanted, _ = count(tmp_path / "whole")
    for operations in range(0, 1000, 3):
        run = tmp_path / str(operations)
        ended = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                with POWER.lasts(operations, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
                    assert count(run)[0] == wanted
            except RunFolderError as error:
                ended = False
                assert "disk is full" in str(error) or "cannot be created" in str(error)
        assert count(run)[0] == wanted
        if ended:
            break
    assert operations > 60


def test_a_job_that_the_disk_has_no_room_for_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise RunFolderError(f"The disk is full: {path}.")

    for module, file in ((folders, MARKER), (checkpoints, "identity.json")):
        with monkeypatch.context() as patch, pytest.raises(RunFolderError, match=f"full.*{file}"):
            patch.setattr(module, "write_json", full)
            count(tmp_path)
        assert not names(tmp_path)


def test_a_disk_that_is_full_at_the_end_keeps_what_was_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = mlp()

    def job(out: Path | None) -> he.Spectra:
        return he.slq(case.model, case.loss, data=case.data, steps=4, probes=2, check=False, out=out)

    def full(self: he.Spectra, folder: Path) -> None:
        assert not (folder / FOLDER / "reserve").exists()
        raise RunFolderError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(he.Spectra, "save", full)
        with pytest.raises(RunFolderError, match="full. All that was computed is kept in .*finishes without a step"):
            job(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("hvp_engine.krylov.lanczos.BatchedLanczos.step", lambda _: pytest.fail("a step was taken"))
        found = job(tmp_path)
    assert all((found[name].nodes == spectrum.nodes).all() for name, spectrum in job(None).items())


@pytest.mark.parametrize("reserves", [True, False])
def test_the_space_for_the_end_is_held_back_while_the_job_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserves: bool
) -> None:
    sizes = []
    if not reserves:  # not every system has it
        monkeypatch.delattr(os, "posix_fallocate")
    write = checkpoints.write_tensors

    def seen(path: Path, *arguments: Any) -> None:
        reserve = path.with_name("reserve")
        sizes.append(reserve.stat().st_size if reserve.exists() else 0)
        write(path, *arguments)

    monkeypatch.setattr(checkpoints, "write_tensors", seen)
    count(tmp_path, saves=(2,))
    held = [size for size in sizes if size]
    assert min(held) > 1 << 20 and sizes[-1] == 0 and len(held) == 4  # rows and state of two waves


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.pt").write_bytes(b"weeks of training")
    (tmp_path / "notes.txt").write_text("mine")
    count(tmp_path)
    assert (tmp_path / "checkpoint" / "model.pt").read_bytes() == b"weeks of training"
    assert names(tmp_path) == ["checkpoint", "manifest.json", "notes.txt"]


@pytest.mark.parametrize("marker", [None, "", "{}", "directory"])
def test_a_folder_of_our_name_without_our_mark_is_not_entered(tmp_path: Path, marker: str | None) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in ("wave-000-state.safetensors", "identity.json", ".identity.json.0123456789ab.tmp", "model.pt"):
        (folder / name).write_text("mine")
    if marker == "directory":
        (folder / MARKER).mkdir()
    elif marker is not None:
        (folder / MARKER).write_text(marker)
    before = names(folder)
    with pytest.raises(RunFolderError, match="was not made by hvp_engine.*Move it away"):
        count(tmp_path)
    assert names(folder) == before
    folder.rename(tmp_path / "away")  # as the message says
    assert count(tmp_path)[1] == ALL


def test_what_lies_in_our_folder_and_is_not_ours_stays(tmp_path: Path) -> None:
    JobFolder(tmp_path).close()
    (tmp_path / FOLDER / "model.pt").write_bytes(b"weeks of training")
    (tmp_path / FOLDER / "wave-0.txt").mkdir()
    count(tmp_path)
    assert {"model.pt", "wave-0.txt"} <= set(names(tmp_path / FOLDER))
    (tmp_path / "manifest.json").unlink()
    assert count(tmp_path)[1] == ALL


@pytest.mark.parametrize("target", ["elsewhere", "missing", "file"])
def test_a_link_of_our_folders_name_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FOLDER).symlink_to(tmp_path / target)
    with pytest.raises(RunFolderError, match="is a link or a file"):
        count(tmp_path / "run")
    assert not names(tmp_path / "elsewhere")


def test_a_run_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "run").symlink_to("large")
    assert count(tmp_path / "run")[1] == ALL
    assert names(tmp_path / "large") == ["manifest.json"]


@pytest.mark.parametrize("kind", ["file", "dangling link", "below a file", "null"])
def test_what_cannot_be_a_run_folder_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("missing/deeper")
    run = {"file": "file", "dangling link": "link", "below a file": "file/run", "null": "a\0b"}[kind]
    with pytest.raises(RunFolderError, match="cannot be created.*choose another folder"):
        count(tmp_path / run)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["manifest.json", "spectra.safetensors"])
def test_a_result_of_somebody_else_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"epochs": 3}')
    case = mlp()
    with pytest.raises(RunFolderError, match=f"{name} .*not written by hvp_engine"):
        he.slq(case.model, case.loss, data=case.data, steps=2, probes=1, check=False, out=tmp_path)
    assert names(tmp_path) == [name] and (tmp_path / name).read_text() == '{"epochs": 3}'


@pytest.mark.parametrize("identity", [None, [], [1], "a", {}, {"seed": [[]]}])
def test_a_result_without_an_identity_is_refused(tmp_path: Path, identity: object) -> None:
    case = mlp()
    found = he.slq(case.model, case.loss, data=case.data, steps=2, probes=1, check=False)
    found.manifest["identity"] = identity
    found.save(tmp_path)
    with pytest.raises(RunFolderError, match="holds another job"):
        he.slq(case.model, case.loss, data=case.data, steps=2, probes=1, check=False, out=tmp_path)


def test_a_second_job_in_a_folder_is_refused_and_hurts_nothing(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, {"seed": 0}) as first:
        first.waves(WAVES)
        before = names(tmp_path / FOLDER)
        for seed in (0, 1):
            with pytest.raises(RunFolderError, match=f"Another job runs in .*process {os.getpid()}"):
                count(tmp_path, seed=seed)
        assert names(tmp_path / FOLDER) == before


def test_files_of_two_jobs_that_got_mixed_are_refused_or_right(tmp_path: Path) -> None:
    for seed, run in ((0, tmp_path / "a"), (1, tmp_path / "b")):
        with pytest.raises(PowerCut), POWER.lasts(30, PowerCut()):
            count(run, seed=seed, saves=(2,))
    wanted = [count(tmp_path / f"whole {seed}", seed=seed)[0] for seed in (0, 1)]
    mixed = {name: (tmp_path / "b" / FOLDER / name) for name in names(tmp_path / "b" / FOLDER)}
    assert len(mixed) > 4
    for name, other in mixed.items():
        for seed in (0, 1):
            run = tmp_path / f"{name} {seed}"
            shutil.copytree(tmp_path / "a", run)
            shutil.copy(other, run / FOLDER / name)
            try:
                assert count(run, seed=seed)[0] == wanted[seed]
            except RunFolderError as error:
                assert "holds another job" in str(error) or "damaged" in str(error)


def test_a_job_that_saved_no_work_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Checkpoint(tmp_path, {"seed": 0}) as checkpoint:
        checkpoint.waves(WAVES)
        raise ZeroDivisionError
    assert not names(tmp_path)


def test_a_folder_deleted_under_a_job_is_said_and_the_result_written(tmp_path: Path) -> None:
    wanted, _ = count(tmp_path / "whole")
    original = checkpoints.Checkpoint.restore

    def restore(self: Checkpoint, wave: int, streams: Any) -> None:
        original(self, wave, streams)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    with pytest.MonkeyPatch.context() as patch, pytest.warns(RuntimeWarning, match="was deleted .*The job goes on"):
        patch.setattr(checkpoints.Checkpoint, "restore", restore)
        assert count(tmp_path / "run")[0] == wanted
    assert names(tmp_path / "run") == ["manifest.json"]


def test_what_is_left_of_a_job_killed_after_its_result_is_swept(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobFolder, "remove", JobFolder.close)
        count(tmp_path)
    assert FOLDER in names(tmp_path)
    (tmp_path / ".manifest.json.0123456789ab.tmp").touch()
    (tmp_path / ".notes.txt.0123456789ab.tmp").touch()
    assert count(tmp_path)[1] == 0
    assert names(tmp_path) == [".notes.txt.0123456789ab.tmp", "manifest.json"]


def test_the_work_of_another_job_beside_a_result_is_not_swept(tmp_path: Path) -> None:
    with pytest.raises(PowerCut), POWER.lasts(30, PowerCut()):
        count(tmp_path, seed=1)
    before = [name for name in names(tmp_path / FOLDER) if not name.endswith(".tmp")]
    count(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "manifest.json", tmp_path)
    assert count(tmp_path)[1] == 0
    assert names(tmp_path / FOLDER) == before


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with (
        POWER.lasts(0, PermissionError(errno.EACCES, os.strerror(errno.EACCES))),
        pytest.raises(RunFolderError, match="choose a(nother)? folder"),
    ):
        count(tmp_path)
    assert not names(tmp_path)


def test_the_names_of_files_that_are_deleted_are_those_that_are_written(tmp_path: Path) -> None:
    written = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders.JobFolder, "delete", lambda self, names: written.update(os.listdir(self.path)))
        count(tmp_path)
    ours = {"identity.json", "waves.json", "reserve", MARKER, "lock", "wave-000-state.safetensors"}
    assert ours | {"wave-001-rows-00000-00002.safetensors"} <= written
