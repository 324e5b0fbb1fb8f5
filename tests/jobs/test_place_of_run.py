"""Where a run folder is: at the path that was given, seen from where the call was made."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from problems import mlp

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, RunFolderError


@pytest.mark.parametrize("step", [3, 8, 20])
def test_a_loss_that_changes_the_directory_does_not_move_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    case, calls = mlp(), 0

    def loss(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            os.chdir(tmp_path / "elsewhere")
        return case.loss(model, batch)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        he.slq(case.model, loss, data=case.data, steps=3, probes=1, out="run", check=False)
    assert calls > step
    assert sorted(os.listdir(tmp_path / "run")) == ["manifest.json", "spectra.safetensors"]
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("out", [5, b"run", Path])
def test_what_is_no_path_is_said_before_the_work(out: Any) -> None:
    case = mlp()
    with pytest.raises(ConfigurationError, match="out=.* is no path; give a string"):
        he.slq(case.model, lambda *_: pytest.fail("evaluated"), data=case.data, steps=3, probes=1, out=out)


def test_a_directory_that_was_deleted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    case = mlp()
    with pytest.raises(RunFolderError, match="the process's working directory was deleted; give out= from the root"):
        he.slq(case.model, case.loss, data=case.data, steps=3, probes=1, out="run")
    assert he.slq(case.model, case.loss, data=case.data, steps=3, probes=1, out=tmp_path / "run")
