"""The report as the command line gives it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from strange_names import STRANGE_NAMES
from test_cli import call

from hvp_engine.diagnosis.report import BlockCheck, Diagnosis, Finding

JOB = """
import torch
from torch import nn
from hvp_engine import losses


def fit():
    torch.manual_seed(0)
    data = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), losses.classification, data


def unfit():
    model, loss, data = fit()
    return nn.Sequential(model, nn.Dropout(0.5)), loss, data
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("work.py:fit", "--blocks", "parameter"), 0, "Fit: nothing found"),
        (("work.py:unfit",), 1, "dropout-active"),
        (("work.py:absent",), 2, "no function 'absent'"),
        (("work.py:fit", "--blocks", "0.wieght"), 2, "Did you mean '0.weight'"),
    ],
)
def test_exit_codes_of_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    (tmp_path / "work.py").write_text(JOB)
    assert call(monkeypatch, "doctor", *arguments) == code
    out, err = capsys.readouterr()
    assert text in (err if code == 2 else out)


def test_the_command_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work.py").write_text(JOB)
    assert call(monkeypatch, "doctor", "work.py:unfit", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and report["samples"] == 6 and report["job_seconds"] > 0
    finding = report["findings"][0]
    assert finding["code"] == "dropout-active" and finding["where"] == "module '1'" and "eval()" in finding["fix"]
    assert report["blocks"][0]["wrong"] is False and report["costs"][0]["microbatch"] == 1


def test_names_of_modules_and_blocks_are_shown_literally() -> None:
    report = Diagnosis(
        [
            Finding("error", "code", f"the block {name} is wrong", name, "\x1b[2Jfile.py:1", name)
            for name in STRANGE_NAMES
        ],
        [BlockCheck(name, 66_945_024, "fp64", 1e-16, 2.5e-9, 1.3e4, False) for name in STRANGE_NAMES],
    )
    report.findings.append(Finding("note", "code", "do this:\n    loss = 1"))
    for width in (80, 120):
        console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
        console.print(report)
        assert all(line.isprintable() for line in console.file.getvalue().split("\n"))
    assert all(line.isprintable() for line in str(report).split("\n"))
    assert "    loss = 1" in str(report).split("\n")
    assert "[red]markup[/red]" in str(report)


def test_a_terminal_of_80_columns_has_the_blocks_names_and_whole_numbers() -> None:
    names = [f"h.{i}.attn.c_attn.weight" for i in range(3)]
    report = Diagnosis(blocks=[BlockCheck(name, 66_945_024, "fp64", 1e-16, 2.5e-9, 1.3e4, False) for name in names])
    console = Console(file=io.StringIO(), width=80, color_system=None, legacy_windows=False)
    console.print(report)
    words = console.file.getvalue().split()
    for word in (*names, "66,945,024", "1.0e-16", "2.5e-09", "right"):
        assert word in words
