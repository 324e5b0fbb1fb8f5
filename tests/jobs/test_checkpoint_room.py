"""Room for checkpoints: what they take is known before the first step, and compared with what is free."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interruptions import interrupted_at
from problems import Case
from torch import nn

import hvp_engine as he
from hvp_engine.jobs import checkpoint_room
from hvp_engine.jobs.folder import FOLDER
from hvp_engine.krylov.lanczos import BatchedLanczos

STEPS = 12
MODULE = checkpoint_room.__name__


def case() -> Case:
    torch.manual_seed(0)
    data = [(torch.randn(8, 60), torch.randint(0, 10, (8,)))]
    return Case(nn.Sequential(nn.Linear(60, 80), nn.GELU(), nn.Linear(80, 10)), he.losses.classification, data)


def job(out: Path | None, **options: Any) -> he.Spectra:
    made = case()
    settings = {"steps": STEPS, "probes": 2, "check": False, "progress": False, **options}
    return he.slq(made.model, made.loss, data=made.data, out=out, **settings)


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == MODULE]


@pytest.mark.parametrize("basis", ["fp32", "bf16", "int8", "int8-mmap", "none"])
def test_what_is_expected_is_what_the_last_checkpoint_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, basis: str
) -> None:
    options = {"reorthogonalize": "none"} if basis == "none" else {"basis": basis}
    expected: list[int] = []
    original = checkpoint_room.checkpoint_bytes

    def measured(*arguments: Any) -> int:
        expected.append(original(*arguments))
        return expected[-1]

    monkeypatch.setattr(checkpoint_room, "checkpoint_bytes", measured)
    with interrupted_at(STEPS - 1, BatchedLanczos):
        job(tmp_path, **options)
    written = sum(path.stat().st_size for path in (tmp_path / FOLDER).glob("wave-*"))
    assert expected and 0.8 * expected[0] < written < 1.2 * expected[0] + 10_000


def test_too_little_room_is_said_once_and_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free(monkeypatch, 100 << 10)
    with caplog.at_level(logging.WARNING):
        found = job(tmp_path)
    (message,) = said(caplog)
    assert "takes up to " in message and "room for 100 KiB" in message and str(tmp_path) in message
    assert "The job goes on without those that do not fit" in message and "choose another folder" in message
    assert (found["full"].nodes == job(None)["full"].nodes).all()


@pytest.mark.parametrize("size", [1 << 30, None])
def test_enough_room_is_not_spoken_of_nor_is_a_job_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int | None
) -> None:
    free(monkeypatch, size or 0)
    with caplog.at_level(logging.WARNING):
        job(None if size is None else tmp_path)
    assert not said(caplog)


def test_what_earlier_checkpoints_take_is_room_for_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with interrupted_at(STEPS - 1, BatchedLanczos):
        job(tmp_path)
    free(monkeypatch, 200 << 10)
    with caplog.at_level(logging.WARNING):
        job(tmp_path)
    assert not said(caplog)


def test_a_folder_that_does_not_tell_is_not_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Path) -> None:
        raise OSError

    monkeypatch.setattr(checkpoint_room.shutil, "disk_usage", fails)
    with caplog.at_level(logging.WARNING):
        assert job(tmp_path)
    assert not said(caplog)
