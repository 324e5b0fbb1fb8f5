"""The command eigsh, and the commands that look at its runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hvp_engine import cli
from hvp_engine.results.eigensystem import Eigensystem
from hvp_engine.system.run_files import write_run

JOB = """
import torch
from torch import nn
from hvp_engine import losses


def job():
    torch.manual_seed(0)
    data = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), losses.classification, data
"""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hvp-engine", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_eigsh_show_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text(JOB)
    arguments = ("--blocks", "parameter", "--k", "4", "--which", "LA", "--operator", "hessian", "--quiet")
    assert call(monkeypatch, "eigsh", "work.py:job", *arguments) == 0
    run = tmp_path / "runs" / "work-job-eigsh"
    table = capsys.readouterr().out
    assert "0.weight" in table and "hvp-engine plot" in table
    found = Eigensystem.load(run)
    assert found["2.bias"].numel == 3 and len(found["2.bias"].values) == 3
    assert call(monkeypatch, "show", str(run)) == 0
    shown = capsys.readouterr().out
    assert "which           LA" in shown and "tolerance       0.001" in shown
    assert call(monkeypatch, "show", str(run), "--json") == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == found.record()
    assert call(monkeypatch, "plot", str(run)) == 0
    assert (run / "eigenpairs.png").is_file()


def test_a_kind_of_run_that_cannot_be_shown_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, {"run": {"config": {"job": "trees"}}})
    assert call(monkeypatch, "show", str(tmp_path)) == 1
    assert "holds the result of a job 'trees', which is none of slq, eigsh" in capsys.readouterr().err
