"""Curvature in mapped files where the disk has no room for it: said, and done without; never a crash."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import gpt

import hvp_engine as he
from hvp_engine.ops.head.curvature import head_cost
from hvp_engine.scheduling import policy
from hvp_engine.system import files, pages

BLOCKS = ["layers.0.attn.wq.weight", "ln_f.weight"]


@pytest.fixture(autouse=True)
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the head's curvature pay at once, and have no room in memory."""
    monkeypatch.setattr(policy, "head_cost", lambda *a, **k: replace(head_cost(*a, **k), form_flop=-1e30))
    monkeypatch.setattr(policy, "MEMORY_SHARE", 0.0)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which no file can be larger than a kilobyte; a real limit would hold for the tests' own output, too."""
    allocate = os.posix_fallocate

    def refuse(descriptor: int, offset: int, length: int) -> None:
        if offset + length > 1024:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", refuse)


def job(out: Path | None = None, **options: Any) -> he.Spectra:
    case = gpt()
    return he.slq(case.model, case.loss, BLOCKS, data=case.data, steps=4, probes=1, check=False, out=out, **options)


def close(first: he.Spectra, second: he.Spectra) -> bool:
    return all(np.allclose(first[name].alphas, second[name].alphas, rtol=1e-3, atol=1e-5) for name in first)


def test_space_is_reserved_before_the_first_page_is_written(tmp_path: Path) -> None:
    mapped = pages.map_new_file(tmp_path / "pages", 100_000, torch.float32)
    assert os.stat(tmp_path / "pages").st_blocks * 512 >= 400_000
    mapped.fill_(2.0)
    again = pages.map_file(tmp_path / "pages", 100_000, torch.float32)
    assert float(again.sum()) == 200_000.0


@pytest.mark.usefixtures("small_files")
def test_a_file_that_cannot_be_that_large_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="large"):
        pages.map_new_file(tmp_path / "pages", 100_000, torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_without_reservations_zeros_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    size = len(files._ZEROS) // 4 + 5
    assert not pages.map_new_file(tmp_path / "pages", size, torch.float32).any()
    assert (tmp_path / "pages").stat().st_size == 4 * size


@pytest.mark.usefixtures("small_files")
def test_a_job_without_room_for_its_curvature_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = job(head_curvature=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="does not fit on the disk .*set TMPDIR to a folder with more"):
        found = job()
    assert close(found, wanted)
    assert "no room on the disk: File too large" in found.manifest["plan"]["head_curvature"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", [None, "run"])
def test_a_disk_that_fills_up_between_micro_batches_keeps_what_is_formed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None
) -> None:
    wanted = job(head_curvature=False)
    original, calls = pages.allocate, 0

    def reserve(descriptor: int, size: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(28, "No space left on device")
        original(descriptor, size)

    monkeypatch.setattr(pages, "allocate", reserve)
    fix = "set TMPDIR" if out is None else "choose a folder with more for out="
    with pytest.warns(RuntimeWarning, match=f"does not fit on the disk .*{fix}"):
        found = job(None if out is None else tmp_path / out)
    assert close(found, wanted)
    assert "of a part of the data (no room on the disk: No space left" in found.manifest["plan"]["head_curvature"]


@pytest.mark.parametrize("missing", ["before", "meanwhile"])
def test_a_folder_for_temporary_files_that_is_gone_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    wanted = job(head_curvature=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    if missing == "before":
        assert close(job(), wanted)
        return
    monkeypatch.setattr("hvp_engine.operators.head.decide.free_disk", lambda: 1 << 40)
    with pytest.warns(RuntimeWarning, match="does not fit on the disk .*No such file"):
        assert close(job(), wanted)
