"""What a run folder can be refused for before anything is computed: no job can be run there, or another one was."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import interrupted_at
from problems import Case, mlp

import hvp_engine as he
from hvp_engine.errors import ForeignRunError, RunFolderError
from hvp_engine.jobs.checkpoint import Checkpoint
from hvp_engine.jobs.folder import FOLDER, JobFolder, prove_usable
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.system import files

BATCHES = 40
FEW = 15  # evaluations of the loss that the model, the loss and the data are looked at with


def many() -> Case:
    """A case of so many batches that a pass over them shows."""
    case = mlp()
    inputs, targets = case.data[0]
    return Case(case.model, case.loss, [(inputs + number, targets) for number in range(BATCHES)])


def run(out: Path, case: Case | None = None, **options: Any) -> int:
    """Run a job; return how often the loss was evaluated, which a refusal says, too, as ``calls``."""
    case, calls = case or many(), 0
    loss = case.loss

    def counted(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        return loss(model, batch)

    settings = {"steps": 3, "probes": 1, "check": False, "progress": False, **options}
    try:
        he.slq(case.model, counted, data=case.data, out=out, **settings)
    except RunFolderError as error:
        error.calls = calls  # type: ignore[attr-defined]
        raise
    return calls


def refused(match: str, out: Path, case: Case | None = None, *, most: int = FEW, **options: Any) -> RunFolderError:
    with pytest.raises(RunFolderError, match=match) as caught:
        run(out, case, **options)
    assert caught.value.calls <= most  # type: ignore[attr-defined]
    return caught.value


def everything(folder: Path) -> dict[str, bytes | None]:
    """All paths below a folder, with what is in the files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("where", ["file", "file/run", "link", "a\0b", "new/" + "x" * 300, "/proc/x/run", "/proc"])
def test_where_no_folder_can_be_is_said_before_the_loss_is_called(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("missing/deeper")
    before = everything(tmp_path)
    refused("(cannot be created|could not be written).* choose a(nother)? folder", tmp_path / where, most=0)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("is_there", [True, False])
def test_a_full_disk_is_said_before_the_loss_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    if is_there:
        (tmp_path / "run").mkdir()
    before = everything(tmp_path)

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_trial", full)
    refused("No space left", tmp_path / "run", most=0)
    assert everything(tmp_path) == before


def test_what_others_put_there_is_said_before_the_loss_is_called(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FOLDER).write_text("mine")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "spectra.safetensors").write_text("mine")
    before = everything(tmp_path)
    refused("is a link or a file", tmp_path / "other", most=0)
    refused("not written by hvp_engine", tmp_path / "third", most=0)
    assert everything(tmp_path) == before


def test_a_job_that_runs_there_is_said_before_the_loss_is_called(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, {"seed": 0}):
        before = everything(tmp_path)
        refused("Another job runs in", tmp_path, most=0)
        assert everything(tmp_path) == before


def test_looking_leaves_a_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    JobFolder(tmp_path / "killed").close()
    (tmp_path / "killed" / FOLDER / "verification.json").write_text("of a job that had saved no work")
    before = everything(tmp_path)
    for name in ("empty", "killed", "new/deeper"):
        prove_usable(tmp_path / name)
    after = everything(tmp_path)
    assert after.keys() == before.keys()
    assert {k: v for k, v in after.items() if "lock" not in k} == {k: v for k, v in before.items() if "lock" not in k}


def test_a_job_that_fails_on_its_model_leaves_no_folder(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    case = Case(model, lambda m, b: m(b).square().mean(), [torch.randn(8, 3)])
    with pytest.raises(he.errors.HvpEngineError):
        run(tmp_path / "parent" / "run", case)
    assert everything(tmp_path) == {}


def other_weights() -> Case:
    case = many()
    with torch.no_grad():
        next(case.model.parameters()).mul_(2.0)
    return case


def other_data() -> Case:
    case = many()
    case.data[7] = (case.data[7][0] + 1.0, case.data[7][1])
    return case


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_another_job_is_refused_before_the_data_are_passed_through_the_model(tmp_path: Path, state: str) -> None:
    if state == "finished":
        assert run(tmp_path) > BATCHES
    else:
        with interrupted_at(2, BatchedLanczos):
            run(tmp_path)
    before = everything(tmp_path)
    for words, case, options in (
        (r"steps: 3 there, 4 here", None, {"steps": 4}),
        (r"seed: 0 there, 1 here", None, {"seed": 1}),
        (r"parameters: .* changed", other_weights(), {}),
        (r"data: batch 7 of 40 changed", other_data(), {}),
    ):
        error = refused(f"holds another job .*{words}", tmp_path, case, **options)
        assert isinstance(error, ForeignRunError)
    after = everything(tmp_path)
    assert {k: v for k, v in after.items() if "lock" not in k} == {k: v for k, v in before.items() if "lock" not in k}
    assert run(tmp_path) > BATCHES  # the job itself goes on, or is complete


def test_a_result_of_another_kind_is_refused_before_the_data_are_passed_through_the_model(tmp_path: Path) -> None:
    case = many()
    he.trace(case.model, case.loss, data=case.data, out=tmp_path, check=False, progress=False)
    refused("holds another job", tmp_path)


def test_a_damaged_identity_is_said_before_the_data_are_passed_through_the_model(tmp_path: Path) -> None:
    with interrupted_at(2, BatchedLanczos):
        run(tmp_path)
    (tmp_path / FOLDER / "identity.json").write_text("{")
    refused("identity.json .*To compute from the beginning, delete", tmp_path)


def test_a_finished_run_opens_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    before = everything(tmp_path)

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for module, name in ((files, "write_trial"), (Path, "mkdir"), (os, "replace")):
        monkeypatch.setattr(module, name, read_only)
    assert run(tmp_path) > BATCHES
    assert everything(tmp_path) == before
